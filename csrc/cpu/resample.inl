// Mask logits at the nodes of another grid, written once and compiled per instruction set.
//
// Bytes. No plane of them is ever made: masks of instances take them a row at a time, contests and sums the
// 16 nodes of a block, from logits (h * w * itemsize) that are still near.
#pragma once

#include "csrc/cpu/kernels.h"
#include "csrc/cpu/simd.h"
#include "csrc/math/masks.h"
#include "csrc/math/sampling.h"

namespace fai::cpu::FAI_ISA {
namespace {

// Nodes [left, right) of a row of a resampled grid, each as of(logit). Down first, then across: the order in
// which cuda/resample.cu rounds as well. `line` has resample_scratch() floats.
template <class T, class Of>
FAI_HD void resample_row(const NodeGrid& grid, int32_t y, int32_t left, int32_t right, float* line,
                         float* out, const Of& of) {
    const T* logits = static_cast<const T*>(grid.logits.data);
    const int32_t rows = grid.logits.rows, columns = grid.logits.columns;
    const Tap tap = grid.row[y];
    const T* above = logits + tap.index * grid.logits.row_stride;
    const T* below = logits + min_i32(tap.index + 1, rows - 1) * grid.logits.row_stride;
    const F32 down = broadcast(tap.fraction);
    const int32_t end = min_i32(grid.cell[right - 1] + 2, columns);
    for (int32_t x = grid.cell[left]; x < end; x += kLanes) {
        const int n = min_i32(columns - x, kLanes);
        const F32 a = math::bounded(load_first(above + x, n)), b = math::bounded(load_first(below + x, n));
        store(line + x, math::lerp(a, b, down));
    }
    // The last cell lies between the last node and itself.
    if (end == columns) line[columns] = line[columns - 1];
    for (int32_t x = left; x < right; x += kLanes) {
        const int n = min_i32(right - x, kLanes);
        const int32_t base = grid.cell[x];
        if (grid.cell[x + n - 1] - base < kLanes) {
            const I32 index = (load(grid.cell + x) - broadcast_int(base)) & broadcast_int(kLanes - 1);
            const F32 a = permute(load(line + base), index), b = permute(load(line + base + 1), index);
            store_first(out + (x - left), of(math::lerp(a, b, load(grid.fraction + x))), n);
        } else {
            alignas(64) float lane[kLanes] = {};
            for (int i = 0; i < n; ++i) {
                const float* const at = line + grid.cell[x + i];
                lane[i] = math::lerp(at[0], at[1], grid.fraction[x + i]);
            }
            store_first(out + (x - left), of(load(lane)), n);
        }
    }
}

template <class T>
void weigh(const WeighTask& task) {
    const int32_t columns = task.grid.columns;
    for (int32_t y = 0; y < task.grid.rows; ++y) {
        float* const out = task.out + static_cast<int64_t>(y) * columns;
        resample_row<T>(task.grid, y, 0, columns, task.scratch, out,
                        [](const F32& logits) { return math::sigmoid(logits); });
        const F32 down = broadcast(task.down[y]);
        for (int32_t x = 0; x < columns; x += kLanes) {
            const int n = min_i32(columns - x, kLanes);
            store_first(out + x, load_first(out + x, n) * (down * load(task.across + x)), n);
        }
    }
}

// Nodes [left, right) of a row, each as of(logit).
template <class T, class Of>
FAI_HD void node_row(const NodeGrid& grid, int32_t y, int32_t left, int32_t right, float* line, float* out,
                     const Of& of) {
    if (grid.resampled()) {
        resample_row<T>(grid, y, left, right, line, out, of);
        return;
    }
    const T* source = static_cast<const T*>(grid.logits.data) + y * grid.logits.row_stride;
    for (int32_t x = left; x < right; x += kLanes) {
        store(out + (x - left), of(load_first(source + x, min_i32(right - x, kLanes))));
    }
}

// The logits at the 16 nodes of one block's rows. Beyond the grid's last node it is repeated.
template <class T, bool resampled>
class BlockNodes {
  public:
    // `line` has resample_scratch() floats.
    FAI_HD BlockNodes(const NodeGrid& grid, float* line) : grid_(grid), line_(line) {}

    FAI_HD void enter(int32_t block) { enter(block, grid_.columns); }
    // Nodes from `end` on are not there.
    FAI_HD void enter(int32_t block, int32_t end) {
        block_ = block;
        loaded_ = min_i32(end - block, kLanes);
        if constexpr (!resampled) return;
        const int32_t last = grid_.logits.columns - 1;
        first_ = grid_.cell[block];
        logits_ = min_i32(grid_.logits.columns - first_, kLanes);
        is_narrow_ = min_i32(grid_.cell[block + loaded_ - 1] + 1, last) - first_ < kLanes;
        if (!is_narrow_) return;
        // The last cell lies between the last logit and itself.
        alignas(64) int32_t right[kLanes];
        for (int i = 0; i < kLanes; ++i) right[i] = min_i32(grid_.cell[block + i] + 1, last) - first_;
        left_ = load(grid_.cell + block) - broadcast_int(first_);
        right_ = load(static_cast<const int32_t*>(right));
        fraction_ = load(grid_.fraction + block);
    }

    // `offset`: how many values the query's logits lie behind the first one's. Sets `nan` where there is one.
    FAI_HD F32 row(int64_t offset, int32_t y, bool& nan) const {
        const T* const data = static_cast<const T*>(grid_.logits.data);
        if constexpr (resampled) return resampled_row(data + offset, y, nan);
        const T* const from = data + (offset + y * grid_.logits.row_stride + block_);
        F32 v;
        if (loaded_ == kLanes) {
            v = load(from);
        } else {
            alignas(64) float lane[kLanes];
            store(lane, load_first(from, loaded_));
            for (int i = loaded_; i < kLanes; ++i) lane[i] = lane[loaded_ - 1];
            v = load(static_cast<const float*>(lane));
        }
        nan |= any(is_nan(v));
        return v;
    }

    // Where the row is, or begins to become, in memory.
    FAI_HD const T* source(int64_t offset, int32_t y) const {
        const int32_t column = resampled ? first_ : block_;
        return static_cast<const T*>(grid_.logits.data) +
               (offset + grid_.first_logits(y) * grid_.logits.row_stride + column);
    }

    FAI_HD int32_t loaded() const { return loaded_; }

  private:
    FAI_HD F32 resampled_row(const T* logits, int32_t y, bool& nan) const {
        const Tap tap = grid_.row[y];
        const T* const above = logits + tap.index * grid_.logits.row_stride + first_;
        const T* const below =
            logits + min_i32(tap.index + 1, grid_.logits.rows - 1) * grid_.logits.row_stride + first_;
        if (is_narrow_) {
            const F32 a = load_first(above, logits_), b = load_first(below, logits_);
            nan |= any(is_nan(a) | is_nan(b));
            const F32 between = math::lerp(math::bounded(a), math::bounded(b), broadcast(tap.fraction));
            return math::lerp(permute(between, left_), permute(between, right_), fraction_);
        }
        return wide_row(logits, y, nan);
    }

    // Where the logits are so many that the grid's are fewer.
    __attribute__((noinline)) F32 wide_row(const T* logits, int32_t y, bool& nan) const {
        NodeGrid grid = grid_;
        grid.logits.data = logits;
        const int32_t end = min_i32(grid.cell[block_ + loaded_ - 1] + 2, grid.logits.columns);
        for (int32_t row : {grid.first_logits(y), grid.last_logits(y)}) {
            const T* const from = logits + row * grid.logits.row_stride;
            for (int32_t x = first_; x < end; x += kLanes) {
                nan |= any(is_nan(load_first(from + x, min_i32(end - x, kLanes))));
            }
        }
        alignas(64) float lane[kLanes];
        resample_row<T>(grid, y, block_, block_ + loaded_, line_, lane, [](const F32& v) { return v; });
        for (int i = loaded_; i < kLanes; ++i) lane[i] = lane[loaded_ - 1];
        return load(static_cast<const float*>(lane));
    }

    const NodeGrid& grid_;
    float* const line_;
    int32_t block_ = 0, loaded_ = 0;
    // Resampled: the first of the logits that the block's nodes lie between, how many can be loaded at once,
    // and where each node lies among those, if they are enough.
    int32_t first_ = 0, logits_ = 0;
    bool is_narrow_ = false;
    I32 left_, right_;
    F32 fraction_;
};

}  // namespace
}  // namespace fai::cpu::FAI_ISA
