// What the operations on packed masks share.
#pragma once

#include <algorithm>
#include <cstdint>

#include "csrc/core/parallel.h"
#include "csrc/ops/masks.h"

namespace fai::ops {

// Below this many bytes, waking a thread costs more than it saves.
inline constexpr int64_t kWorthAThread = 1 << 18;

inline int threads_for(int64_t bytes, int num_threads) {
    return bytes < kWorthAThread ? 1 : resolve_threads(num_threads);
}

// Sets the offsets of dense masks and the size of their bits, from the boxes.
inline void lay_out(PackedMasks& masks) {
    int64_t total = 0;
    masks.offsets.clear();
    for (const Box& box : masks.boxes) {
        masks.offsets.push_back(total);
        total += box.words();
    }
    masks.bits.assign(static_cast<size_t>(total), 0);
}

// Bits that are set in n words.
inline int64_t popcount(const uint64_t* words, int64_t n) {
    constexpr uint64_t k55 = 0x5555555555555555, k33 = 0x3333333333333333, k0f = 0x0f0f0f0f0f0f0f0f;
    int64_t total = 0;
    // The baseline has no popcnt instruction. Sums per byte vectorize; 31 of at most 8 fit into a byte.
    while (n > 0) {
        const int64_t chunk = std::min<int64_t>(n, 31);
        uint64_t bytes = 0;
        for (int64_t i = 0; i < chunk; ++i) {
            uint64_t x = words[i];
            x -= x >> 1 & k55;
            x = (x & k33) + (x >> 2 & k33);
            bytes += (x + (x >> 4)) & k0f;
        }
        bytes = (bytes & 0x00ff00ff00ff00ff) + (bytes >> 8 & 0x00ff00ff00ff00ff);
        total += static_cast<int64_t>(bytes * 0x0001000100010001 >> 48);
        words += chunk;
        n -= chunk;
    }
    return total;
}

}  // namespace fai::ops
