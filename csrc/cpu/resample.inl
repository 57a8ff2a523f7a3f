// Mask logits at the nodes of another grid, written once and compiled per instruction set.
//
// Bytes. A plane's logits are read once (h * w * itemsize); what becomes of them is written (h' * w' * 4)
// where all of it is asked for. Masks of instances take it a row at a time, and no such plane is made.
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
void resample(const ResampleTask& task) {
    const int32_t columns = task.grid.columns;
    for (int32_t y = 0; y < task.grid.rows; ++y) {
        float* const out = task.out + static_cast<int64_t>(y) * columns;
        resample_row<T>(task.grid, y, 0, columns, task.scratch, out,
                        [](const F32& logits) { return logits; });
        if (!task.down) continue;
        const F32 down = broadcast(task.down[y]);
        for (int32_t x = 0; x < columns; x += kLanes) {
            const int n = min_i32(columns - x, kLanes);
            store_first(out + x, math::sigmoid(load_first(out + x, n)) * (down * load(task.across + x)), n);
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

}  // namespace
}  // namespace fai::cpu::FAI_ISA
