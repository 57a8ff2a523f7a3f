// Semantic results by sum: each pixel's class is the one with the largest sum, over all queries, of class
// probability times mask probability (docs/postprocess.md). Written once and compiled per instruction set.
//
// Bytes. All logits are read once, the segments (H * W bytes) written. Work. One sigmoid runs per node and
// query. Sums are of the classes that can win in a tile alone, one or two of 150 in most; all of them would
// be a product of C * Q * nodes multiplications and additions. Where many can, sums that are only about right
// tell which of them can win in a cell row, at half the operations.
//
// Comes after semantic.inl, whose blocks, Labels and grow() it uses.

#include <limits>

#include "csrc/cpu/kernels.h"
#include "csrc/cpu/simd.h"
#include "csrc/math/masks.h"
#include "csrc/math/rows.h"

namespace fai::cpu::FAI_ISA {
namespace {

// Node rows of a tile, of which the last is the next tile's first; a power of two.
inline constexpr int32_t kTileRows = kSumTileRows + 1;
static_assert((kTileRows & (kTileRows - 1)) == 0);
// Queries between a prefetch and its use.
inline constexpr int32_t kSumAhead = 3;
// Three interpolations may round past the corners of a cell by this share of the largest, with room to spare.
inline constexpr float kRounding = 2e-6f;
// From how many classes on sums that are about right pay.
inline constexpr int32_t kManyClasses = 12;
// Units of sums that a lane of 32 bits holds without an overflow; a sum counts up to 1, which is 2**24 units.
inline constexpr int kUnitsHeld = 127;

// A query's class probabilities, those beyond the last class up to a whole vector 0. False where one is NaN,
// or as good as that: the query takes no part then.
template <class T>
bool class_probabilities(const void* data, int32_t count, bool softmax, float* out) {
    const T* logits = static_cast<const T*>(data);
    const int32_t classes = softmax ? count - 1 : count;
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    F32 top = broadcast(-kInfinity);
    bool nan = false;
    for (int32_t k = 0; k < count; k += kLanes) {
        const int n = min_i32(count - k, kLanes);
        const F32 v = load_first(logits + k, n);
        nan |= any(is_nan(v));
        top = maximum(top, select(mask_of(low_bits(n)), v, broadcast(-kInfinity)));
    }
    if (nan) return false;
    if (!softmax) {
        for (int32_t k = 0; k < classes; k += kLanes) {
            const int n = min_i32(classes - k, kLanes);
            const F32 p = math::sigmoid(load_first(logits + k, n));
            store(out + k, select(mask_of(low_bits(n)), p, broadcast(0.0f)));
        }
        return true;
    }
    const float largest = greatest(top);
    if (largest == kInfinity || largest == -kInfinity) return false;
    const F32 floor = broadcast(-87.0f);
    const auto share = [&](int32_t k, int n) {
        const F32 x = load_first(logits + k, n) - broadcast(largest);
        const F32 e = math::exponential(maximum(x, floor));
        return select(mask_of(low_bits(n)) & (x >= floor), e, broadcast(0.0f));
    };
    F32 total = broadcast(0.0f);
    for (int32_t k = 0; k < count; k += kLanes) total = total + share(k, min_i32(count - k, kLanes));
    const F32 whole = broadcast(sum(total));
    for (int32_t k = 0; k < classes; k += kLanes) {
        store(out + k, share(k, min_i32(classes - k, kLanes)) / whole);
    }
    return true;
}

// Winning sums of pixels in whole units, which add up to the same in any order.
class UnitSum {
  public:
    FAI_HD void add(const F32& winning, const Mask& which) {
        if (held_ == kUnitsHeld) flush();
        ++held_;
        const F32 units = minimum(winning, broadcast(1.0f)) * broadcast(math::kUnitsOfOne);
        lanes_ = lanes_ + select(which, to_int(units), broadcast_int(0));
    }
    FAI_HD double take() {
        flush();
        const int64_t total = total_;
        total_ = 0;
        return static_cast<double>(total);
    }

  private:
    FAI_HD void flush() {
        alignas(64) int32_t lane[kLanes];
        store(lane, lanes_);
        for (int32_t value : lane) total_ += value;
        lanes_ = broadcast_int(0);
        held_ = 0;
    }

    I32 lanes_ = broadcast_int(0);
    int held_ = 0;
    int64_t total_ = 0;
};

// The corners of the cells that 16 pixels lie in, as interpolation down a cell wants them: the upper nodes,
// and how far the lower ones are from those.
struct Corners {
    F32 left, left_step, right, right_step;
};

// What lerp() between the corners gives on one pixel row, `down` and `across` in the cell.
FAI_HD F32 interpolate(const Corners& at, const F32& down, const F32& across) {
    return math::lerp(at.left + at.left_step * down, at.right + at.right_step * down, across);
}

FAI_HD Corners corners_of(const F32& above, const F32& below, const I32& index) {
    const F32 step = below - above;
    return {permute(above, index), permute(step, index), permute(next_lane(above), index),
            permute(next_lane(step), index)};
}

FAI_HD void store(float* p, const Corners& at) {
    store(p, at.left);
    store(p + kLanes, at.left_step);
    store(p + 2 * kLanes, at.right);
    store(p + 3 * kLanes, at.right_step);
}
FAI_HD Corners load_corners(const float* p) {
    return {load(p), load(p + kLanes), load(p + 2 * kLanes), load(p + 3 * kLanes)};
}

enum class Sums {
    exact,
    about,  // right but for the rounding of each product and addition
};

// Sums of `classes` classes at the nodes of `rows` node rows; the same operations in the same order whatever
// their numbers. `m` has a vector for each query, and the next row's `row_stride` values further.
template <int classes, int rows, Sums kind>
FAI_HD void add_up(const float* const* probabilities, const float* const* m, int32_t queries,
                   float* const* sums) {
    F32 total[classes][rows];
    for (auto& row : total) {
        for (F32& value : row) value = broadcast(0.0f);
    }
    for (int32_t q = 0; q < queries; ++q) {
        F32 node[rows];
        for (int r = 0; r < rows; ++r) node[r] = load(m[r] + static_cast<int64_t>(q) * kLanes);
        for (int c = 0; c < classes; ++c) {
            const F32 p = broadcast(probabilities[c][q]);
            for (int r = 0; r < rows; ++r) {
                total[c][r] = kind == Sums::exact ? total[c][r] + p * node[r]
                                                  : about_multiply_add(p, node[r], total[c][r]);
            }
        }
    }
    for (int c = 0; c < classes; ++c) {
        for (int r = 0; r < rows; ++r) store(sums[c] + r * kLanes, total[c][r]);
    }
}

template <class T, bool resampled>
struct SumTile {
    const SumTask& task;
    const int32_t queries, classes;
    // Of the tile's nodes: mask probabilities (node row, query, 16), the largest and the smallest of each
    // query, and the sums of the classes that compete (class, node row, 16).
    float* const mask;
    float* const high;
    float* const low;
    float* const sums;
    // Of every class what its sum is at most in the tile; later of those that compete, in a cell row (16).
    float* const bound;
    float* const upper;
    float* const corners;
    int32_t* const competing;  // classes, in order
    int32_t* const candidates;
    uint32_t* const cells_of;  // (candidates) in which cells each can win
    int32_t* const contestants;
    int32_t* const
        exact_row;  // of those that compete, the last node row whose sums are exact, where not all are

    BlockNodes<T, resampled> nodes;

    int32_t block = 0, cells = 0;  // columns
    int32_t x1 = 0, x2 = 0;
    int32_t competitors = 0;

    explicit SumTile(const SumTask& given)
        : task(given),
          queries(given.queries),
          classes(given.classes),
          mask(given.scratch),
          high(mask + static_cast<int64_t>(queries) * kTileRows * kLanes),
          low(high + queries),
          sums(low + queries),
          bound(sums + static_cast<int64_t>(classes) * kTileRows * kLanes),
          upper(bound + given.class_stride),
          corners(upper + static_cast<int64_t>(classes) * kLanes),
          competing(given.integers),
          candidates(competing + classes),
          cells_of(reinterpret_cast<uint32_t*>(candidates + classes)),
          contestants(candidates + 2 * static_cast<int64_t>(classes)),
          exact_row(contestants + classes),
          nodes(given.grid, corners + static_cast<int64_t>(classes) * 4 * kLanes) {}

    FAI_HD int64_t offset(int32_t position) const {
        return task.query[position] * task.query_stride - task.first_row * task.grid.logits.row_stride -
               task.first_column;
    }
    FAI_HD float* mask_row(int32_t row) const {
        return mask + static_cast<int64_t>(row & (kTileRows - 1)) * queries * kLanes;
    }
    FAI_HD float* sums_at(int32_t k, int32_t row, int32_t begin) const {
        return sums + (static_cast<int64_t>(k) * kTileRows + row - begin) * kLanes;
    }

    // Notes who has NaN where no pixel asks for the nodes.
    void look_for_nan(int32_t begin, int32_t end) const {
        for (int32_t q = 0; q < queries; ++q) {
            bool nan = false;
            for (int32_t row = begin; row < end; ++row) nodes.row(offset(q), row, nan);
            if (nan) task.has_nan[q] = 1;
        }
    }

    // Mask probabilities of node rows [begin, end], of which those before `fresh` are there already.
    void load_nodes(int32_t begin, int32_t fresh, int32_t end) const {
        const auto probability = [&](const F32& value) {
            return task.probabilities ? value : math::sigmoid(value);
        };
        for (int32_t q = 0; q < queries; ++q) {
            if (q + kSumAhead < queries) {
                for (int32_t row = fresh; row <= end; ++row) {
                    const T* ahead = nodes.source(offset(q + kSumAhead), row);
                    __builtin_prefetch(ahead);
                    __builtin_prefetch(ahead + nodes.loaded() - 1);
                }
            }
            F32 most = broadcast(0.0f), least = broadcast(1.0f);
            const auto note = [&](const F32& m) {
                most = maximum(most, m);
                least = minimum(least, m);
            };
            float* const column = mask + static_cast<int64_t>(q) * kLanes;
            const int64_t row_of_all = static_cast<int64_t>(queries) * kLanes;
            const auto to = [&](int32_t row) { return column + (row & (kTileRows - 1)) * row_of_all; };
            if (fresh > begin) note(load(to(begin)));
            bool nan = false;
            int32_t row = fresh;
            // Two at a time, as a sigmoid waits for itself.
            for (; row < end; row += 2) {
                const F32 a = nodes.row(offset(q), row, nan), b = nodes.row(offset(q), row + 1, nan);
                const F32 m = probability(a), n = probability(b);
                store(to(row), m);
                store(to(row + 1), n);
                note(m);
                note(n);
            }
            if (row == end) {
                const F32 m = probability(nodes.row(offset(q), row, nan));
                store(to(row), m);
                note(m);
            }
            if (nan) task.has_nan[q] = 1;
            high[q] = greatest(most);
            low[q] = smallest(least);
        }
    }

    // Which classes can win in the tile. Sums of the largest and of the smallest mask probabilities, added up
    // as a node's are, are not below or above any node's, because each rounding is monotone.
    void find_competing() {
        F32 guaranteed = broadcast(-1.0f);
        for (int32_t k = 0; k < task.class_stride; k += kLanes) {
            F32 most = broadcast(0.0f), least = broadcast(0.0f);
            for (int32_t q = 0; q < queries; ++q) {
                const F32 p = load(task.by_query + q * task.class_stride + k);
                most = most + p * broadcast(high[q]);
                least = least + p * broadcast(low[q]);
            }
            store(bound + k, most);
            const F32 sure = least - most * broadcast(kRounding);
            guaranteed = maximum(select(mask_of(low_bits(classes - k)), sure, broadcast(-1.0f)), guaranteed);
        }
        const F32 needed = broadcast(greatest(guaranteed));
        competitors = 0;
        for (int32_t k = 0; k < task.class_stride; k += kLanes) {
            const F32 most = load(bound + k);
            uint32_t can = bits(most + most * broadcast(kRounding) >= needed) & low_bits(classes - k);
            for (; can; can &= can - 1) competing[competitors++] = k + __builtin_ctz(can);
        }
    }

    bool many() const { return competitors >= kManyClasses; }

    // How far sums may be from the exact ones, as a share of themselves: each product and each addition
    // rounds by 2**-24 of itself, on either way.
    F32 uncertainty() const {
        return broadcast(many() ? kRounding + 0x1p-23f * static_cast<float>(queries + 2) : kRounding);
    }

    // The sums of those that compete, at node rows [begin, end].
    void sum_up(int32_t begin, int32_t end) const {
        // As many sums at once as there are registers for.
        constexpr int kRows = kRegisters == 1 ? 4 : 1;
        const bool about = many();
        for (int32_t k = 0; about && k < competitors; ++k) exact_row[k] = -1;
        for (int32_t k = 0; k < competitors;) {
            const int32_t left = competitors - k;
            if (about && left >= 4) {
                sum_up_classes<4, kRows, Sums::about>(k, begin, end);
                k += 4;
            } else if (left >= 4) {
                sum_up_classes<4, 1, Sums::exact>(k, begin, end);
                k += 4;
            } else if (left >= 2) {
                sum_up_classes<2, 2, Sums::exact>(k, begin, end);
                k += 2;
            } else {
                sum_up_classes<1, 4, Sums::exact>(k, begin, end);
                k += 1;
            }
        }
    }

    template <int count, int rows, Sums kind>
    FAI_HD void sum_up_classes(int32_t k, int32_t begin, int32_t end) const {
        const float* probabilities[count];
        for (int c = 0; c < count; ++c) probabilities[c] = probabilities_of(k + c);
        const auto some = [&]<int n>(int32_t row) {
            const float* m[n];
            float* to[count];
            for (int r = 0; r < n; ++r) m[r] = mask_row(row + r);
            for (int c = 0; c < count; ++c) to[c] = sums_at(k + c, row, begin);
            add_up<count, n, kind>(probabilities, m, queries, to);
        };
        int32_t row = begin;
        for (; row + rows <= end + 1; row += rows) some.template operator()<rows>(row);
        for (; row <= end; ++row) some.template operator()<1>(row);
    }

    // Makes the sums of the first `count` candidates exact at a node row.
    void make_exact(int32_t count, int32_t begin, int32_t row) const {
        constexpr int kTogether = kRegisters == 1 ? 8 : 4;
        int32_t waiting[kTogether], n = 0;
        const auto sum_up = [&]<int together>() {
            const float* probabilities[together];
            float* to[together];
            const float* m[] = {mask_row(row)};
            for (int c = 0; c < together; ++c) {
                // Where fewer wait, the last is done again.
                const int32_t k = waiting[min_i32(c, n - 1)];
                probabilities[c] = probabilities_of(k);
                to[c] = sums_at(k, row, begin);
            }
            add_up<together, 1, Sums::exact>(probabilities, m, queries, to);
            n = 0;
        };
        for (int32_t c = 0; c < count; ++c) {
            const int32_t k = candidates[c];
            if (exact_row[k] >= row) continue;
            exact_row[k] = row;
            waiting[n++] = k;
            if (n == kTogether) sum_up.template operator()<kTogether>();
        }
        if (n > kTogether / 2) {
            sum_up.template operator()<kTogether>();
        } else if (n > 0) {
            sum_up.template operator()<kTogether / 2>();
        }
    }

    FAI_HD const float* probabilities_of(int32_t k) const {
        return task.by_class + competing[k] * task.by_class_stride;
    }
};

// Gives the pixels of columns [x, x + n), n <= 16, of rows [y1, y2) to one class.
template <class Tile>
FAI_HD void sum_alone(const Tile& tile, const Corners& at, int32_t x, int n, int32_t y1, int32_t y2,
                      UnitSum& units) {
    const F32 across = load(tile.task.x.fraction + x);
    const Mask which = mask_of(low_bits(n));
    for (int32_t y = y1; y < y2; ++y) {
        units.add(interpolate(at, broadcast(tile.task.y.fraction[y]), across), which);
    }
}

// Decides such pixels between the tile's contestants, of which there are `count`.
template <class Tile>
FAI_HD void sum_argmax(const Tile& tile, int32_t count, int32_t x, int n, int32_t y1, int32_t y2) {
    const SumTask& task = tile.task;
    const F32 across = load(task.x.fraction + x);
    for (int32_t y = y1; y < y2; ++y) {
        const F32 down = broadcast(task.y.fraction[y]);
        F32 best = broadcast(-1.0f);
        I32 label = broadcast_int(-1);
        for (int32_t c = 0; c < count; ++c) {
            const F32 value =
                interpolate(load_corners(tile.corners + static_cast<int64_t>(c) * 4 * kLanes), down, across);
            const Mask wins = math::wins(value, best);
            best = select(wins, value, best);
            label = select(wins, broadcast_int(tile.contestants[c]), label);
        }
        alignas(64) int32_t labels[kLanes];
        store(labels, label);
        for (uint32_t open = low_bits(n); open;) {
            const int32_t class_id = labels[__builtin_ctz(open)];
            if (class_id < 0) break;  // only where NaN is among the nodes, which draws everything again
            const uint32_t won = bits(equal(label, broadcast_int(class_id))) & open;
            open &= ~won;
            Region& region = task.regions[class_id];
            grow(region, x + __builtin_ctz(won), y, x + 32 - __builtin_clz(won), y + 1);
            region.area += __builtin_popcount(won);
            UnitSum units;
            units.add(best, mask_of(won));
            region.sum += units.take();
        }
        Labels{task.segments, task.x.pixels, task.wide}.store(label, x, y, n);
    }
}

// The pixels of one cell row of a tile whose node rows begin with `begin`.
template <class Tile>
void sum_cell_row(const Tile& tile, int32_t begin, int32_t i) {
    const SumTask& task = tile.task;
    const int32_t y1 = task.y.first[i], y2 = task.y.first[i + 1];
    if (y1 == y2) return;
    const int32_t below = min_i32(i + 1, task.grid.rows - 1);
    const uint32_t valid = low_bits(tile.cells);

    // Who can win in which cell, as in a contest: whose largest corner reaches the largest smallest corner.
    int32_t count = 0;
    if (tile.competitors == 1) {
        tile.candidates[count++] = 0;
    } else {
        F32 guaranteed =
            select(mask_of(valid), broadcast(-1.0f), broadcast(std::numeric_limits<float>::infinity()));
        // Products that are too small for a number of their own may be lost.
        const F32 rounding = tile.uncertainty(),
                  lost = broadcast(0x1p-126f * static_cast<float>(tile.queries));
        for (int32_t k = 0; k < tile.competitors; ++k) {
            const F32 a = load(tile.sums_at(k, i, begin)), b = load(tile.sums_at(k, below, begin));
            const F32 least = minimum(a, b), most = maximum(a, b);
            const F32 high = maximum(most, next_lane(most));
            const F32 slack = high * rounding + lost;
            guaranteed = maximum(minimum(least, next_lane(least)) - slack, guaranteed);
            store(tile.upper + static_cast<int64_t>(k) * kLanes, high + slack);
        }
        for (int32_t k = 0; k < tile.competitors; ++k) {
            const uint32_t can =
                bits(load(tile.upper + static_cast<int64_t>(k) * kLanes) >= guaranteed) & valid;
            if (!can) continue;
            tile.cells_of[count] = can;
            tile.candidates[count++] = k;
        }
        if (tile.many()) {
            for (const int32_t row : {i, below}) tile.make_exact(count, begin, row);
        }
    }
    const Labels labels{task.segments, task.x.pixels, task.wide};
    const auto give = [&](int32_t k, int32_t from, int32_t to) -> Region& {
        const int32_t class_id = tile.competing[k];
        labels.fill(class_id, from, y1, to, y2);
        Region& region = task.regions[class_id];
        grow(region, from, y1, to, y2);
        region.area += static_cast<int64_t>(to - from) * (y2 - y1);
        return region;
    };
    const auto corners = [&](int32_t k, int32_t x) {
        const I32 index = load(task.x.cell + x) - broadcast_int(tile.block);
        return corners_of(load(tile.sums_at(k, i, begin)), load(tile.sums_at(k, below, begin)), index);
    };
    if (count == 1) {
        const int32_t k = tile.candidates[0];
        UnitSum units;
        for (int32_t x = tile.x1; x < tile.x2; x += kLanes) {
            sum_alone(tile, corners(k, x), x, min_i32(tile.x2 - x, kLanes), y1, y2, units);
        }
        give(k, tile.x1, tile.x2).sum += units.take();
        return;
    }
    for (int32_t x = tile.x1; x < tile.x2; x += kLanes) {
        const int n = min_i32(tile.x2 - x, kLanes);
        // The cells that these pixels lie in, and who can win in one of them.
        const int32_t from = task.x.cell[x] - tile.block, to = task.x.cell[x + n - 1] - tile.block;
        const uint32_t here = low_bits(to + 1) & ~low_bits(from);
        int32_t contestants = 0, last = 0;
        for (int32_t c = 0; c < count; ++c) {
            if (!(tile.cells_of[c] & here)) continue;
            last = tile.candidates[c];
            tile.contestants[contestants] = tile.competing[last];
            store(tile.corners + static_cast<int64_t>(contestants) * 4 * kLanes, corners(last, x));
            ++contestants;
        }
        if (contestants == 1) {
            UnitSum units;
            sum_alone(tile, load_corners(tile.corners), x, n, y1, y2, units);
            give(last, x, x + n).sum += units.take();
        } else {
            sum_argmax(tile, contestants, x, n, y1, y2);
        }
    }
}

template <class T, bool resampled>
void draw_sums_of(const SumTask& task) {
    SumTile<T, resampled> tile(task);
    const int32_t nodes = min_i32(task.column_end + 1, task.grid.columns);
    for (tile.block = task.column_begin; tile.block < task.column_end; tile.block += kBlockCells) {
        tile.cells = min_i32(task.column_end - tile.block, kBlockCells);
        tile.nodes.enter(tile.block, nodes);
        tile.x1 = task.x.first[tile.block];
        tile.x2 = task.x.first[tile.block + tile.cells];
        int32_t known = -1;  // the last node row that is loaded
        for (int32_t begin = task.row_begin; begin < task.row_end; begin += kSumTileRows) {
            const int32_t end = min_i32(begin + kSumTileRows, task.row_end);
            if (tile.x1 == tile.x2 || task.y.first[begin] == task.y.first[end]) {
                tile.look_for_nan(begin, end);
                continue;
            }
            const int32_t last = min_i32(end, task.grid.rows - 1);
            tile.load_nodes(begin, known == begin ? begin + 1 : begin, last);
            known = last;
            tile.find_competing();
            tile.sum_up(begin, last);
            for (int32_t i = begin; i < end; ++i) sum_cell_row(tile, begin, i);
        }
    }
}

template <class T>
void draw_sums(const SumTask& task) {
    if (task.grid.resampled()) {
        draw_sums_of<T, true>(task);
    } else {
        draw_sums_of<T, false>(task);
    }
}

}  // namespace
}  // namespace fai::cpu::FAI_ISA
