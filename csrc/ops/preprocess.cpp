#include "csrc/ops/preprocess.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "csrc/core/error.h"
#include "csrc/core/scratch.h"
#include "csrc/cpu/kernels.h"
#include "csrc/math/pixel.h"
#include "csrc/math/sampling.h"
#include "csrc/ops/checks.h"
#include "csrc/ops/frame_view.h"

namespace fai::ops {
namespace {

using cpu::RowFormat;
using cpu::RowPlan;

cpu::SourceRow row_at(const FrameView& frame, int32_t row) {
    cpu::SourceRow at;
    for (int c = 0; c < 3; ++c) at.plane[c] = frame.plane[c] + math::row_offset(frame, c, row);
    return at;
}

struct PreprocessScratch {
    Scratch<int32_t> offsets;
    Scratch<float> floats;
};

// Byte offsets of the taps along a row, and the columns that may load four bytes there.
class ColumnTable {
  public:
    // Of columns [first, first + columns) of the frame stretched to `whole` of them.
    ColumnTable(const FrameView& frame, int32_t whole, int32_t first, int32_t columns,
                PreprocessScratch& scratch) {
        int32_t* left = scratch.offsets.get(4 * static_cast<size_t>(columns));
        int32_t* right = left + columns;
        int32_t* chroma_left = right + columns;
        int32_t* chroma_right = chroma_left + columns;
        const math::Axis axis = math::Axis::stretch(frame.size.width, whole);
        const int32_t last = frame.size.width - 1;
        const size_t row_values = static_cast<size_t>(3 * columns);
        float* fraction = scratch.floats.get(static_cast<size_t>(columns) + 2 * row_values);
        row_planes[0] = fraction + columns;
        row_planes[1] = row_planes[0] + row_values;
        bool two_taps = false;
        for (int32_t x = 0; x < columns; ++x) {
            const Tap tap = math::tap_as_torch(axis, first + x);
            const int32_t next = std::min(tap.index + 1, last);
            fraction[x] = tap.fraction;
            two_taps |= tap.fraction != 0.0f;
            left[x] = static_cast<int32_t>(tap.index * frame.pixel_stride);
            right[x] = static_cast<int32_t>(next * frame.pixel_stride);
            chroma_left[x] = static_cast<int32_t>((tap.index >> 1) * frame.chroma_stride);
            chroma_right[x] = static_cast<int32_t>((next >> 1) * frame.chroma_stride);
        }
        plan.format = frame.format;
        plan.columns = columns;
        plan.two_taps = two_taps;
        plan.fraction = fraction;
        plan.left = left;
        plan.right = right;
        plan.chroma_left = chroma_left;
        plan.chroma_right = chroma_right;
        std::copy(std::begin(frame.shift), std::end(frame.shift), plan.shift);
        plan.v_shift = frame.v_shift;
        if (frame.format == RowFormat::packed && two_taps &&
            (frame.pixel_stride == 3 || frame.pixel_stride == 4)) {
            plan.pair_shift = static_cast<int32_t>(8 * frame.pixel_stride);
        }
        const int32_t reach = plan.pair_shift ? 8 : 4;

        // The last readable byte of a row, and of a chroma row, seen from its first pixel.
        const int64_t end = std::max<int64_t>(0, last * frame.pixel_stride) + frame.window;
        const int64_t chroma_end =
            std::max<int64_t>(0, (last >> 1) * frame.chroma_stride) + frame.chroma_window;
        const bool chroma = frame.format == RowFormat::yuv;
        const auto safe = [&](int32_t x) {
            return (plan.pair_shift ? left[x] : std::max(left[x], right[x])) + reach <= end &&
                   (!chroma || std::max(chroma_left[x], chroma_right[x]) + 4 <= chroma_end);
        };
        // Offsets rise or fall along the row, so the unsafe columns are at one end of it.
        plan.safe_begin = 0;
        plan.safe_end = columns;
        while (plan.safe_begin < columns && !safe(plan.safe_begin)) ++plan.safe_begin;
        while (plan.safe_end > plan.safe_begin && !safe(plan.safe_end - 1)) --plan.safe_end;
    }

    RowPlan plan{};
    float* row_planes[2];  // room for two resampled frame rows
};

// As many values as blend_rows takes at once, of one channel.
constexpr int32_t kFillValues = 1024;

// Copies of `values` (kFillValues of them) to [begin, end).
template <class T>
void fill(const T* values, T* begin, const T* end) {
    while (begin < end) {
        const auto count = std::min<int64_t>(end - begin, kFillValues);
        std::memcpy(begin, values, static_cast<size_t>(count) * sizeof(T));
        begin += count;
    }
}

// `values`: kFillValues of each channel.
template <class T>
void fill_padding(const Placement& placement, Size size, const T* values, T* out) {
    const int64_t row = size.width;
    const int64_t left = placement.left, right = left + placement.content.width;
    const int32_t bottom = placement.top + placement.content.height;
    for (int c = 0; c < 3; ++c, out += row * size.height, values += kFillValues) {
        fill(values, out, out + row * placement.top);
        fill(values, out + row * bottom, out + row * size.height);
        if (left == 0 && right == row) continue;
        for (int32_t y = placement.top; y < bottom; ++y) {
            fill(values, out + row * y, out + row * y + left);
            fill(values, out + row * y + right, out + row * (y + 1));
        }
    }
}

void check_part(const PreprocessArguments& arguments) {
    const Size &whole = arguments.whole, &part = arguments.size;
    check_sides("whole", whole.height, whole.width);
    const int64_t bottom = int64_t{arguments.top} + part.height, right = int64_t{arguments.left} + part.width;
    if (arguments.resize != Resize::stretch || arguments.top < 0 || arguments.left < 0 ||
        bottom > whole.height || right > whole.width) {
        throw ValueError(message("whole: got ", part.height, " x ", part.width, " at (", arguments.top, ", ",
                                 arguments.left, "), expected it inside a frame stretched to ", whole.height,
                                 " x ", whole.width));
    }
}

}  // namespace

Size frame_size(const PreprocessArguments& arguments) { return frame_view_of(arguments).size; }

float padding_of(Resize resize, float mean, float stddev) {
    const float scale = 1.0f / stddev;
    // What a black pixel becomes, but never -0, which halves are rounded from otherwise.
    return resize == Resize::pad ? math::blend(0.0f, scale, -mean * scale) + 0.0f : 0.0f;
}

Placement place(Size frame, Size tensor, Resize resize) {
    if (resize == Resize::stretch) return {0, 0, tensor};
    if (resize == Resize::pad) {
        // The side that fills the tensor, and the other.
        const bool wide = static_cast<int64_t>(tensor.width) * frame.height <=
                          static_cast<int64_t>(tensor.height) * frame.width;
        const int32_t along = wide ? frame.width : frame.height, across = wide ? frame.height : frame.width;
        const int32_t limit = wide ? tensor.width : tensor.height;
        const int32_t other_limit = wide ? tensor.height : tensor.width;
        const double exact = static_cast<double>(limit) * across / along;
        const double rounded = std::nearbyint(exact);
        // A frame whose side is right is left as it is, however long the other side.
        const double filled = rounded == across ? along : std::trunc(exact * along / across);
        const auto fit = [](double side, int32_t most) {
            return static_cast<int32_t>(std::clamp(side, 1.0, static_cast<double>(most)));
        };
        const int32_t a = fit(filled, limit), b = fit(rounded, other_limit);
        return {0, 0, wide ? Size{b, a} : Size{a, b}};
    }
    const double ratio = std::min(static_cast<double>(tensor.height) / frame.height,
                                  static_cast<double>(tensor.width) / frame.width);
    const auto fit = [ratio](int32_t side, int32_t limit) {
        return std::clamp(static_cast<int32_t>(std::nearbyint(side * ratio)), 1, limit);
    };
    const Size content{fit(frame.height, tensor.height), fit(frame.width, tensor.width)};
    return {(tensor.height - content.height) / 2, (tensor.width - content.width) / 2, content};
}

Placement preprocess(const PreprocessArguments& arguments, DType out_dtype, void* out) {
    check_sides("size", arguments.size.height, arguments.size.width);
    const FrameView frame = frame_view_of(arguments);
    check_normalization(arguments.mean, arguments.stddev);
    const cpu::Kernels& kernels = cpu::kernels();
    const Placement placement = place(frame.size, arguments.size, arguments.resize);
    const Size content = placement.content;
    const bool is_part = arguments.whole != Size{};
    if (is_part) check_part(arguments);
    const Size whole = is_part ? arguments.whole : content;
    const size_t item = item_size(out_dtype);
    uint8_t* const out_bytes = static_cast<uint8_t*>(out);
    if (content != arguments.size) {
        alignas(64) float values[3 * kFillValues];
        alignas(64) uint16_t halves[3 * kFillValues];
        for (int c = 0; c < 3; ++c) {
            float* const one = values + c * kFillValues;
            std::fill_n(one, kFillValues,
                        padding_of(arguments.resize, arguments.mean[c], arguments.stddev[c]));
            // Rounded to halves as the content is.
            if (out_dtype == DType::f16) {
                kernels.blend_rows({one, one, 1.0f, 0.0f, 0.0f, kFillValues, halves + c * kFillValues, true});
            }
        }
        if (out_dtype == DType::f16) {
            fill_padding<uint16_t>(placement, arguments.size, halves, reinterpret_cast<uint16_t*>(out_bytes));
        } else {
            fill_padding<float>(placement, arguments.size, values, reinterpret_cast<float*>(out_bytes));
        }
    }

    thread_local PreprocessScratch scratch;
    ColumnTable table(frame, whole.width, arguments.left, content.width, scratch);
    table.plan.yuv = yuv_coefficients(arguments);
    int32_t held[2] = {-1, -1};
    // Loads a frame row into the slot that `other` does not occupy, unless one has it already.
    const auto row_of = [&](int32_t row, int32_t other) -> const float* {
        const int have = held[0] == row ? 0 : held[1] == row ? 1 : -1;
        if (have >= 0) return table.row_planes[have];
        const int slot = held[0] == other ? 1 : 0;
        const cpu::SourceRow at = row_at(frame, row);
        kernels.load_row(table.plan, at, table.row_planes[slot]);
        held[slot] = row;
        return table.row_planes[slot];
    };

    const math::Axis axis = math::Axis::stretch(frame.size.height, whole.height);
    const bool gray = frame.format == RowFormat::gray;
    const int64_t plane_values = static_cast<int64_t>(arguments.size.height) * arguments.size.width;
    for (int32_t y = 0; y < content.height; ++y) {
        const Tap tap = math::tap_as_torch(axis, arguments.top + y);
        const int32_t next = std::min(tap.index + 1, frame.size.height - 1);
        const bool one_row = tap.fraction == 0.0f || next == tap.index;
        const float* top = row_of(tap.index, next);
        const float* bottom = one_row ? top : row_of(next, tap.index);
        const int64_t at = static_cast<int64_t>(y + placement.top) * arguments.size.width + placement.left;
        for (int c = 0; c < 3; ++c) {
            const int64_t plane = gray ? 0 : static_cast<int64_t>(c) * content.width;
            const float scale = 1.0f / arguments.stddev[c];
            kernels.blend_rows({top + plane, bottom + plane, one_row ? scale : (1.0f - tap.fraction) * scale,
                                tap.fraction * scale, -arguments.mean[c] * scale, content.width,
                                out_bytes + (c * plane_values + at) * static_cast<int64_t>(item),
                                out_dtype == DType::f16});
        }
    }
    return placement;
}

}  // namespace fai::ops
