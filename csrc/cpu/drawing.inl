// Drawing of packed masks, written once and compiled per instruction set. Integers only: every set gives the
// same bytes.
//
// Bytes: three per pixel of a mask are read and written once; whole words of 64 pixels that are not in it
// cost one comparison.

#include <cstring>

#include "csrc/cpu/kernels.h"

namespace fai::cpu::FAI_ISA {
namespace {

// pixels[i] += (color[i] - pixels[i]) * alpha[i] / 255, rounded to nearest: (t + 128 + (t + 128) / 256) / 256
// is t / 255 for all products of two bytes.
inline void blend_bytes(uint8_t* pixels, const uint8_t* color, const uint8_t* alpha) {
    for (int i = 0; i < kWordBytes; ++i) {
        const auto t = static_cast<uint16_t>(pixels[i] * (255 - alpha[i]) + color[i] * alpha[i] + 128);
        pixels[i] = static_cast<uint8_t>(static_cast<uint16_t>(t + (t >> 8)) >> 8);
    }
}

// alpha[3 * i + c] = value where bit i is set, else what it was.
inline void spread(uint64_t bits, uint8_t value, uint8_t* alpha) {
    for (; bits != 0; bits &= bits - 1) std::memset(alpha + 3 * __builtin_ctzll(bits), value, 3);
}

void paint_row(const PaintRow& row) {
    alignas(64) uint8_t inner[kWordBytes], alpha[kWordBytes];
    std::memset(inner, row.alpha, kWordBytes);
    for (int64_t k = 0; k < row.words; ++k) {
        const uint64_t mask = row.mask[k], edge = mask & ~row.inner[k];
        if (mask == 0) continue;
        const int64_t first = 64 * (row.first_word + k);
        uint8_t* const pixels = row.pixels + 3 * first;
        const uint8_t* cover = inner;
        if (mask != ~uint64_t{0} || edge != 0) {
            std::memset(alpha, 0, kWordBytes);
            if (mask == ~uint64_t{0}) {
                std::memset(alpha, row.alpha, kWordBytes);
            } else {
                spread(mask & ~edge, row.alpha, alpha);
            }
            spread(edge, 255, alpha);
            cover = alpha;
        }
        if (first + 64 <= row.width) {
            blend_bytes(pixels, row.color, cover);
        } else {
            // The frame ends within the word.
            const auto bytes = static_cast<size_t>(3 * (row.width - first));
            alignas(64) uint8_t part[kWordBytes] = {};
            std::memcpy(part, pixels, bytes);
            blend_bytes(part, row.color, cover);
            std::memcpy(pixels, part, bytes);
        }
    }
}

}  // namespace
}  // namespace fai::cpu::FAI_ISA
