// Where a pixel's samples are in a frame, and how two resampled rows become normalized values.
#pragma once

#include <cstdint>

#include "csrc/core/frame_layout.h"
#include "csrc/math/color.h"
#include "csrc/math/hd.h"

namespace fai::math {

// Bytes from the start of a plane to its samples for a row of pixels.
FAI_HD int64_t row_offset(const FrameLayout& frame, int plane, int32_t row) {
    if (plane == 0 || frame.pixels != Pixels::yuv) return row * frame.row_stride[plane];
    const int32_t y = row >> frame.chroma_row_shift;
    if (!frame.folded) return y * frame.row_stride[plane];
    const int32_t half = frame.first_row[plane] + y;
    return (half >> 1) * frame.row_stride[plane] + (half & 1) * frame.half_row;
}

// A pixel of a row on the 0..255 scale. `row` points to each plane's samples for it.
FAI_HD Rgb<float> read_pixel(const FrameLayout& frame, const uint8_t* const (&row)[3], int32_t column,
                             const YuvCoefficients& yuv) {
    const int64_t at = column * frame.pixel_stride;
    const auto sample = [](const uint8_t* p) { return static_cast<float>(*p); };
    if (frame.pixels == Pixels::rgb) return {sample(row[0] + at), sample(row[1] + at), sample(row[2] + at)};
    const float luma = sample(row[0] + at);
    if (frame.pixels == Pixels::gray) return {luma, luma, luma};
    const int64_t chroma = (column >> 1) * frame.chroma_stride;
    return yuv_to_rgb(luma, sample(row[1] + chroma) - 128.0f, sample(row[2] + chroma) - 128.0f, yuv);
}

// (top * (1 - t) + bottom * t - mean) / stddev, with t, mean and stddev folded into the weights and the bias.
template <class F>
FAI_HD F blend(F top, F top_weight, F bottom, F bottom_weight, F bias) {
    return (top * top_weight + bottom * bottom_weight) + bias;
}

// The same where one row is enough.
template <class F>
FAI_HD F blend(F top, F top_weight, F bias) {
    return top * top_weight + bias;
}

}  // namespace fai::math
