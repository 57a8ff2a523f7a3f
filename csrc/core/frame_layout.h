// How a frame lies in memory.
#pragma once

#include <cstdint>

#include "csrc/core/types.h"

namespace fai {

enum class Pixels : uint8_t { rgb, gray, yuv };

// Up to three planes, R, G, B or Y, U, V, that share a row's pixel stride; strides in bytes, of any sign.
struct FrameLayout {
    Pixels pixels = Pixels::rgb;
    Size size;
    int64_t row_stride[3] = {0, 0, 0};
    int64_t pixel_stride = 0;   // from a pixel to the next, in luma
    int64_t chroma_stride = 0;  // and from a chroma sample to the next; two pixels share one
    int chroma_row_shift = 0;   // 1 where two rows share a chroma row
    // An i420 array holds two rows of U, then of V, in each of its rows: chroma row r of plane c is the half
    // (first_row[c] + r) % 2 of row (first_row[c] + r) / 2.
    bool folded = false;
    int32_t first_row[3] = {0, 0, 0};
    int64_t half_row = 0;

    bool operator==(const FrameLayout&) const = default;
};

}  // namespace fai
