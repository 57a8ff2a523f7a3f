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
    ColumnTable(const FrameView& frame, int32_t columns, PreprocessScratch& scratch) {
        int32_t* left = scratch.offsets.get(4 * static_cast<size_t>(columns));
        int32_t* right = left + columns;
        int32_t* chroma_left = right + columns;
        int32_t* chroma_right = chroma_left + columns;
        const math::Axis axis = math::Axis::stretch(frame.size.width, columns);
        const int32_t last = frame.size.width - 1;
        const size_t row_values = static_cast<size_t>(3 * columns);
        float* fraction = scratch.floats.get(static_cast<size_t>(columns) + 2 * row_values);
        row_planes[0] = fraction + columns;
        row_planes[1] = row_planes[0] + row_values;
        bool two_taps = false;
        for (int32_t x = 0; x < columns; ++x) {
            const Tap tap = math::tap_as_torch(axis, x);
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

void fill_padding(const Placement& placement, Size size, size_t item, uint8_t* out) {
    const int64_t row = static_cast<int64_t>(size.width) * item;
    const int64_t left = placement.left * static_cast<int64_t>(item);
    const int64_t content = placement.content.width * static_cast<int64_t>(item);
    const int64_t right = row - left - content;
    for (int c = 0; c < 3; ++c, out += row * size.height) {
        std::memset(out, 0, static_cast<size_t>(row * placement.top));
        const int32_t bottom = placement.top + placement.content.height;
        std::memset(out + row * bottom, 0, static_cast<size_t>(row * (size.height - bottom)));
        if (left == 0 && right == 0) continue;
        for (int32_t y = placement.top; y < bottom; ++y) {
            std::memset(out + row * y, 0, static_cast<size_t>(left));
            std::memset(out + row * y + left + content, 0, static_cast<size_t>(right));
        }
    }
}

}  // namespace

Size frame_size(const PreprocessArguments& arguments) { return frame_view_of(arguments).size; }

Placement place(Size frame, Size tensor, bool letterbox) {
    if (!letterbox) return {0, 0, tensor};
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
    const Placement placement = place(frame.size, arguments.size, arguments.letterbox);
    const Size content = placement.content;
    const size_t item = item_size(out_dtype);
    uint8_t* const out_bytes = static_cast<uint8_t*>(out);
    if (content != arguments.size) fill_padding(placement, arguments.size, item, out_bytes);

    thread_local PreprocessScratch scratch;
    ColumnTable table(frame, content.width, scratch);
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

    const math::Axis axis = math::Axis::stretch(frame.size.height, content.height);
    const bool gray = frame.format == RowFormat::gray;
    const int64_t plane_values = static_cast<int64_t>(arguments.size.height) * arguments.size.width;
    for (int32_t y = 0; y < content.height; ++y) {
        const Tap tap = math::tap_as_torch(axis, y);
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
