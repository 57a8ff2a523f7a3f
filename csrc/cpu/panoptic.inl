// Panoptic results: how many pixels are a query's own, and labels that change hands. Written once and
// compiled per instruction set. Who wins a pixel is in semantic.inl.
//
// Bytes. The logits of the queries that compete are read once (Q' * h * w * itemsize); labels are read and
// written where a segment is none, or fused. Sigmoids and pixels cost only where a boundary passes.

#include <cstring>

#include "csrc/cpu/kernels.h"
#include "csrc/cpu/simd.h"
#include "csrc/math/masks.h"
#include "csrc/math/panoptic.h"

namespace fai::cpu::FAI_ISA {
namespace {

// The pixels of cells [a, b) of a cell row, at most kLanes - 1 of them, that are the query's own.
template <class T, bool of_logits, bool by_logit>
int64_t count_in_cells(const OwnTask& task, int32_t i, int32_t a, int32_t b) {
    const int32_t x1 = task.x.first[a], x2 = task.x.first[b];
    if (x1 == x2) return 0;
    const int32_t loaded = min_i32(task.logits.columns - a, kLanes);
    const auto nodes_of = [&](int32_t row) {
        const T* source = static_cast<const T*>(task.logits.data) + row * task.logits.row_stride + a;
        const F32 logits = load_first(source, loaded);
        const F32 nodes = of_logits ? math::bounded(logits) : math::sigmoid(logits);
        if (loaded == kLanes) return nodes;
        alignas(64) float lane[kLanes];
        store(lane, nodes);
        for (int k = loaded; k < kLanes; ++k) lane[k] = lane[loaded - 1];
        return load(lane);
    };
    const F32 above = nodes_of(i), below = nodes_of(min_i32(i + 1, task.logits.rows - 1));
    const F32 weight = broadcast(task.weight), threshold = broadcast(task.mask_threshold);
    int64_t count = 0;
    for (int32_t x = x1; x < x2; x += kLanes) {
        const uint32_t lanes = low_bits(min_i32(x2 - x, kLanes));
        const I32 index = load(task.x.cell + x) - broadcast_int(a);
        const F32 across = load(task.x.fraction + x);
        const F32 above_left = permute(above, index), above_right = permute(next_lane(above), index);
        const F32 below_left = permute(below, index), below_right = permute(next_lane(below), index);
        for (int32_t y = task.y.first[i]; y < task.y.first[i + 1]; ++y) {
            const F32 down = broadcast(task.y.fraction[y]);
            const F32 left = math::lerp(above_left, below_left, down);
            const F32 right = math::lerp(above_right, below_right, down);
            F32 m = math::lerp(left, right, across);
            if constexpr (of_logits && !by_logit) m = math::sigmoid(m);
            count += __builtin_popcount(bits(math::inside(math::own_worth(m, weight), threshold)) & lanes);
        }
    }
    return count;
}

// Calls use(begin, end) for every run of ones in a word.
template <class Use>
FAI_HD void each_run(uint64_t word, const Use& use) {
    while (word) {
        const int begin = __builtin_ctzll(word);
        const uint64_t beyond = ~(word >> begin);
        const int length = beyond ? __builtin_ctzll(beyond) : 64;
        use(begin, begin + length);
        word = begin + length < 64 ? word >> (begin + length) << (begin + length) : 0;
    }
}

// A cell with all four nodes surely inside counts whole, one with all surely outside not at all, and only the
// pixels of the others are looked at. Which it is follows from the nodes' bits, 64 cells at a time.
template <class T, bool by_logit>
Own count_own_of(const OwnTask& task) {
    const int32_t rows = task.logits.rows, columns = task.logits.columns;
    const int32_t words = columns / 64 + 1, blocks = (columns + kLanes - 1) / kLanes;
    const F32 high = broadcast(task.surely_inside), low = broadcast(task.surely_outside);
    const F32 most = broadcast(kFarLogit), least = broadcast(-kFarLogit);
    uint64_t* const inside[2] = {task.node_bits, task.node_bits + words};
    uint64_t* const outside[2] = {task.node_bits + 2 * words, task.node_bits + 3 * words};
    uint32_t nans = 0;
    const auto look_at = [&](int32_t row) {
        const T* source = static_cast<const T*>(task.logits.data) + row * task.logits.row_stride;
        uint64_t *const in = inside[row & 1], *const out = outside[row & 1];
        std::memset(in, 0, static_cast<size_t>(words) * sizeof *in);
        std::memset(out, 0, static_cast<size_t>(words) * sizeof *out);
        for (int32_t k = 0; k < blocks; ++k) {
            const int n = min_i32(columns - k * kLanes, kLanes);
            const F32 v = load_first(source + k * kLanes, n);
            nans |= bits(is_nan(v));
            uint32_t inside_bits = bits(v >= high) & low_bits(n), outside_bits = bits(v < low) & low_bits(n);
            if constexpr (by_logit) {
                inside_bits &= bits(most >= v);
                outside_bits &= bits(v >= least);
            }
            in[k >> 2] |= static_cast<uint64_t>(inside_bits) << (16 * (k & 3));
            out[k >> 2] |= static_cast<uint64_t>(outside_bits) << (16 * (k & 3));
        }
        // The cell after the last node lies between it and itself.
        for (uint64_t* line : {in, out}) {
            line[columns >> 6] |= (line[(columns - 1) >> 6] >> ((columns - 1) & 63) & 1) << (columns & 63);
        }
    };
    const auto both_ends = [&](const uint64_t* line, int32_t k) {
        return line[k] & ((line[k] >> 1) | (k + 1 < words ? line[k + 1] << 63 : 0));
    };

    int64_t area = 0;
    look_at(0);
    for (int32_t i = 0; i < rows; ++i) {
        if (i + 1 < rows) look_at(i + 1);
        const int32_t here = i & 1, below = min_i32(i + 1, rows - 1) & 1;
        const int64_t height = task.y.first[i + 1] - task.y.first[i];
        if (height == 0) continue;
        for (int32_t k = 0; 64 * k < columns; ++k) {
            const uint64_t full = both_ends(inside[here], k) & both_ends(inside[below], k);
            const uint64_t empty = both_ends(outside[here], k) & both_ends(outside[below], k);
            const int32_t cells = columns - 64 * k;
            const uint64_t valid = cells < 64 ? (uint64_t{1} << cells) - 1 : ~uint64_t{0};
            each_run(full & valid, [&](int32_t begin, int32_t end) {
                area += height * (task.x.first[64 * k + end] - task.x.first[64 * k + begin]);
            });
            each_run(~(full | empty) & valid, [&](int32_t begin, int32_t end) {
                for (; begin < end; begin += kLanes - 1) {
                    const int32_t a = 64 * k + begin, b = 64 * k + min_i32(begin + kLanes - 1, end);
                    area += by_logit         ? count_in_cells<T, true, true>(task, i, a, b)
                            : task.of_logits ? count_in_cells<T, true, false>(task, i, a, b)
                                             : count_in_cells<T, false, false>(task, i, a, b);
                }
            });
        }
    }
    return {area, nans != 0};
}

template <class T>
Own count_own(const OwnTask& task) {
    return task.by_logit ? count_own_of<T, true>(task) : count_own_of<T, false>(task);
}

template <class L>
FAI_HD void relabel_row(L* labels, int64_t count, L from, L to) {
    for (int64_t x = 0; x < count; ++x) labels[x] = labels[x] == from ? to : labels[x];
}

void relabel(void* labels, int64_t count, bool wide, int32_t from, int32_t to) {
    if (wide) {
        relabel_row(static_cast<uint16_t*>(labels), count, static_cast<uint16_t>(from),
                    static_cast<uint16_t>(to));
    } else {
        relabel_row(static_cast<uint8_t*>(labels), count, static_cast<uint8_t>(from),
                    static_cast<uint8_t>(to));
    }
}

}  // namespace
}  // namespace fai::cpu::FAI_ISA
