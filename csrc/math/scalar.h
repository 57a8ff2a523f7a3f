// The operations that the per-pixel maths asks of its number type, for float. The vector types of
// csrc/cpu/simd.h offer the same names.
#pragma once

#include <cstdint>

#include "csrc/math/hd.h"

namespace fai::math {

FAI_HD float broadcast(float, float value) { return value; }

FAI_HD float select(bool condition, float yes, float no) { return condition ? yes : no; }

FAI_HD float minimum(float a, float b) { return a < b ? a : b; }

FAI_HD float maximum(float a, float b) { return a > b ? a : b; }

// 2**n for whole n in [-126, 127].
FAI_HD float power_of_two(float n) {
    union {
        uint32_t bits;
        float value;
    } result;
    result.bits = static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23;
    return result.value;
}

}  // namespace fai::math
