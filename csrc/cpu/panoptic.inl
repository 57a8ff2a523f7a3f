// Panoptic results: which pixels are a query's own, and labels that change hands. Written once and compiled
// per instruction set. Who wins a pixel is in semantic.inl, which uses what is noted here.
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

static_assert(kBlockCells == kLanes - 1);

// Those outside are told apart by how far: below kLowLogit[level] a probability is less than
// kLowProbability[level].
inline constexpr int kLevels = 3;
inline constexpr float kLowLogit[kLevels] = {0.0f, -2.0f, -5.0f};
inline constexpr float kLowProbability[kLevels] = {1.0f, 0.1193f, 0.0067f};

// Notes who is inside everywhere, who outside, and who below which level, for every block and row of logits
// that the task's nodes lie between; and who has NaN there. What lies between logits is never beyond them, so
// that it holds for nodes in another grid as well.
template <class T>
void look_at_own(const SemanticTask& task) {
    const OwnTask& own = *task.own;
    const NodeGrid& grid = task.grid;
    const int64_t words = own_words(task.competitors);
    const int32_t first = grid.first_logits(task.row_begin);
    const int32_t last = grid.last_logits(min_i32(task.row_end, grid.rows - 1));
    std::memset(own.bits, 0,
                static_cast<size_t>(own_bits(task.competitors, grid, task.row_begin, task.row_end)) *
                    sizeof *own.bits);
    const F32 levels[] = {broadcast(kLowLogit[1]), broadcast(kLowLogit[2])};
    for (int32_t position = 0; position < task.competitors; ++position) {
        const F32 high = broadcast(own.surely[position].inside);
        const F32 low = broadcast(own.surely[position].outside);
        const int shift = position & 63;
        uint64_t* at = own.bits + (position >> 6);
        uint32_t nans = 0;
        // Of the first `count` values alone, of `left` in the row.
        const auto look_at_first = [&](const T* from, int32_t count, int32_t left) {
            uint32_t is[kOwnBits] = {0xffffu, 0xffffu, 0xffffu, 0xffffu};
            for (; count > 0; count -= kLanes, left -= kLanes, from += kLanes) {
                const uint32_t beyond = ~low_bits(count) & 0xffffu;
                const F32 v = load_first(from, left);
                nans |= bits(is_nan(v));
                is[0] &= bits(v >= high) | beyond;
                is[1] &= bits(v < low) | beyond;
                is[2] &= bits(v < levels[0]) | beyond;
                is[3] &= bits(v < levels[1]) | beyond;
            }
            for (int i = 0; i < kOwnBits; ++i) at[i * words] |= uint64_t{is[i] == 0xffffu} << shift;
            at += kOwnBits * words;
        };
        for (int32_t row = first; row <= last; ++row) {
            const T* source = static_cast<const T*>(grid.logits.data) +
                              task.query[position] * task.query_stride + row * grid.logits.row_stride;
            if (grid.resampled()) {
                for (int32_t block = 0; block < grid.columns; block += kBlockCells) {
                    const int32_t end = min_i32(block + kBlockCells, grid.columns - 1);
                    const int32_t from = grid.cell[block];
                    const int32_t count = min_i32(grid.cell[end] + 2, grid.logits.columns) - from;
                    look_at_first(source + from, count, grid.logits.columns - from);
                }
            } else {
                int32_t left = grid.columns;
                for (; left >= kLanes; left -= kBlockCells, source += kBlockCells) {
                    look_at_first(source, kLanes, kLanes);
                }
                if (left > 0) look_at_first(source, left, left);
            }
        }
        if (nans) task.has_nan[position] = 1;
    }
}

// What was noted of a cell row of a block, between two node rows. Until the next one is made.
class Noted {
  public:
    FAI_HD Noted(const SemanticTask& task, int32_t above, int32_t below, int32_t block)
        : competitors_(task.competitors), words_(own_words(task.competitors)) {
        const NodeGrid& grid = task.grid;
        const int64_t blocks = (grid.columns + kBlockCells - 1) / kBlockCells;
        const int32_t base = grid.first_logits(task.row_begin);
        const int32_t all = grid.last_logits(min_i32(task.row_end, grid.rows - 1)) - base + 1;
        uint64_t* const together = task.own->bits + all * blocks * kOwnBits * words_;
        const auto at = [&](int32_t row) {
            return task.own->bits + ((row - base) * blocks + block / kBlockCells) * kOwnBits * words_;
        };
        const int32_t first = grid.first_logits(above);
        last_ = grid.last_logits(below);
        for (int64_t w = 0; w < kOwnBits * words_; ++w) together[w] = at(first)[w];
        for (int32_t row = first + 1; row <= last_; ++row) {
            for (int64_t w = 0; w < kOwnBits * words_; ++w) together[w] &= at(row)[w];
        }
        inside_ = together;
        outside_ = together + words_;
        low_[0] = together + 2 * words_;
        low_[1] = together + 3 * words_;
    }

    // The last row of logits that it holds for.
    FAI_HD int32_t last() const { return last_; }
    // Is one inside, and everybody else outside?
    FAI_HD bool is_decided() const {
        int inside = 0;
        for (int64_t w = 0; w < words_; ++w) {
            if (mixed(w)) return false;
            inside += __builtin_popcountll(inside_[w]);
        }
        return inside == 1;
    }
    FAI_HD int32_t first_inside() const {
        int64_t w = 0;
        while (!inside_[w]) ++w;
        return static_cast<int32_t>(64 * w) + __builtin_ctzll(inside_[w]);
    }
    template <class Use>
    FAI_HD void each_inside(const Use& use) const {
        for (int64_t w = 0; w < words_; ++w) each(w, inside_[w], use);
    }
    // Those that are neither inside nor outside everywhere.
    template <class Use>
    FAI_HD void each_mixed(const Use& use) const {
        for (int64_t w = 0; w < words_; ++w) each(w, mixed(w), use);
    }
    // Those that are outside everywhere, and below this level but not the next one; until one says that it is
    // enough.
    template <class Use>
    FAI_HD void each_outside(int level, const Use& use) const {
        for (int64_t w = 0; w < words_; ++w) {
            uint64_t those = outside_[w];
            if (level > 0) those &= low_[level - 1][w];
            if (level < kLevels - 1) those &= ~low_[level][w];
            for (; those; those &= those - 1) {
                if (!use(static_cast<int32_t>(64 * w) + __builtin_ctzll(those))) return;
            }
        }
    }

  private:
    FAI_HD uint64_t mixed(int64_t w) const {
        const int64_t left = competitors_ - 64 * w;
        return ~(inside_[w] | outside_[w]) & (left < 64 ? (uint64_t{1} << left) - 1 : ~uint64_t{0});
    }
    template <class Use>
    FAI_HD static void each(int64_t w, uint64_t ones, const Use& use) {
        for (; ones; ones &= ones - 1) use(static_cast<int32_t>(64 * w) + __builtin_ctzll(ones));
    }

    int32_t competitors_, last_;
    int64_t words_;
    const uint64_t *inside_, *outside_, *low_[kLevels - 1];
};

// Calls use(begin, end) for every run of ones.
template <class Use>
FAI_HD void each_run(uint32_t ones, const Use& use) {
    while (ones) {
        const int begin = __builtin_ctz(ones);
        const int length = __builtin_ctz(~(ones >> begin));
        use(begin, begin + length);
        ones = ones >> (begin + length) << (begin + length);
    }
}

// The pixels of cells [a, b) of a block that are a query's own, `above` and `below` its nodes.
template <bool of_logits, bool by_logit>
int64_t count_in_cells(const SemanticTask& task, const F32& above, const F32& below, float weight,
                       int32_t block, int32_t i, int32_t a, int32_t b) {
    const int32_t x1 = task.x.first[block + a], x2 = task.x.first[block + b];
    const F32 weights = broadcast(weight), threshold = broadcast(task.mask_threshold);
    const F32 above_next = next_lane(above), below_next = next_lane(below);
    int64_t count = 0;
    for (int32_t x = x1; x < x2; x += kLanes) {
        const uint32_t lanes = low_bits(min_i32(x2 - x, kLanes));
        const I32 index = load(task.x.cell + x) - broadcast_int(block);
        const F32 across = load(task.x.fraction + x);
        const F32 above_left = permute(above, index), above_right = permute(above_next, index);
        const F32 below_left = permute(below, index), below_right = permute(below_next, index);
        for (int32_t y = task.y.first[i]; y < task.y.first[i + 1]; ++y) {
            const F32 down = broadcast(task.y.fraction[y]);
            const F32 left = math::lerp(above_left, below_left, down);
            const F32 right = math::lerp(above_right, below_right, down);
            F32 m = math::lerp(left, right, across);
            if constexpr (of_logits && !by_logit) m = math::sigmoid(m);
            count += __builtin_popcount(bits(math::inside(math::own_worth(m, weights), threshold)) & lanes);
        }
    }
    return count;
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
