// Query-mask postprocessing, written once and compiled per instruction set: class scores, and which nodes of
// a mask may be inside (instances.inl: masks; semantic.inl: the contest for pixels).

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

// ---- which nodes may be inside

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

}  // namespace
}  // namespace fai::cpu::FAI_ISA
