// From a network's outputs to rows and packed masks, or to labels: docs/postprocess.md on the GPU. What a
// pixel is comes from csrc/math; here, in instances.cu, semantic.cu and rows.cu, is who walks over pixels.
// This file has what both kinds of results begin with: class scores, and the search for NaN.
//
// Bytes. Class logits, and for semantic results all mask logits, once: 5 MB of 100 queries of 160 x 160 in
// float16, 1 us of an H200's memory.
#include <cstdint>

#include "csrc/math/masks.h"
#include "csrc/math/panoptic.h"
#include "csrc/math/rows.h"
#include "csrc/math/sampling.h"
#include "cuda/device.cuh"
#include "cuda/params.cuh"
#include "cuda/warp.cuh"

namespace fai::cuda {
namespace {

// ---- class scores (step 1), and whether a mask has NaN

// One warp; as the CPU's class_score, with its sixteen lanes, so that scores have the same bits.
template <class T>
__device__ void score(const T* logits, int32_t columns, bool softmax, QueryState& query) {
    const int lane = threadIdx.x & 31;
    const int32_t classes = softmax ? columns - 1 : columns;
    float best = -infinity();
    bool nan = false;
    for (int32_t k = lane; k < classes; k += 32) {
        const float value = to_float(logits[k]);
        nan |= is_nan(value);
        best = value > best ? value : best;
    }
    nan = __any_sync(kAllLanes, nan);
    best = warp_reduce_max(best);
    int32_t class_id = INT32_MAX;
    for (int32_t k = lane; k < classes && class_id == INT32_MAX; k += 32) {
        if (to_float(logits[k]) >= best) class_id = k;
    }
    class_id = warp_reduce_min(class_id);

    double value;
    float largest = best, total = 1.0f;
    if (softmax) {
        const float last = to_float(logits[classes]);
        largest = last > best ? last : best;
        nan = nan || is_nan(last) || largest == -infinity() || largest == infinity();
        float sum = 0.0f;
        for (int32_t k = lane; k < columns && lane < 16; k += 16) {
            const float x = to_float(logits[k]) - largest;
            sum += x >= -87.0f ? math::exponential(math::maximum(x, -87.0f)) : 0.0f;
        }
        for (int step = 8; step > 0; step /= 2) sum += __shfl_down_sync(kAllLanes, sum, step);
        total = __shfl_sync(kAllLanes, sum, 0);
        value = math::softmax_score(best, largest, total);
    } else {
        value = math::sigmoid_score(best);
    }
    if (lane != 0) return;
    query.best = best;
    query.largest = largest;
    query.total = total;
    query.class_id = class_id == INT32_MAX ? 0 : class_id;
    query.score = static_cast<float>(value);
    query.rejected = nan || is_nan(query.score);
    query.row_begin = query.column_begin = INT32_MAX;
    query.row_end = query.column_end = 0;
    query.x1 = query.y1 = INT32_MAX;
    query.x2 = query.y2 = 0;
    query.area = query.sum = query.nodes = query.own = query.lost = 0;
}

// Is one of these bytes' values NaN?
__device__ __forceinline__ bool has_nan(uint32_t word, const float*) {
    return (word & 0x7fffffffu) > 0x7f800000u;
}
__device__ __forceinline__ bool has_nan(uint32_t word, const __half*) {
    return (word & 0x7fffu) > 0x7c00u || (word >> 16 & 0x7fffu) > 0x7c00u;
}

// A thread's share of a plane; sixteen bytes at a time where the plane consists of such.
template <class T>
__device__ __forceinline__ bool scan_for_nan(const T* mask, int64_t plane) {
    bool nan = false;
    if (plane * static_cast<int64_t>(sizeof(T)) % 16 == 0) {
        const uint4* const vectors = reinterpret_cast<const uint4*>(mask);
        for (int64_t i = threadIdx.x; i < plane * static_cast<int64_t>(sizeof(T)) / 16; i += kThreads) {
            const uint4 v = vectors[i];
            nan |= has_nan(v.x, mask) | has_nan(v.y, mask) | has_nan(v.z, mask) | has_nan(v.w, mask);
        }
    } else {
        for (int64_t i = threadIdx.x; i < plane; i += kThreads) nan |= is_nan(to_float(mask[i]));
    }
    return nan;
}

// Who competes: nobody yet, queries that are sure of a class, or rows that launch_choice() makes of all
// queries.
enum class Competitors { none, queries, rows };

// A block per query. What is a candidate differs with `competitors`, which takes no registers from the
// others.
template <class T, class C, Competitors competitors>
__global__ void __launch_bounds__(kThreads)
    score_queries(const ImageParams* __restrict__ params, const T* __restrict__ mask_logits,
                  const C* __restrict__ class_logits, int32_t queries, int64_t plane, int32_t class_columns,
                  bool softmax, bool semantic, bool scan) {
    const ImageParams& image = params[blockIdx.y];
    if (!image.active) return;
    const int32_t q = blockIdx.x;
    const int64_t index = static_cast<int64_t>(blockIdx.y) * queries + q;
    bool nan = false;
    if (scan) nan = scan_for_nan(mask_logits + index * plane, plane);
    nan = __syncthreads_or(nan);
    if (threadIdx.x >= 32) return;
    QueryState& query = competitors == Competitors::rows ? image.scored[q] : image.queries[q];
    score(class_logits + index * class_columns, class_columns, softmax, query);
    if (threadIdx.x != 0) return;
    if constexpr (competitors == Competitors::rows) {
        // It takes its places among the rows all the same.
        if (nan && !query.rejected) query.rejected = kNanInMask;
        return;
    }
    if (nan) query.rejected = 1;
    bool candidate;
    if constexpr (competitors == Competitors::queries) {
        candidate = math::competes(query.best >= query.largest, query.score, image.threshold);
        if (!candidate) query.rejected = 1;
    } else {
        candidate =
            !semantic && image.mask_threshold_reachable && math::perhaps_above(query.score, image.threshold);
    }
    if (candidate && !query.rejected) {
        image.candidates[atomicAdd(image.counters + kCandidates, 1)] = q;
    }
}

template <class T, class C>
void launch_scores(cudaStream_t stream, const PostprocessLaunch& l) {
    const GraphSpec& spec = *l.network;
    auto* kernel = score_queries<T, C, Competitors::none>;
    if (spec.rules.panoptic) kernel = score_queries<T, C, Competitors::queries>;
    if (spec.rules.exclusive) kernel = score_queries<T, C, Competitors::rows>;
    launch(stream, dim3(spec.queries, spec.batch), dim3(kThreads), kernel, l.params,
           static_cast<const T*>(l.network_logits), static_cast<const C*>(l.class_logits), spec.queries,
           static_cast<int64_t>(spec.rows) * spec.columns, spec.class_columns, spec.softmax,
           spec.predict_all_pixels, writes_labels(spec) || spec.rules.resizes_logits());
}

template <class T>
void launch_scores(cudaStream_t stream, const PostprocessLaunch& l) {
    if (l.network->class_logits == DType::f16) {
        launch_scores<T, __half>(stream, l);
    } else {
        launch_scores<T, float>(stream, l);
    }
}

template <class T>
void launch_masks(cudaStream_t stream, const PostprocessLaunch& l) {
    const GraphSpec& spec = *l.spec;
    if (spec.rules.by_sum) {
        launch_semantic_sum<T>(stream, l);
    } else if (spec.rules.panoptic) {
        launch_panoptic<T>(stream, l);
    } else if (spec.rules.exclusive) {
        launch_exclusive<T>(stream, l);
    } else if (spec.predict_all_pixels) {
        launch_semantic<T>(stream, l);
    } else {
        launch_instances<T>(stream, l);
    }
}

}  // namespace

void launch_postprocess(cudaStream_t stream, const PostprocessLaunch& l) {
    if (l.network->mask_logits == DType::f16) {
        launch_scores<__half>(stream, l);
    } else {
        launch_scores<float>(stream, l);
    }
    if (l.network->rules.exclusive) launch_choice(stream, l);
    if (l.network->rules.resizes_logits()) launch_resample(stream, l);
    if (l.spec->mask_logits == DType::f16) {
        launch_masks<__half>(stream, l);
    } else {
        launch_masks<float>(stream, l);
    }
    // Labels are on their way as soon as a row of tiles is decided.
    if (!l.spec->predict_all_pixels) launch_pack(stream, l);
}

}  // namespace fai::cuda
