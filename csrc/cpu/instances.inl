// Masks of instances, written once and compiled per instruction set.
//
// Bytes. The logits of the queries whose class score passes are read once (Q' * h * w * itemsize), the boxes'
// bits are written. One sigmoid runs per node that is used, or per pixel inside where logits are what is
// resized and the mean probability is asked for; other pixels cost only where a boundary passes.
#include <cstring>
#include <type_traits>

#include "csrc/cpu/kernels.h"
#include "csrc/cpu/resample.inl"
#include "csrc/cpu/simd.h"
#include "csrc/math/masks.h"

namespace fai::cpu::FAI_ISA {
namespace {

// ---- nodes

// Is a node of this logit inside? As the sigmoid says, which is asked only where it is close.
FAI_HD Mask node_inside(const F32& logit, const Surely& surely, float mask_threshold) {
    const Mask sure = logit >= broadcast(surely.inside);
    if (bits(logit >= broadcast(surely.outside)) == bits(sure)) return sure;
    return math::inside(math::sigmoid(logit), broadcast(mask_threshold));
}

template <class T>
NodeSum sum_nodes(const NodeSumTask& task) {
    NodeSum found{0, 0.0};
    const Extent& extent = task.extent;
    float* const line = task.scratch + task.grid.columns + 2 * kPadding;
    const F32 least = broadcast(task.surely.outside), threshold = broadcast(task.mask_threshold);
    for (int32_t y = extent.row_begin; y < extent.row_end; ++y) {
        node_row<T>(task.grid, y, extent.column_begin, extent.column_end, line, task.scratch,
                    [](const F32& logits) { return logits; });
        F32 total = broadcast(0.0f);
        bool some = false;
        for (int32_t x = extent.column_begin; x < extent.column_end; x += kLanes) {
            const uint32_t lanes = low_bits(min_i32(extent.column_end - x, kLanes));
            const F32 logit = load(task.scratch + (x - extent.column_begin));
            if (!(bits(logit >= least) & lanes)) continue;
            const F32 m = math::sigmoid(logit);
            const Mask hits = math::inside(m, threshold) & mask_of(lanes);
            found.nodes += __builtin_popcount(bits(hits));
            total = total + select(hits, m, broadcast(0.0f));
            some = true;
        }
        if (some) found.sum += sum(total);
    }
    return found;
}

// What of a grid can have to do with a mask. One node more on each side: it may reach into the cells around
// its nodes.
struct Window {
    int32_t left, right, top, bottom;  // the last ones included
    int32_t loaded;                    // nodes of a row
    bool reaches_edge;                 // then the clamped cell after the last node is ours as well
    int32_t cells, blocks;             // blocks hold the cells, and the node after them

    FAI_HD Window(const NodeGrid& grid, const Extent& extent)
        : left(max_i32(extent.column_begin - 1, 0)),
          right(min_i32(extent.column_end, grid.columns - 1)),
          top(max_i32(extent.row_begin - 1, 0)),
          bottom(min_i32(extent.row_end, grid.rows - 1)),
          loaded(right - left + 1),
          reaches_edge(right == grid.columns - 1),
          cells(loaded - 1 + reaches_edge),
          blocks((cells + 1 + kLanes - 1) / kLanes) {}
};

// The rows above and below a cell row, each as of(logit), of which the next cell row finds one made.
template <class T, class Of>
class RowPair {
  public:
    FAI_HD RowPair(const NodeGrid& grid, const Window& window, float* scratch, const Of& of)
        : grid_(grid), window_(window), of_(of) {
        const int64_t stride = grid.columns + 2 * kPadding;
        row_[0] = scratch;
        row_[1] = scratch + stride;
        line_ = scratch + 3 * stride;
    }
    FAI_HD const float* get(int32_t row) {
        const int slot = row & 1;
        float* const out = row_[slot];
        if (held_[slot] != row) {
            held_[slot] = row;
            node_row<T>(grid_, row, window_.left, window_.right + 1, line_, out, of_);
            if (window_.reaches_edge) out[window_.loaded] = out[window_.loaded - 1];
        }
        return out;
    }

  private:
    const NodeGrid& grid_;
    const Window& window_;
    const Of& of_;
    float *row_[2], *line_;
    int32_t held_[2] = {-1, -1};
};

// ---- bounds

// Not below the sigmoid's sum over n values of at least kLeastBoundLogit whose sum is `logits`: it is concave
// from 0 on, so that its tangents (at 0.45, 1.35 and 2.6, rounded up) lie above, and the mean's at the mean.
FAI_HD F32 most_of_sum(const F32& logits, const F32& n) {
    const F32 low = logits * broadcast(0.23776f) + n * broadcast(0.50366f);
    const F32 middle = logits * broadcast(0.16349f) + n * broadcast(0.57344f);
    const F32 high = logits * broadcast(0.06436f) + n * broadcast(0.76354f);
    return minimum(minimum(low, middle), minimum(high, n));
}

// More than what float32 rounds.
inline constexpr double kBoundSlack = 2e-5;

template <class T>
bool node_mean_can_reach(const MeanTask& task) {
    const Extent& extent = task.extent;
    float* const line = task.scratch + task.grid.columns + 2 * kPadding;
    const F32 mean = broadcast(static_cast<float>(task.mean - kBoundSlack)), one = broadcast(1.0f);
    const F32 zero = broadcast(0.0f);
    double most = 0.0;  // sum of what probabilities are above the mean
    for (int32_t y = extent.row_begin; y < extent.row_end; ++y) {
        node_row<T>(task.grid, y, extent.column_begin, extent.column_end, line, task.scratch,
                    [](const F32& logits) { return logits; });
        F32 total = zero;
        for (int32_t x = extent.column_begin; x < extent.column_end; x += kLanes) {
            const uint32_t lanes = low_bits(min_i32(extent.column_end - x, kLanes));
            const F32 logit = load(task.scratch + (x - extent.column_begin));
            const Mask perhaps = (logit >= broadcast(task.surely.outside)) & mask_of(lanes);
            const Mask sure = logit >= broadcast(task.surely.inside);
            const F32 part = most_of_sum(logit, one) - mean;
            total = total + select(perhaps, select(sure, part, maximum(part, zero)), zero);
        }
        most += sum(total);
    }
    return most >= 0.0;
}

// Of a cell with all nodes inside, all pixels are, and the sum of their logits follows from its nodes. Of one
// with some, any may be, none of which is above its largest node; what it takes off the mean is not known.
template <class T>
bool pixel_mean_can_reach(const MeanTask& task) {
    const Window window(task.grid, task.extent);
    const auto bounded = [](const F32& logits) { return math::bounded(logits); };
    RowPair<T, decltype(bounded)> nodes(task.grid, window, task.scratch, bounded);
    const F32 mean = broadcast(static_cast<float>(task.mean - kBoundSlack)), zero = broadcast(0.0f);
    const F32 level = broadcast(task.surely.inside), one = broadcast(1.0f);
    double most = 0.0;
    for (int32_t i = window.top; i <= window.bottom; ++i) {
        const int32_t y1 = task.y.first[i], y2 = task.y.first[i + 1];
        if (y1 == y2) continue;
        const float* const above = nodes.get(i);
        const float* const below = nodes.get(min_i32(i + 1, task.grid.rows - 1));
        const F32 rows = broadcast(static_cast<float>(y2 - y1));
        const F32 lower = broadcast(static_cast<float>(task.y.prefix[y2] - task.y.prefix[y1]));
        F32 total = zero;
        for (int32_t k = 0; k < window.cells; k += kLanes) {
            const uint32_t lanes = low_bits(min_i32(window.cells - k, kLanes));
            const F32 a = load(above + k), b = load(below + k);
            const F32 a_next = load(above + k + 1), b_next = load(below + k + 1);
            const F32 largest = maximum(maximum(a, b), maximum(a_next, b_next));
            const Mask some = (largest >= level) & mask_of(lanes);
            if (!any(some)) continue;
            const F32 smallest = minimum(minimum(a, b), minimum(a_next, b_next));
            const F32 left_weight = load(task.x.left_weight + window.left + k);
            const F32 right_weight = load(task.x.right_weight + window.left + k);
            const F32 count = rows * (left_weight + right_weight);
            const F32 logits = (a * rows + (b - a) * lower) * left_weight +
                               (a_next * rows + (b_next - a_next) * lower) * right_weight;
            const F32 whole = most_of_sum(logits, count) - mean * count;
            const F32 part = maximum(most_of_sum(largest, one) - mean, zero) * count;
            total = total + select(some, select(smallest >= level, whole, part), zero);
        }
        most += sum(total);
    }
    return most >= 0.0;
}

template <class T>
bool mean_can_reach(const MeanTask& task) {
    return task.of_nodes ? node_mean_can_reach<T>(task) : pixel_mean_can_reach<T>(task);
}

// ---- pixels

// The values left and right of pixels [x, x + n), n <= 16, of a row between the nodes of which the first is
// `left`. The vectors that are read may end beyond the last.
FAI_HD void ends_of(const PixelAxis& axis, const float* value, int32_t left, int32_t x, int n, F32& a,
                    F32& b) {
    const int32_t base = axis.cell[x];
    if (axis.cell[x + n - 1] - base < kLanes) {
        const I32 index = (load(axis.cell + x) - broadcast_int(base)) & broadcast_int(kLanes - 1);
        a = permute(load(value + (base - left)), index);
        b = permute(load(value + (base - left) + 1), index);
        return;
    }
    alignas(64) float lane[2][kLanes] = {};
    for (int i = 0; i < n; ++i) {
        lane[0][i] = value[axis.cell[x + i] - left];
        lane[1][i] = value[axis.cell[x + i] - left + 1];
    }
    a = load(lane[0]);
    b = load(lane[1]);
}

// The logits of pixels whose sigmoids are added up.
class SigmoidSum {
  public:
    // Of those of a mask alone.
    FAI_HD void add(const F32& logits, uint32_t mask) {
        store(held_ + kLanes * count_, select(mask_of(mask), logits, broadcast(kNothing)));
        if (++count_ == kHeld) flush();
    }
    FAI_HD double total() {
        if (count_ > 0) flush();
        return total_;
    }

  private:
    // Vectors that are added up in float32 before they are in float64.
    static constexpr int kHeld = 32;
    static constexpr float kNothing = -88.0f;

    void flush() {
        if (count_ % 2) store(held_ + kLanes * count_++, broadcast(kNothing));
        F32 part = broadcast(0.0f);
        for (int k = 0; k < count_; k += 2) {
            part = part + math::two_sigmoids(load(held_ + kLanes * k), load(held_ + kLanes * (k + 1)));
        }
        total_ += sum(part);
        count_ = 0;
    }

    alignas(64) float held_[kHeld * kLanes];
    int count_ = 0;
    double total_ = 0.0;
};

// Adds the sigmoids of what lies between a row's nodes, over pixels [x1, x2).
void add_sigmoids(const PixelAxis& axis, const float* value, int32_t left, int32_t x1, int32_t x2,
                  SigmoidSum& sums) {
    for (; x1 < x2; x1 += kLanes) {
        const int n = min_i32(x2 - x1, kLanes);
        F32 a, b;
        ends_of(axis, value, left, x1, n, a, b);
        sums.add(math::lerp(a, b, load(axis.fraction + x1)), low_bits(n));
    }
}

// How the pixels of a row lie between its nodes.
enum class Lie {
    between,
    on_nodes,  // each on one: all fractions are 0
    as_nodes,  // on one each
};

// Draws pixels [x1, x2) of a row all in the same way, whether a boundary passes or not, into words the first
// of which begins at pixel `origin`. Those inside into `sums`, where that is wanted.
template <Lie lie, bool want_sum>
void draw_pixels(const PixelAxis& axis, const float* value, int32_t left, int32_t x1, int32_t x2,
                 float mask_threshold, uint64_t* words, int32_t origin, SigmoidSum& sums) {
    const F32 threshold = broadcast(mask_threshold);
    while (x1 < x2) {
        // Up to the next whole vector of the frame, so that bits never straddle words.
        const int n = min_i32(kLanes - (x1 & (kLanes - 1)), x2 - x1);
        F32 m;
        Mask hits;
        if constexpr (lie == Lie::as_nodes) {
            m = load(value + (axis.cell[x1] - left));
            hits = math::inside(m, threshold);
        } else {
            F32 b;
            ends_of(axis, value, left, x1, n, m, b);
            hits = math::inside(m, threshold);
            if constexpr (lie == Lie::between) {
                const Mask other = math::inside(b, threshold);
                m = math::lerp(m, b, load(axis.fraction + x1));
                // Between two that are inside, whatever the rounding, all are, and none between two that
                // are not.
                hits = (hits & other) | ((hits | other) & math::inside(m, threshold));
            }
        }
        const uint32_t inside = bits(hits) & low_bits(n);
        if (inside) {
            words[(x1 - origin) >> 6] |= static_cast<uint64_t>(inside) << (x1 & 63);
            if constexpr (want_sum) sums.add(m, inside);
        }
        x1 += n;
    }
}

// Adds a row of words, the first of which begins at pixel `origin`.
FAI_HD int64_t add_row(Region& region, const uint64_t* words, int64_t count, int32_t origin, int32_t y) {
    int64_t area = 0;
    for (int64_t k = 0; k < count; ++k) {
        if (!words[k]) continue;
        const int32_t x = origin + static_cast<int32_t>(64 * k);
        area += __builtin_popcountll(words[k]);
        region.x1 = min_i32(region.x1, x + __builtin_ctzll(words[k]));
        region.x2 = max_i32(region.x2, x + 64 - __builtin_clzll(words[k]));
    }
    if (area) {
        region.y1 = min_i32(region.y1, y);
        region.y2 = y + 1;
        region.area += area;
    }
    return area;
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
// cells with one node inside and one outside: only the pixels of those cells are looked at. Where there are
// many runs, as in noise, looking at all pixels is faster.
inline constexpr int32_t kVectorsPerRunEnd = 3;  // take about as long

template <Lie lie>
using Known = std::integral_constant<Lie, lie>;

template <class T, bool of_logits>
Region draw_instance_of(const InstanceTask& task) {
    const Window window(task.grid, task.extent);
    const int32_t left = window.left, cells = window.cells, blocks = window.blocks;
    const int32_t word_count = (cells + 1 + 63) / 64;
    const auto of = [&](const F32& logit) {
        if constexpr (of_logits) return math::bounded(logit);
        if (!task.nearest) return math::sigmoid(logit);
        const Mask inside = node_inside(logit, task.surely, task.mask_threshold);
        return select(inside, broadcast(1.0f), broadcast(0.0f));
    };
    RowPair<T, decltype(of)> nodes(task.grid, window, task.scratch, of);
    float* value = task.scratch + 2 * (task.grid.columns + 2 * kPadding);
    uint64_t* node_bits = task.node_bits;
    const int32_t origin = 64 * task.word_begin;
    const int32_t x_begin = task.x.first[left], x_end = task.x.first[left + cells];
    const int32_t vectors = (x_end - x_begin) / kLanes;
    const bool on_nodes = task.x.prefix[task.x.pixels] == 0.0;
    // Or pixels at an edge, all on its node.
    const bool as_nodes =
        on_nodes && task.x.nodes == task.x.pixels && task.x.cell[task.x.pixels - 1] == task.x.nodes - 1;
    const Lie lie = as_nodes ? Lie::as_nodes : on_nodes ? Lie::on_nodes : Lie::between;

    Region region = Region::empty();
    const float mask_threshold = !of_logits && task.nearest ? 0.5f : task.mask_threshold;
    const F32 threshold = broadcast(mask_threshold);
    SigmoidSum sums;
    const bool want_sigmoids = of_logits && task.want_sum;
    F32 full_sum = broadcast(0.0f);
    double sum_of_rows = 0.0;
    int32_t cell_row = -1;
    int64_t row_area = 0;
    const int32_t begin = task.y.first[window.top];
    const int32_t end = task.y.first[window.bottom + (window.bottom == task.grid.rows - 1)];
    for (int32_t y = begin; y < end; ++y) {
        uint64_t* words = task.words + (y - task.row_begin) * task.word_stride;
        const int32_t i = task.y.cell[y];
        if (task.nearest && i == cell_row) {
            std::memcpy(words, words - task.word_stride,
                        static_cast<size_t>(task.word_stride) * sizeof *words);
            if (row_area) region.y2 = y + 1;
            region.area += row_area;
            continue;
        }
        std::memset(words, 0, static_cast<size_t>(task.word_stride) * sizeof *words);
        row_area = 0;
        if (i != cell_row) {
            // Flushed once per cell row, so that the float lanes never grow large.
            sum_of_rows += sum(full_sum);
            full_sum = broadcast(0.0f);
            cell_row = i;
        }
        const float* above = nodes.get(i);
        const float* below = nodes.get(min_i32(i + 1, task.grid.rows - 1));
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

        const auto changes_of = [&](int32_t k) {
            const uint64_t next = k + 1 < word_count ? node_bits[k + 1] : 0;
            const uint64_t changes = node_bits[k] ^ ((node_bits[k] >> 1) | (next << 63));
            const int32_t valid = cells - 64 * k;
            return valid >= 64 ? changes : valid > 0 ? changes & ((uint64_t{1} << valid) - 1) : 0;
        };
        if (of_logits || task.nearest) {
            int32_t ends = 0;
            for (int32_t k = 0; k < word_count; ++k) ends += __builtin_popcountll(changes_of(k));
            if (ends * kVectorsPerRunEnd > vectors) {
                const auto draw = [&](auto how) {
                    constexpr Lie known = decltype(how)::value;
                    const auto pixels = want_sigmoids ? draw_pixels<known, true> : draw_pixels<known, false>;
                    pixels(task.x, value, left, x_begin, x_end, mask_threshold, words, origin, sums);
                };
                lie == Lie::between    ? draw(Known<Lie::between>{})
                : lie == Lie::on_nodes ? draw(Known<Lie::on_nodes>{})
                                       : draw(Known<Lie::as_nodes>{});
                row_area = add_row(region, words, task.word_stride, origin, y);
                continue;
            }
        }

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
            fill_bits(words, x1 - origin, x2 - origin);
            region.area += x2 - x1;
            row_area += x2 - x1;
            region.x1 = min_i32(region.x1, x1);
            region.x2 = max_i32(region.x2, x2);
            region.y1 = min_i32(region.y1, y);
            region.y2 = y + 1;
            if (want_sigmoids) add_sigmoids(task.x, value, left, x1, x2, sums);
        };
        bool on = node_bits[0] & 1;
        int32_t run_begin = x_begin;
        for (int32_t k = 0; k < word_count; ++k) {
            for (uint64_t changes = changes_of(k); changes; changes &= changes - 1) {
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
        if (on) emit(run_begin, x_end);
    }
    region.sum = want_sigmoids ? sums.total() : sum_of_rows + sum(full_sum);
    return region;
}

template <class T>
Region draw_instance(const InstanceTask& task) {
    return task.of_logits ? draw_instance_of<T, true>(task) : draw_instance_of<T, false>(task);
}

}  // namespace
}  // namespace fai::cpu::FAI_ISA
