// Preprocessing, written once and compiled per instruction set: a source row is resampled horizontally into
// float planes, two such rows are blended and normalized into an output row.
//
// Bytes: the source rows that an output row touches are read once (each row's planes stay in L1 between the
// output rows that share it), the output is written once: H_src_used * W * C + 3 * h * w * itemsize.

#include <cstring>

#include "csrc/cpu/kernels.h"
#include "csrc/cpu/simd.h"
#include "csrc/math/color.h"
#include "csrc/math/pixel.h"
#include "csrc/math/sampling.h"

namespace fai::cpu::FAI_ISA {
namespace {

// Reads one tap of one column, byte by byte, or of sixteen, four bytes each.
struct OneColumn {
    using Number = float;
    static constexpr int kStep = 1;
    static FAI_HD float channel(const uint8_t* plane, const int32_t* offset, int shift) {
        return static_cast<float>(plane[*offset + shift / 8]);
    }
    static FAI_HD void read(const uint8_t* plane, const int32_t* offset, const int* shift, int n,
                            float* out) {
        for (int c = 0; c < n; ++c) out[c] = channel(plane, offset, shift[c]);
    }
    static FAI_HD float load_fraction(const float* p) { return *p; }
    static FAI_HD void put(float* p, float v) { *p = v; }
};

struct SixteenColumns {
    using Number = F32;
    static constexpr int kStep = kLanes;
    static FAI_HD void read(const uint8_t* plane, const int32_t* offset, const int* shift, int n, F32* out) {
        const I32 word = gather_bytes(plane, offset);
        for (int c = 0; c < n; ++c) out[c] = to_float(shift_right(word, shift[c]) & broadcast_int(255));
    }
    static FAI_HD F32 load_fraction(const float* p) { return load(p); }
    static FAI_HD void put(float* p, const F32& v) { store(p, v); }
};

template <RowFormat format, class Columns>
FAI_HD void read_tap(const RowPlan& plan, const SourceRow& row, const int32_t* luma, const int32_t* chroma,
                     typename Columns::Number* out) {
    using F = typename Columns::Number;
    constexpr int kNone[1] = {0};
    if constexpr (format == RowFormat::packed) {
        Columns::read(row.plane[0], luma, plan.shift, 3, out);
    } else if constexpr (format == RowFormat::planar) {
        for (int c = 0; c < 3; ++c) Columns::read(row.plane[c], luma, kNone, 1, out + c);
    } else if constexpr (format == RowFormat::gray) {
        Columns::read(row.plane[0], luma, kNone, 1, out);
    } else {
        F y, uv[2];
        Columns::read(row.plane[0], luma, kNone, 1, &y);
        if (plan.v_shift) {
            const int shift[2] = {0, plan.v_shift};
            Columns::read(row.plane[1], chroma, shift, 2, uv);
        } else {
            Columns::read(row.plane[1], chroma, kNone, 1, uv);
            Columns::read(row.plane[2], chroma, kNone, 1, uv + 1);
        }
        using math::broadcast;
        const F middle = broadcast(y, 128.0f);
        const auto rgb = math::yuv_to_rgb(y, uv[0] - middle, uv[1] - middle, plan.yuv);
        out[0] = rgb.r;
        out[1] = rgb.g;
        out[2] = rgb.b;
    }
}

template <RowFormat format, bool two_taps, class Columns>
FAI_HD void load_columns(const RowPlan& plan, const SourceRow& row, int32_t x, float* out) {
    using F = typename Columns::Number;
    constexpr int kChannels = format == RowFormat::gray ? 1 : 3;
    F left[3], right[3];
    read_tap<format, Columns>(plan, row, plan.left + x, plan.chroma_left + x, left);
    if constexpr (two_taps) {
        const F fraction = Columns::load_fraction(plan.fraction + x);
        read_tap<format, Columns>(plan, row, plan.right + x, plan.chroma_right + x, right);
        for (int c = 0; c < kChannels; ++c) left[c] = math::lerp(left[c], right[c], fraction);
    }
    for (int c = 0; c < kChannels; ++c)
        Columns::put(out + static_cast<int64_t>(c) * plan.columns + x, left[c]);
}

// Both taps of packed pixels with one load per column.
FAI_HD void load_pairs(const RowPlan& plan, const SourceRow& row, int32_t x, float* out) {
    I32 low, high;
    gather_pairs(row.plane[0], plan.left + x, low, high);
    const F32 fraction = load(plan.fraction + x);
    const I32 byte = broadcast_int(255);
    for (int c = 0; c < 3; ++c) {
        const int next = plan.shift[c] + plan.pair_shift;
        const F32 a = to_float(shift_right(low, plan.shift[c]) & byte);
        const F32 b = to_float(shift_right(next < 32 ? low : high, next & 31) & byte);
        store(out + static_cast<int64_t>(c) * plan.columns + x, math::lerp(a, b, fraction));
    }
}

template <RowFormat format, bool two_taps>
void load_row_of(const RowPlan& plan, const SourceRow& row, float* out) {
    int32_t x = 0;
    for (; x < plan.safe_begin; ++x) load_columns<format, two_taps, OneColumn>(plan, row, x, out);
    if constexpr (format == RowFormat::packed && two_taps) {
        if (plan.pair_shift) {
            for (; x + kLanes <= plan.safe_end; x += kLanes) load_pairs(plan, row, x, out);
        }
    }
    for (; x + kLanes <= plan.safe_end; x += kLanes) {
        load_columns<format, two_taps, SixteenColumns>(plan, row, x, out);
    }
    for (; x < plan.columns; ++x) load_columns<format, two_taps, OneColumn>(plan, row, x, out);
}

template <RowFormat format>
void load_row_taps(const RowPlan& plan, const SourceRow& row, float* out) {
    if (plan.two_taps) {
        load_row_of<format, true>(plan, row, out);
    } else {
        load_row_of<format, false>(plan, row, out);
    }
}

void load_row(const RowPlan& plan, const SourceRow& row, float* out) {
    switch (plan.format) {
        case RowFormat::packed:
            return load_row_taps<RowFormat::packed>(plan, row, out);
        case RowFormat::planar:
            return load_row_taps<RowFormat::planar>(plan, row, out);
        case RowFormat::gray:
            return load_row_taps<RowFormat::gray>(plan, row, out);
        case RowFormat::yuv:
            return load_row_taps<RowFormat::yuv>(plan, row, out);
    }
}

template <class O>
FAI_HD void blend_rows_to(const BlendTask& task, O* out) {
    const F32 top_weight = broadcast(task.top_weight), bottom_weight = broadcast(task.bottom_weight);
    const F32 bias = broadcast(task.bias);
    const bool one_row = task.top == task.bottom;
    for (int32_t x = 0; x < task.columns; x += kLanes) {
        const int n = task.columns - x < kLanes ? task.columns - x : kLanes;
        const F32 top = load_first(task.top + x, n);
        const F32 v = one_row
                          ? math::blend(top, top_weight, bias)
                          : math::blend(top, top_weight, load_first(task.bottom + x, n), bottom_weight, bias);
        store_first(out + x, v, n);
    }
}

void blend_rows(const BlendTask& task) {
    if (task.half) {
        blend_rows_to(task, static_cast<uint16_t*>(task.out));
    } else {
        blend_rows_to(task, static_cast<float*>(task.out));
    }
}

}  // namespace
}  // namespace fai::cpu::FAI_ISA
