// cuda/api.h for builds without CUDA.
#include "cuda/api.h"

namespace fai::cuda {

bool compiled() noexcept { return false; }
int toolkit_version() noexcept { return 0; }

}  // namespace fai::cuda
