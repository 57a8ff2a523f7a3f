// What the rest of the library may call on the GPU. No CUDA types, so that every file can include it.
#pragma once

namespace fai::cuda {

// True where the .cu files were compiled.
bool compiled() noexcept;

// Version of the CUDA toolkit compiled with, as major * 1000 + minor * 10; 0 without CUDA.
int toolkit_version() noexcept;

}  // namespace fai::cuda
