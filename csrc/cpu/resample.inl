// Mask logits at the nodes of another grid, written once and compiled per instruction set.
//
// Bytes. A plane's logits are read once (h * w * itemsize), what becomes of them is written (h' * w' * 4).

#include "csrc/cpu/kernels.h"
#include "csrc/cpu/simd.h"
#include "csrc/math/masks.h"
#include "csrc/math/sampling.h"

namespace fai::cpu::FAI_ISA {
namespace {

// Down first, then across: the order in which cuda/resample.cu rounds as well.
template <class T>
void resample(const ResampleTask& task) {
    const T* logits = static_cast<const T*>(task.logits.data);
    const int32_t rows = task.logits.rows, columns = task.logits.columns;
    float* const line = task.scratch;
    for (int32_t y = 0; y < task.rows; ++y) {
        const Tap tap = task.row[y];
        const T* above = logits + tap.index * task.logits.row_stride;
        const T* below = logits + min_i32(tap.index + 1, rows - 1) * task.logits.row_stride;
        const F32 down = broadcast(tap.fraction);
        for (int32_t x = 0; x < columns; x += kLanes) {
            const int n = min_i32(columns - x, kLanes);
            const F32 a = math::bounded(load_first(above + x, n)),
                      b = math::bounded(load_first(below + x, n));
            store(line + x, math::lerp(a, b, down));
        }
        // The last cell lies between the last node and itself.
        line[columns] = line[columns - 1];
        float* const out = task.out + static_cast<int64_t>(y) * task.columns;
        for (int32_t x = 0; x < task.columns; x += kLanes) {
            const int n = min_i32(task.columns - x, kLanes);
            const int32_t base = task.cell[x];
            if (task.cell[x + n - 1] - base < kLanes) {
                const I32 index = (load(task.cell + x) - broadcast_int(base)) & broadcast_int(kLanes - 1);
                const F32 a = permute(load(line + base), index), b = permute(load(line + base + 1), index);
                store_first(out + x, math::lerp(a, b, load(task.fraction + x)), n);
            } else {
                for (int i = 0; i < n; ++i) {
                    const float* const at = line + task.cell[x + i];
                    out[x + i] = math::lerp(at[0], at[1], task.fraction[x + i]);
                }
            }
        }
    }
}

}  // namespace
}  // namespace fai::cpu::FAI_ISA
