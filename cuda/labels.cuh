// The labels' way to the host.
#pragma once

#include <cstdint>

#include "cuda/params.cuh"
#include "cuda/warp.cuh"

namespace fai::cuda {

// Copies bytes [begin, end) of the labels to the host, in vectors where those are whole.
__device__ __forceinline__ void send(const ImageParams& image, int64_t begin, int64_t end) {
    const auto* const from = static_cast<const uint8_t*>(image.segments);
    auto* const to = reinterpret_cast<uint8_t*>(image.payload);
    const int64_t first = min_i64((begin + 15) / 16 * 16, end), last = max_i64(end / 16 * 16, first);
    // Other blocks have written it: not from this multiprocessor's own cache.
    for (int64_t i = begin + threadIdx.x; i < first; i += kThreads) to[i] = __ldcg(from + i);
#pragma unroll 4
    for (int64_t i = first / 16 + threadIdx.x; i < last / 16; i += kThreads) {
        reinterpret_cast<uint4*>(to)[i] = __ldcg(reinterpret_cast<const uint4*>(from) + i);
    }
    for (int64_t i = last + threadIdx.x; i < end; i += kThreads) to[i] = __ldcg(from + i);
}

}  // namespace fai::cuda
