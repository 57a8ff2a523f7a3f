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

// Below this logit a probability is less than that.
inline constexpr float kFarLogit = -2.0f, kFarProbability = 0.1193f;

// Notes for every node row and block of the task who is inside everywhere there, who outside, and who below
// kFarLogit; and who has NaN anywhere.
template <class T>
void look_at_own(const SemanticTask& task) {
    const OwnTask& own = *task.own;
    const int64_t words = own_words(task.competitors);
    const int32_t last = min_i32(task.row_end, task.rows - 1);
    std::memset(own.bits, 0,
                static_cast<size_t>(own_bits(task.competitors, last - task.row_begin + 1, task.columns)) *
                    sizeof *own.bits);
    const F32 far = broadcast(kFarLogit);
    for (int32_t position = 0; position < task.competitors; ++position) {
        const F32 high = broadcast(own.surely[position].inside);
        const F32 low = broadcast(own.surely[position].outside);
        const int shift = position & 63;
        uint64_t* at = own.bits + (position >> 6);
        uint32_t nans = 0;
        const auto note = [&](const F32& v, uint32_t beyond) {
            nans |= bits(is_nan(v));
            at[0] |= uint64_t{(bits(v >= high) | beyond) == 0xffffu} << shift;
            at[words] |= uint64_t{(bits(v < low) | beyond) == 0xffffu} << shift;
            at[2 * words] |= uint64_t{(bits(v < far) | beyond) == 0xffffu} << shift;
            at += 3 * words;
        };
        for (int32_t row = task.row_begin; row <= last; ++row) {
            const T* source = static_cast<const T*>(task.logits) + task.query[position] * task.query_stride +
                              row * task.row_stride;
            int32_t left = task.columns;
            for (; left >= kLanes; left -= kBlockCells, source += kBlockCells) note(load(source), 0);
            if (left > 0) note(load_first(source, left), ~low_bits(left) & 0xffffu);
        }
        if (nans) task.has_nan[position] = 1;
    }
}

// What was noted of a cell row of a block, between two node rows.
class Noted {
  public:
    FAI_HD Noted(const SemanticTask& task, int32_t above, int32_t below, int32_t block)
        : competitors_(task.competitors), words_(own_words(task.competitors)) {
        const int64_t blocks = (task.columns + kBlockCells - 1) / kBlockCells;
        const auto at = [&](int32_t row) {
            return task.own->bits + ((row - task.row_begin) * blocks + block / kBlockCells) * 3 * words_;
        };
        above_ = at(above);
        below_ = at(below);
    }

    // Is one inside, and everybody else outside?
    FAI_HD bool is_decided() const {
        int inside = 0;
        for (int64_t w = 0; w < words_; ++w) {
            if (mixed(w)) return false;
            inside += __builtin_popcountll(above_[w] & below_[w]);
        }
        return inside == 1;
    }
    FAI_HD int32_t first_inside() const {
        int64_t w = 0;
        while (!(above_[w] & below_[w])) ++w;
        return static_cast<int32_t>(64 * w) + __builtin_ctzll(above_[w] & below_[w]);
    }
    template <class Use>
    FAI_HD void each_inside(const Use& use) const {
        for (int64_t w = 0; w < words_; ++w) each(w, above_[w] & below_[w], use);
    }
    // Those that are neither inside nor outside everywhere.
    template <class Use>
    FAI_HD void each_mixed(const Use& use) const {
        for (int64_t w = 0; w < words_; ++w) each(w, mixed(w), use);
    }

    // Those that are outside everywhere, but not far.
    template <class Use>
    FAI_HD void each_near(const Use& use) const {
        for (int64_t w = 0; w < words_; ++w) {
            const int64_t outside = words_ + w, far = 2 * words_ + w;
            each(w, above_[outside] & below_[outside] & ~(above_[far] & below_[far]), use);
        }
    }

  private:
    FAI_HD uint64_t mixed(int64_t w) const {
        const uint64_t known = (above_[w] & below_[w]) | (above_[words_ + w] & below_[words_ + w]);
        const int64_t left = competitors_ - 64 * w;
        return ~known & (left < 64 ? (uint64_t{1} << left) - 1 : ~uint64_t{0});
    }
    template <class Use>
    FAI_HD static void each(int64_t w, uint64_t ones, const Use& use) {
        for (; ones; ones &= ones - 1) use(static_cast<int32_t>(64 * w) + __builtin_ctzll(ones));
    }

    int32_t competitors_;
    int64_t words_;
    const uint64_t *above_, *below_;
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
template <bool of_logits>
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
            if constexpr (of_logits) m = math::sigmoid(m);
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
