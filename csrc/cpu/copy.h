// Copies that leave the cache as it is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace fai::cpu {

// memcpy for bytes that no CPU reads next: where the instruction set has stores for it, past the cache, from
// which a device would have to fetch them line by line.
inline void copy_past_cache(void* to, const void* from, size_t bytes) {
#if defined(__SSE2__)
    auto* out = static_cast<uint8_t*>(to);
    const auto* in = static_cast<const uint8_t*>(from);
    constexpr size_t kLine = 64;
    const size_t head = (kLine - reinterpret_cast<uintptr_t>(out) % kLine) % kLine;
    if (bytes < head + kLine) {
        std::memcpy(out, in, bytes);
        return;
    }
    std::memcpy(out, in, head);
    size_t at = head;
    for (; at + kLine <= bytes; at += kLine) {
        __m128i part[4];
        for (int i = 0; i < 4; ++i) part[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + at) + i);
        for (int i = 0; i < 4; ++i) _mm_stream_si128(reinterpret_cast<__m128i*>(out + at) + i, part[i]);
    }
    std::memcpy(out + at, in + at, bytes - at);
    // Before anybody is told that the bytes are there.
    _mm_sfence();
#else
    std::memcpy(to, from, bytes);
#endif
}

}  // namespace fai::cpu
