// Query-mask postprocessing, written once and compiled per instruction set: class scores, and instances
// (semantic.inl: the contest for pixels).
//
// Bytes. The logits of the queries whose class score passes are read once (Q' * h * w * itemsize), the boxes'
// bits are written. One sigmoid runs per node that is used; pixels cost only where a boundary passes.

#include <cmath>
#include <cstring>
#include <limits>

#include "csrc/cpu/kernels.h"
#include "csrc/cpu/simd.h"
#include "csrc/math/masks.h"
#include "csrc/math/rows.h"

namespace fai::cpu::FAI_ISA {
namespace {

// ---- class scores (step 1)

// The softmax's denominator, of logits of which none is NaN.
template <class T>
FAI_HD float softmax_total(const T* logits, int32_t count, float largest) {
    F32 total = broadcast(0.0f);
    const F32 floor = broadcast(-87.0f);
    for (int32_t k = 0; k < count; k += kLanes) {
        const int n = min_i32(count - k, kLanes);
        const F32 x = load_first(logits + k, n) - broadcast(largest);
        const F32 e = math::exponential(maximum(x, floor));
        total = total + select(mask_of(low_bits(n)) & (x >= floor), e, broadcast(0.0f));
    }
    return sum(total);
}

template <class T>
void class_score(const void* data, int32_t count, bool softmax, double* score, int64_t* class_id,
                 bool* has_class) {
    const T* logits = static_cast<const T*>(data);
    const int32_t classes = softmax ? count - 1 : count;
    constexpr float kLowest = -std::numeric_limits<float>::infinity();
    constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

    F32 top = broadcast(kLowest);  // over the classes
    bool nan = false;
    for (int32_t k = 0; k < classes; k += kLanes) {
        const int n = min_i32(classes - k, kLanes);
        const F32 v = load_first(logits + k, n);
        nan |= any(is_nan(v));
        top = maximum(top, select(mask_of(low_bits(n)), v, broadcast(kLowest)));
    }
    alignas(64) float lane[kLanes];
    store(lane, top);
    float best = kLowest;
    for (float value : lane) best = value > best ? value : best;

    *class_id = 0;
    for (int32_t k = 0; k < classes; k += kLanes) {
        const int n = min_i32(classes - k, kLanes);
        const uint32_t hits = bits(load_first(logits + k, n) >= broadcast(best)) & low_bits(n);
        if (hits) {
            *class_id = k + __builtin_ctz(hits);
            break;
        }
    }
    *has_class = true;
    if (!softmax) {
        *score = nan ? kNan : math::sigmoid_score(best);
        return;
    }
    alignas(64) float last[kLanes];
    store(last, load_first(logits + classes, 1));
    const float largest = last[0] > best ? last[0] : best;
    if (nan || !(last[0] == last[0]) || largest == kLowest || largest == -kLowest) {
        *score = kNan;
        return;
    }
    *has_class = best >= last[0];
    *score = math::softmax_score(best, largest, softmax_total(logits, count, largest));
}

template <class T>
int32_t class_scores(const void* data, int32_t count, bool softmax, double threshold, ClassScore* out) {
    double best = 0.0;
    int64_t best_id = 0;
    bool has_class = true;
    class_score<T>(data, count, softmax, &best, &best_id, &has_class);
    if (!math::above(best, threshold)) return 0;  // as where it is NaN
    const T* logits = static_cast<const T*>(data);
    const int32_t classes = softmax ? count - 1 : count;
    const auto value_of = [&](int32_t k) {
        alignas(64) float lane[kLanes];
        store(lane, load_first(logits + k, 1));
        return lane[0];
    };
    const float last = value_of(count - 1), top = value_of(static_cast<int32_t>(best_id));
    const float largest = softmax && last > top ? last : top;
    const float total = softmax ? softmax_total(logits, count, largest) : 1.0f;
    // Most classes are so far below that no exponential need tell.
    double floor = -std::numeric_limits<double>::infinity();
    if (threshold > 0.0 && softmax) floor = largest + std::log(threshold * total) - 1e-3;
    if (threshold > 0.0 && !softmax && threshold < 1.0)
        floor = std::log(threshold / (1.0 - threshold)) - 1e-3;
    int32_t found = 0;
    for (int32_t k = 0; k < classes; ++k) {
        const float logit = value_of(k);
        if (logit < floor) continue;
        const double score =
            softmax ? math::softmax_score(logit, largest, total) : math::sigmoid_score(logit);
        if (math::above(score, threshold)) out[found++] = {k, score};
    }
    return found;
}

// ---- instance masks

// The nodes whose logit is at least `level`, and whether any is NaN.
template <class T>
Extent find_extent(const Plane& plane, float level) {
    const T* data = static_cast<const T*>(plane.data);
    const int blocks = (plane.columns + kLanes - 1) / kLanes;
    uint32_t column_hits[(kMaxSide + kLanes) / kLanes] = {};
    Extent extent{plane.rows, 0, 0, 0, false};
    uint32_t nans = 0;
    const F32 wanted = broadcast(level);
    for (int32_t y = 0; y < plane.rows; ++y) {
        const T* row = data + y * plane.row_stride;
        uint32_t row_hits = 0;
        for (int k = 0; k < blocks; ++k) {
            const int n = min_i32(plane.columns - k * kLanes, kLanes);
            const F32 v = load_first(row + k * kLanes, n);
            const uint32_t hits = bits(v >= wanted) & low_bits(n);
            nans |= bits(is_nan(v));
            column_hits[k] |= hits;
            row_hits |= hits;
        }
        if (row_hits) {
            extent.row_begin = min_i32(extent.row_begin, y);
            extent.row_end = y + 1;
        }
    }
    extent.has_nan = nans != 0;
    if (extent.row_end == 0) return {0, 0, 0, 0, extent.has_nan};
    extent.column_begin = plane.columns;
    for (int k = 0; k < blocks; ++k) {
        if (!column_hits[k]) continue;
        extent.column_begin = min_i32(extent.column_begin, k * kLanes + __builtin_ctz(column_hits[k]));
        extent.column_end = k * kLanes + 32 - __builtin_clz(column_hits[k]);
    }
    return extent;
}

template <class T>
NodeSum sum_nodes(const Plane& plane, const Extent& extent, float mask_threshold) {
    const T* data = static_cast<const T*>(plane.data);
    NodeSum found{0, 0.0};
    for (int32_t y = extent.row_begin; y < extent.row_end; ++y) {
        const T* row = data + y * plane.row_stride;
        F32 total = broadcast(0.0f);
        for (int32_t x = extent.column_begin; x < extent.column_end; x += kLanes) {
            const int n = min_i32(extent.column_end - x, kLanes);
            const F32 m = math::sigmoid(load_first(row + x, n));
            const auto hits = math::inside(m, broadcast(mask_threshold)) & mask_of(low_bits(n));
            found.nodes += __builtin_popcount(bits(hits));
            total = total + select(hits, m, broadcast(0.0f));
        }
        found.sum += sum(total);
    }
    return found;
}

// The sum over pixels [x1, x2) of a row of the sigmoids of what lies between these logits, the first of which
// is that of node `left`. The vectors that are read may end beyond the last.
FAI_HD double sum_of_sigmoids(const PixelAxis& axis, const float* value, int32_t left, int32_t x1,
                              int32_t x2) {
    double total = 0.0;
    for (int32_t x = x1; x < x2; x += kLanes) {
        const int n = min_i32(x2 - x, kLanes);
        const int32_t base = axis.cell[x];
        F32 a, b;
        if (axis.cell[x + n - 1] - base < kLanes) {
            const I32 index = (load(axis.cell + x) - broadcast_int(base)) & broadcast_int(kLanes - 1);
            a = permute(load(value + (base - left)), index);
            b = permute(load(value + (base - left) + 1), index);
        } else {
            alignas(64) float lane[2][kLanes] = {};
            for (int i = 0; i < n; ++i) {
                lane[0][i] = value[axis.cell[x + i] - left];
                lane[1][i] = value[axis.cell[x + i] - left + 1];
            }
            a = load(lane[0]);
            b = load(lane[1]);
        }
        const F32 m = math::sigmoid(math::lerp(a, b, load(axis.fraction + x)));
        total += sum(select(mask_of(low_bits(n)), m, broadcast(0.0f)));
    }
    return total;
}

// Sets the bits [begin, end) of a row of words.
FAI_HD void fill_bits(uint64_t* words, int32_t begin, int32_t end) {
    const int32_t first = begin >> 6, last = (end - 1) >> 6;
    const uint64_t head = ~uint64_t{0} << (begin & 63);
    const uint64_t tail = ~uint64_t{0} >> (63 - ((end - 1) & 63));
    if (first == last) {
        words[first] |= head & tail;
        return;
    }
    words[first] |= head;
    for (int32_t k = first + 1; k < last; ++k) words[k] = ~uint64_t{0};
    words[last] |= tail;
}

// An output row of a mask is piecewise linear between the nodes, so it is a list of runs whose ends lie in
// cells with one node inside and one outside: only the pixels of those cells are looked at.
template <class T, bool of_logits>
Region draw_instance_of(const InstanceTask& task) {
    const T* logits = static_cast<const T*>(task.logits.data);
    const int32_t rows = task.logits.rows, columns = task.logits.columns;
    // One node more on each side: the mask may reach into the cells around its nodes.
    const int32_t left = max_i32(task.extent.column_begin - 1, 0);
    const int32_t right = min_i32(task.extent.column_end, columns - 1);  // last node
    const int32_t top = max_i32(task.extent.row_begin - 1, 0);
    const int32_t bottom = min_i32(task.extent.row_end, rows - 1);
    const int32_t loaded = right - left + 1;
    const bool reaches_edge =
        right == columns - 1;  // then the clamped cell after the last node is ours as well
    const int32_t cells = loaded - 1 + reaches_edge;
    const int32_t blocks = (cells + 1 + kLanes - 1) / kLanes;
    const int32_t word_count = (cells + 1 + 63) / 64;

    const int64_t stride = columns + 2 * kPadding;
    float* node_row[2] = {task.scratch, task.scratch + stride};
    int32_t held[2] = {-1, -1};
    float* value = task.scratch + 2 * stride;
    uint64_t* node_bits = task.node_bits;

    const auto nodes_of = [&](int32_t row) -> const float* {
        const int slot = row & 1;
        if (held[slot] != row) {
            held[slot] = row;
            const T* source = logits + row * task.logits.row_stride + left;
            for (int32_t k = 0; k < blocks; ++k) {
                const int n = max_i32(min_i32(loaded - k * kLanes, kLanes), 0);
                const F32 logit = load_first(source + k * kLanes, n);
                store(node_row[slot] + k * kLanes, of_logits ? math::bounded(logit) : math::sigmoid(logit));
            }
            if (reaches_edge) node_row[slot][loaded] = node_row[slot][loaded - 1];
        }
        return node_row[slot];
    };

    Region region = Region::empty();
    const F32 threshold = broadcast(task.mask_threshold);
    F32 full_sum = broadcast(0.0f);
    double sum_of_rows = 0.0;
    int32_t cell_row = -1;
    const int32_t begin = task.y.first[top];
    const int32_t end = task.y.first[bottom + (bottom == rows - 1)];
    for (int32_t y = begin; y < end; ++y) {
        uint64_t* words = task.words + (y - task.row_begin) * task.word_stride;
        std::memset(words, 0, static_cast<size_t>(task.word_stride) * sizeof *words);
        const int32_t i = task.y.cell[y];
        if (i != cell_row) {
            // Flushed once per cell row, so that the float lanes never grow large.
            sum_of_rows += sum(full_sum);
            full_sum = broadcast(0.0f);
            cell_row = i;
        }
        const float* above = nodes_of(i);
        const float* below = nodes_of(min_i32(i + 1, rows - 1));
        const F32 fraction = broadcast(task.y.fraction[y]);
        std::memset(node_bits, 0, static_cast<size_t>(word_count) * sizeof *node_bits);
        uint32_t seen = 0;
        for (int32_t k = 0; k < blocks; ++k) {
            const F32 v = math::lerp(load(above + k * kLanes), load(below + k * kLanes), fraction);
            store(value + k * kLanes, v);
            const uint32_t hits =
                bits(math::inside(v, threshold)) & low_bits(min_i32(cells + 1 - k * kLanes, kLanes));
            node_bits[k >> 2] |= static_cast<uint64_t>(hits) << (16 * (k & 3));
            seen |= hits;
        }
        if (!seen) continue;

        if (!of_logits && task.want_sum) {
            for (int32_t k = 0; k < blocks; ++k) {
                const uint64_t word = node_bits[k >> 2] >> (16 * (k & 3));
                const bool last_of_word = (k & 3) == 3;
                const uint64_t next = last_of_word && (k >> 2) + 1 < word_count ? node_bits[(k >> 2) + 1] : 0;
                const uint32_t full =
                    static_cast<uint32_t>(word & (last_of_word ? (word >> 1) | (next << 15) : word >> 1)) &
                    0xffffu;
                if (!full) continue;
                const int32_t cell = left + k * kLanes;
                const F32 part = load(value + k * kLanes) * load(task.x.left_weight + cell) +
                                 load(value + k * kLanes + 1) * load(task.x.right_weight + cell);
                full_sum = full_sum + select(mask_of(full), part, broadcast(0.0f));
            }
        }

        const auto emit = [&](int32_t x1, int32_t x2) {
            if (x1 >= x2) return;
            fill_bits(words, x1 - 64 * task.word_begin, x2 - 64 * task.word_begin);
            region.area += x2 - x1;
            region.x1 = min_i32(region.x1, x1);
            region.x2 = max_i32(region.x2, x2);
            region.y1 = min_i32(region.y1, y);
            region.y2 = y + 1;
            if (of_logits && task.want_sum) sum_of_rows += sum_of_sigmoids(task.x, value, left, x1, x2);
        };
        bool on = node_bits[0] & 1;
        int32_t run_begin = task.x.first[left];
        for (int32_t k = 0; k < word_count; ++k) {
            const uint64_t next = k + 1 < word_count ? node_bits[k + 1] : 0;
            uint64_t changes = node_bits[k] ^ ((node_bits[k] >> 1) | (next << 63));
            const int32_t valid = cells - 64 * k;
            if (valid < 64) changes &= valid > 0 ? (uint64_t{1} << valid) - 1 : 0;
            for (; changes; changes &= changes - 1) {
                const int32_t j = 64 * k + __builtin_ctzll(changes);
                const int32_t x1 = task.x.first[left + j], x2 = task.x.first[left + j + 1];
                const F32 a = broadcast(value[j]), b = broadcast(value[j + 1]);
                int32_t count = 0;
                for (int32_t x = x1; x < x2; x += kLanes) {
                    const auto hit = math::inside(math::lerp(a, b, load(task.x.fraction + x)), threshold);
                    count += __builtin_popcount(bits(hit) & low_bits(min_i32(x2 - x, kLanes)));
                }
                const int32_t from = on ? x1 : x2 - count, to = on ? x1 + count : x2;
                if (!of_logits && task.want_sum) {
                    sum_of_rows += static_cast<double>(count) * value[j] +
                                   (task.x.prefix[to] - task.x.prefix[from]) * (value[j + 1] - value[j]);
                }
                if (on) {
                    emit(run_begin, to);
                } else {
                    run_begin = from;
                }
                on = !on;
            }
        }
        if (on) emit(run_begin, task.x.first[left + cells]);
    }
    region.sum = sum_of_rows + sum(full_sum);
    return region;
}

template <class T>
Region draw_instance(const InstanceTask& task) {
    return task.of_logits ? draw_instance_of<T, true>(task) : draw_instance_of<T, false>(task);
}

}  // namespace
}  // namespace fai::cpu::FAI_ISA
