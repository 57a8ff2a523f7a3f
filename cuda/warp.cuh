// What a warp does together, and other small things that several kernels use.
#pragma once

#include <cstdint>

#include "cuda/params.cuh"

namespace fai::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;
inline constexpr int kWarps = kThreads / 32;

__device__ __forceinline__ int32_t min_i32(int32_t a, int32_t b) { return a < b ? a : b; }
__device__ __forceinline__ int32_t max_i32(int32_t a, int32_t b) { return a > b ? a : b; }
__device__ __forceinline__ int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
__device__ __forceinline__ int64_t max_i64(int64_t a, int64_t b) { return a > b ? a : b; }
__device__ __forceinline__ bool is_nan(float x) { return !(x == x); }
__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

template <class T>
__device__ __forceinline__ T warp_reduce_max(T value) {
    for (int step = 16; step > 0; step /= 2) {
        const T other = __shfl_xor_sync(kAllLanes, value, step);
        value = value > other ? value : other;
    }
    return value;
}

template <class T>
__device__ __forceinline__ T warp_reduce_min(T value) {
    for (int step = 16; step > 0; step /= 2) {
        const T other = __shfl_xor_sync(kAllLanes, value, step);
        value = value < other ? value : other;
    }
    return value;
}

template <class T>
__device__ __forceinline__ T warp_reduce_sum(T value) {
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
    return value;
}

// Whole units of a sum of probabilities: integers add up to the same in any order.
__device__ __forceinline__ unsigned long long units(float sum) {
    return static_cast<unsigned long long>(sum * 16777216.0f);
}

// True in every thread of the last of `count` blocks that come here with this counter: it sees all that the
// others have written before.
__device__ __forceinline__ bool last_to_arrive(int32_t* counter, int32_t count) {
    __shared__ int32_t arrived;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) arrived = atomicAdd(counter, 1) + 1;
    __syncthreads();
    const bool last = arrived == count;
    __threadfence();
    __syncthreads();  // the next call's `arrived` is the same
    return last;
}

}  // namespace fai::cuda
