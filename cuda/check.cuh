// Calls of the CUDA runtime that throw.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "csrc/core/error.h"

namespace fai::cuda {

// The sentence that a user needs for an error of the runtime's.
std::string explain(cudaError_t error, const char* what);

inline void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    // An error that is not sticky would otherwise be reported again by the next launch.
    cudaGetLastError();
    throw CudaError(explain(error, what));
}

}  // namespace fai::cuda
