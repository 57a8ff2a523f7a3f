// cuda/api.h for builds with CUDA.
#include <cuda_runtime_api.h>

#include "cuda/api.h"

namespace fai::cuda {

bool compiled() noexcept { return true; }
int toolkit_version() noexcept { return CUDART_VERSION; }

}  // namespace fai::cuda
