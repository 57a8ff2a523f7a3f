// Calls of the CUDA runtime that throw.
#pragma once

#include <cuda_runtime.h>

#include <source_location>
#include <string>

#include "csrc/core/error.h"

namespace fai::cuda {

// The sentence that a user needs for an error of the runtime's. Where it is one that nobody expects, with the
// place in our code, for a report.
std::string explain(cudaError_t error, const char* what,
                    std::source_location where = std::source_location::current());

inline void check(cudaError_t error, const char* what,
                  std::source_location where = std::source_location::current()) {
    if (error == cudaSuccess) return;
    // An error that is not sticky would otherwise be reported again by the next launch.
    cudaGetLastError();
    throw CudaError(explain(error, what, where));
}

}  // namespace fai::cuda
