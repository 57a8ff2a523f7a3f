// Sizes, dtypes and borrowed arrays.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fai {

// Longest side of a frame or of a returned mask, in pixels; and the most pixels either may have.
inline constexpr int64_t kMaxSide = 32767;
inline constexpr int64_t kMaxPixels = int64_t{1} << 28;

struct Size {
    int32_t height = 0;
    int32_t width = 0;
    bool operator==(const Size&) const = default;
};

enum class DType : uint8_t { u8, f16, f32 };

inline constexpr size_t item_size(DType dtype) {
    return dtype == DType::u8 ? 1 : dtype == DType::f16 ? 2 : 4;
}

// Borrowed memory of up to four dimensions; strides in bytes, of any sign. The caller keeps the owner alive.
struct View {
    const void* data = nullptr;
    DType dtype = DType::u8;
    int ndim = 0;
    int64_t shape[4] = {0, 0, 0, 0};
    int64_t strides[4] = {0, 0, 0, 0};
};

}  // namespace fai
