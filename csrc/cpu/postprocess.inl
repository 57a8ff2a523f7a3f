// Query-mask postprocessing, written once and compiled per instruction set.
//
// Bytes. Instance: the logits of the queries whose class score passes are read once (Q' * h * w * itemsize),
// the boxes' bits are written. Semantic: logits are read where a query can still win, the segments (H * W
// bytes) written. Both also run one sigmoid per node they use; pixels cost only where a boundary passes.

#include <cmath>
#include <cstring>
#include <limits>

#include "csrc/cpu/kernels.h"
#include "csrc/cpu/simd.h"
#include "csrc/math/masks.h"
#include "csrc/math/rows.h"

namespace fai::cpu::FAI_ISA {
namespace {

FAI_HD uint32_t low_bits(int n) { return n >= kLanes ? 0xffffu : (1u << n) - 1u; }
FAI_HD int min_i32(int a, int b) { return a < b ? a : b; }
FAI_HD int max_i32(int a, int b) { return a > b ? a : b; }

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
void class_score(const void* data, int32_t count, bool softmax, double* score, int64_t* class_id) {
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
    *score = math::softmax_score(best, largest, softmax_total(logits, count, largest));
}

template <class T>
int32_t class_scores(const void* data, int32_t count, bool softmax, double threshold, ClassScore* out) {
    double best = 0.0;
    int64_t best_id = 0;
    class_score<T>(data, count, softmax, &best, &best_id);
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
    if (threshold > 0.0 && !softmax && threshold < 1.0) floor = std::log(threshold / (1.0 - threshold)) - 1e-3;
    int32_t found = 0;
    for (int32_t k = 0; k < classes; ++k) {
        const float logit = value_of(k);
        if (logit < floor) continue;
        const double score = softmax ? math::softmax_score(logit, largest, total) : math::sigmoid_score(logit);
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

// The sum over pixels [x1, x2) of a row of the sigmoids of what lies between these logits, the first of which is that
// of node `left`. The vectors that are read may end beyond the last.
FAI_HD double sum_of_sigmoids(const PixelAxis& axis, const float* value, int32_t left, int32_t x1, int32_t x2) {
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

// ---- semantic masks

// Cells are taken 15 at a time: their 16 nodes are one vector.
inline constexpr int kBlockCells = kLanes - 1;
// Queries between a prefetch and its use.
inline constexpr int32_t kAhead = 6;

template <class L>
FAI_HD void fill(L* out, L value, int32_t n) {
    if constexpr (sizeof(L) == 1) {
        std::memset(out, value, static_cast<size_t>(n));
    } else {
        for (int32_t x = 0; x < n; ++x) out[x] = value;
    }
}

FAI_HD void grow(Region& region, int32_t x1, int32_t y1, int32_t x2, int32_t y2) {
    region.x1 = min_i32(region.x1, x1);
    region.y1 = min_i32(region.y1, y1);
    region.x2 = max_i32(region.x2, x2);
    region.y2 = max_i32(region.y2, y2);
}

// Levels of logits that are told apart without a sigmoid: below kLowLogit[level] a probability is less than
// kLowProbability[level].
inline constexpr float kLowLogit[] = {0.0f, -2.0f, -5.0f};
inline constexpr float kLowProbability[] = {1.0f, 0.1193f, 0.0067f};

// Gives all pixels of a rectangle to one query.
template <class L>
FAI_HD Region& give(const SemanticTask& task, const Candidate& candidate, int32_t x1, int32_t y1, int32_t x2,
                    int32_t y2) {
    L* segments = static_cast<L*>(task.segments);
    for (int32_t y = y1; y < y2; ++y) {
        fill(segments + static_cast<int64_t>(y) * task.x.pixels + x1, static_cast<L>(candidate.query),
             x2 - x1);
    }
    Region& region = task.regions[candidate.position];
    grow(region, x1, y1, x2, y2);
    region.area += static_cast<int64_t>(x2 - x1) * (y2 - y1);
    return region;
}

// Decides the pixels of columns [x, x + n), n <= 16, of one cell row's pixel rows [y1, y2), each for one of
// the `count` contestants (indices of candidates, in order of their queries) with these scores. `corners`
// holds four vectors per contestant: its nodes above left, above right, below left and below right of each
// column.
template <class L, bool want_sum>
FAI_HD void semantic_argmax(const SemanticTask& task, const int32_t* contestants, const float* scores,
                            int32_t count, const float* corners, int32_t x, int n, int32_t y1, int32_t y2) {
    const F32 across = load(task.x.fraction + x);
    for (int32_t y = y1; y < y2; ++y) {
        const F32 down = broadcast(task.y.fraction[y]);
        F32 best = broadcast(-1.0f), best_m = broadcast(0.0f);
        I32 winner = broadcast_int(0);
        for (int32_t c = 0; c < count; ++c) {
            const float* corner = corners + static_cast<int64_t>(c) * 4 * kLanes;
            const F32 left = math::lerp(load(corner), load(corner + 2 * kLanes), down);
            const F32 right = math::lerp(load(corner + kLanes), load(corner + 3 * kLanes), down);
            const F32 m = math::lerp(left, right, across);
            const F32 worth = m * broadcast(scores[c]);
            const Mask wins = math::wins(worth, best);
            best = select(wins, worth, best);
            if constexpr (want_sum) best_m = select(wins, m, best_m);
            winner = select(wins, broadcast_int(c), winner);
        }
        I32 label = broadcast_int(-1);
        alignas(64) int32_t winners[kLanes];
        store(winners, winner);
        // Once for each contestant that won anything here, found at its first pixel.
        for (uint32_t open = low_bits(n); open;) {
            const int32_t c = winners[__builtin_ctz(open)];
            const Mask mine = equal(winner, broadcast_int(c));
            const uint32_t won = bits(mine) & open;
            open &= ~won;
            const Candidate& candidate = task.candidates[contestants[c]];
            label = select(mine, broadcast_int(candidate.query), label);
            Region& region = task.regions[candidate.position];
            grow(region, x + __builtin_ctz(won), y, x + 32 - __builtin_clz(won), y + 1);
            region.area += __builtin_popcount(won);
            if constexpr (want_sum) region.sum += sum(select(mask_of(won), best_m, broadcast(0.0f)));
        }
        store_narrow(static_cast<L*>(task.segments) + static_cast<int64_t>(y) * task.x.pixels + x, label, n);
    }
}

// Bilinear values lie between their cell's smallest and largest corner, so a query can win in a cell only
// where its largest corner reaches the largest smallest corner of any, which `guaranteed` holds. Competitors
// come in order of falling score: once a score itself is below that in every cell of the block, all that
// follow are out without being read. The winners of the cell row above are looked at first, since they mostly
// win again.
template <class T, class L>
void draw_segments_of(const SemanticTask& task) {
    const T* logits = static_cast<const T*>(task.logits);
    const int32_t competitors = task.competitors;
    // The interpolation may round past a corner by a unit in the last place.
    const F32 slack = broadcast(1.000001f);

    const int64_t share = static_cast<int64_t>(competitors) * kLanes;
    float* node[2] = {task.scratch, task.scratch + share};  // of even rows, of odd rows
    float* upper = task.scratch + 2 * share;
    float* corners = task.scratch + 3 * share;
    int32_t* have[2] = {task.integers, task.integers + competitors};  // the row whose nodes are there
    int32_t* level[2] = {task.integers + 2 * competitors,
                         task.integers + 3 * competitors};  // 4 * row + level
    int32_t* examined = task.integers + 4 * competitors;    // the cell row it was last examined for
    int32_t* list = task.integers + 5 * competitors;        // those not ruled out, then contestants
    Candidate* candidates = task.candidates;

    for (int32_t block = 0; block < task.columns; block += kBlockCells) {
        const int32_t cells = min_i32(task.columns - block, kBlockCells);
        const int32_t x1 = task.x.first[block], x2 = task.x.first[block + cells];
        if (x1 == x2) continue;
        const int32_t loaded = min_i32(task.columns - block, kLanes);
        const uint32_t valid = low_bits(cells), beyond = ~low_bits(loaded) & 0xffffu;
        const auto source_of = [&](int32_t position, int32_t row) {
            return logits + task.query[position] * task.query_stride + row * task.row_stride + block;
        };
        const auto logits_of = [&](int32_t position, int32_t row) {
            return load_first(source_of(position, row), loaded);
        };
        const auto level_of = [&](int32_t position, int32_t row) {
            int32_t& known = level[row & 1][position];
            if (known >> 2 != row) {
                const F32 v = logits_of(position, row);
                const auto all_below = [&](float logit) {
                    return (bits(v < broadcast(logit)) | beyond) == 0xffffu;
                };
                known = 4 * row;
                if (all_below(kLowLogit[1])) known += all_below(kLowLogit[2]) ? 2 : 1;
            }
            return known & 3;
        };
        const auto nodes_of = [&](int32_t position, int32_t row) {
            float* nodes = node[row & 1] + static_cast<int64_t>(position) * kLanes;
            if (have[row & 1][position] == row) return load(nodes);
            have[row & 1][position] = row;
            F32 v = logits_of(position, row);
            if (any(is_nan(v))) task.has_nan[position] = 1;
            v = math::sigmoid(v);
            if (loaded < kLanes) {
                alignas(64) float lane[kLanes];
                store(lane, v);
                for (int i = loaded; i < kLanes; ++i) lane[i] = lane[loaded - 1];
                v = load(lane);
            }
            store(nodes, v);
            return v;
        };
        for (int32_t k = 0; k < 5 * competitors; ++k) task.integers[k] = -1;
        int32_t count = 0;

        for (int32_t i = task.row_begin; i < task.row_end; ++i) {
            const int32_t y1 = task.y.first[i], y2 = task.y.first[i + 1];
            if (y1 == y2) continue;
            const int32_t below = min_i32(i + 1, task.rows - 1);
            // Lanes without a cell never keep a competitor in.
            F32 guaranteed = select(mask_of(valid), broadcast(-1.0f), broadcast(2.0f));
            int32_t survivors = 0;
            const auto examine = [&](int32_t position) {
                examined[position] = i;
                const F32 score = broadcast(task.score[position]);
                const int low = min_i32(level_of(position, below), level_of(position, i));
                if (low && all(guaranteed > score * broadcast(kLowProbability[low]))) return;
                const F32 a = nodes_of(position, i), b = nodes_of(position, below);
                const F32 least = minimum(a, b), most = maximum(a, b);
                guaranteed = maximum(minimum(least, next_lane(least)) * score, guaranteed);
                store(upper + static_cast<int64_t>(position) * kLanes,
                      maximum(most, next_lane(most)) * score * slack);
                list[survivors++] = position;
            };
            for (int32_t c = 0; c < count; ++c) examine(candidates[c].position);
            for (int32_t position = 0; position < competitors; ++position) {
                if (all(guaranteed > broadcast(task.score[position]) * slack)) break;
                // Each query's rows lie in pages of their own, which no hardware prefetcher follows.
                if (position + kAhead < competitors) {
                    const T* source = source_of(position + kAhead, below);
                    __builtin_prefetch(source);
                    __builtin_prefetch(source + loaded - 1);
                }
                if (examined[position] != i) examine(position);
            }

            count = 0;
            for (int32_t k = 0; k < survivors; ++k) {
                const int32_t position = list[k];
                const uint32_t can_win =
                    bits(load(upper + static_cast<int64_t>(position) * kLanes) >= guaranteed) & valid;
                if (!can_win) continue;
                const Candidate candidate{position, task.query[position], can_win};
                int32_t at = count++;
                for (; at > 0 && candidates[at - 1].query > candidate.query; --at) {
                    candidates[at] = candidates[at - 1];
                }
                candidates[at] = candidate;
            }
            if (count == 0) {
                constexpr L kNobody = static_cast<L>(-1);
                for (int32_t y = y1; y < y2; ++y) {
                    fill(static_cast<L*>(task.segments) + static_cast<int64_t>(y) * task.x.pixels + x1,
                         kNobody, x2 - x1);
                }
            } else if (count == 1) {
                Region& region = give<L>(task, candidates[0], x1, y1, x2, y2);
                if (!task.want_sum) continue;
                const F32 a = nodes_of(candidates[0].position, i),
                          b = nodes_of(candidates[0].position, below);
                const F32 rows = broadcast(static_cast<float>(y2 - y1));
                const F32 lower = broadcast(static_cast<float>(task.y.prefix[y2] - task.y.prefix[y1]));
                const F32 column = a * rows + (b - a) * lower;
                const F32 part = column * load(task.x.left_weight + block) +
                                 next_lane(column) * load(task.x.right_weight + block);
                region.sum += sum(select(mask_of(valid), part, broadcast(0.0f)));
            } else {
                for (int32_t x = x1; x < x2; x += kLanes) {
                    const int n = min_i32(x2 - x, kLanes);
                    // The cells that these pixels lie in, and who can win in one of them.
                    const int32_t from = task.x.cell[x] - block, to = task.x.cell[x + n - 1] - block;
                    const uint32_t here = low_bits(to + 1) & ~low_bits(from);
                    int32_t contestants = 0;
                    for (int32_t c = 0; c < count; ++c) {
                        if (candidates[c].cells & here) list[contestants++] = c;
                    }
                    if (contestants == 1 && !task.want_sum) {
                        give<L>(task, candidates[list[0]], x, y1, x + n, y2);
                        continue;
                    }
                    const I32 index = load(task.x.cell + x) - broadcast_int(block);
                    float* scores = upper;  // which has served its purpose
                    for (int32_t c = 0; c < contestants; ++c) {
                        const int32_t position = candidates[list[c]].position;
                        scores[c] = task.score[position];
                        const F32 a = nodes_of(position, i), b = nodes_of(position, below);
                        float* corner = corners + static_cast<int64_t>(c) * 4 * kLanes;
                        store(corner, permute(a, index));
                        store(corner + kLanes, permute(next_lane(a), index));
                        store(corner + 2 * kLanes, permute(b, index));
                        store(corner + 3 * kLanes, permute(next_lane(b), index));
                    }
                    if (task.want_sum) {
                        semantic_argmax<L, true>(task, list, scores, contestants, corners, x, n, y1, y2);
                    } else {
                        semantic_argmax<L, false>(task, list, scores, contestants, corners, x, n, y1, y2);
                    }
                }
            }
        }
    }
}

template <class T>
void draw_segments(const SemanticTask& task) {
    if (task.wide) {
        draw_segments_of<T, uint16_t>(task);
    } else {
        draw_segments_of<T, uint8_t>(task);
    }
}

}  // namespace
}  // namespace fai::cpu::FAI_ISA
