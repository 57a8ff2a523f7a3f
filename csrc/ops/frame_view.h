// A frame as the kernels see it, from the arrays that it came in.
#pragma once

#include "csrc/core/frame_layout.h"
#include "csrc/cpu/kernels.h"
#include "csrc/math/color.h"
#include "csrc/ops/preprocess.h"

namespace fai::ops {

struct FrameView : FrameLayout {
    cpu::RowFormat format;
    const uint8_t* plane[3] = {nullptr, nullptr, nullptr};
    int window = 1;  // bytes that a packed pixel, a luma or a chroma sample takes
    int chroma_window = 1;
    int shift[3] = {0, 0, 0};  // packed: bits from plane[0] to each channel
    int v_shift = 0;
};

// Only adds up addresses: the planes may lie in a GPU's memory. Throws TypeError, ValueError naming `image`.
FrameView frame_view_of(const PreprocessArguments& arguments);

math::YuvCoefficients yuv_coefficients(const PreprocessArguments& arguments);

// Throws ValueError naming `mean` or `std`.
void check_normalization(const float (&mean)[3], const float (&stddev)[3]);

}  // namespace fai::ops
