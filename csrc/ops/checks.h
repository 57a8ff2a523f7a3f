// Checks that several ops share.
#pragma once

#include <string>

#include "csrc/core/error.h"
#include "csrc/core/types.h"

namespace fai::ops {

inline const char* name_of(DType dtype) {
    return dtype == DType::u8 ? "uint8" : dtype == DType::f16 ? "float16" : "float32";
}

inline std::string shape_of(const View& view) {
    std::string text = "(";
    for (int i = 0; i < view.ndim; ++i) text += message(i ? ", " : "", view.shape[i]);
    return text + (view.ndim == 1 ? ",)" : ")");
}

// Throws unless 1 <= sides <= kMaxSide and height * width <= kMaxPixels.
inline void check_sides(const char* argument, int64_t height, int64_t width) {
    if (height < 1 || width < 1 || height > kMaxSide || width > kMaxSide || height * width > kMaxPixels) {
        throw ValueError(message(argument, ": got ", height, " x ", width, ", expected sides of 1 to ",
                                 kMaxSide, " and at most ", kMaxPixels, " pixels"));
    }
}

// Throws unless both are from 0 to kMaxSide.
inline void check_offset(const char* argument, int64_t top, int64_t left) {
    if (top < 0 || left < 0 || top > kMaxSide || left > kMaxSide) {
        throw ValueError(
            message(argument, ": got a part at (", top, ", ", left, "), expected 0 to ", kMaxSide));
    }
}

}  // namespace fai::ops
