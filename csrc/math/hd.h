// FAI_HD marks the functions that decide a pixel: both compilers inline them, so that no copy compiled for
// one instruction set can be linked in place of another's.
#pragma once

#if defined(__CUDACC__)
#define FAI_HD __host__ __device__ __forceinline__
#else
#define FAI_HD inline __attribute__((always_inline))
#endif
