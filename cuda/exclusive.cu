// Instances that share no pixel: which rows compete, a query with each of its classes being one, and which
// are kept. Who wins a pixel is in contest.cuh, what is a row's own in panoptic.cu, and the masks' way to the
// host in rows.cu.
//
// Bytes. Class logits are read twice, six times where more rows than queries are above the threshold, by one
// block; the mask logits of those that compete twice; labels are written, and read in the boxes of those that
// are kept.
#include <cstdint>

#include "csrc/math/panoptic.h"
#include "csrc/math/rows.h"
#include "cuda/contest.cuh"
#include "cuda/device.cuh"
#include "cuda/params.cuh"
#include "cuda/rows.cuh"
#include "cuda/warp.cuh"

namespace fai::cuda {
namespace {

// How many threads before this one have the flag, and in `total` how many of the block's; by all of its
// threads.
__device__ __forceinline__ int32_t before_in_block(bool flag, int32_t& total) {
    __shared__ int32_t of_warp[kWarps];
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    const unsigned those = __ballot_sync(kAllLanes, flag);
    if (lane == 0) of_warp[warp] = __popc(those);
    __syncthreads();
    int32_t before = __popc(those & ((1u << lane) - 1u));
    total = 0;
    for (int w = 0; w < kWarps; ++w) {
        if (w < warp) before += of_warp[w];
        total += of_warp[w];
    }
    __syncthreads();  // the next call's counts are the same
    return before;
}

// The bits of a score, which is not negative: in the same order as scores.
__device__ __forceinline__ uint32_t bits_of(float score) { return __float_as_uint(score); }

// As best_class_pairs() of the CPU: of all rows above the threshold the best, as many as there are queries,
// ties by query, then class; in order of falling score. Where not multi_label, a query has a row of its best
// class alone. By one block for each image.
template <class C>
__global__ void __launch_bounds__(kThreads)
    choose_rows(const ImageParams* __restrict__ params, const C* __restrict__ class_logits, int32_t queries,
                int32_t class_columns, bool softmax, bool multi_label) {
    __shared__ int32_t chosen[kMaxSemanticQueries];  // row, as query * classes + class
    __shared__ float score[kMaxSemanticQueries];
    __shared__ uint8_t has_row[kMaxSemanticQueries];
    __shared__ int32_t histogram[256];
    __shared__ uint32_t prefix;
    __shared__ int32_t wanted;
    const ImageParams& image = params[blockIdx.y];
    if (!image.active) return;
    const C* const logits = class_logits + static_cast<int64_t>(blockIdx.y) * queries * class_columns;
    const int32_t classes = multi_label ? class_columns - softmax : 1;
    const int32_t rows = queries * classes;
    const auto class_of = [&](int32_t row) {
        return multi_label ? row % classes : image.scored[row].class_id;
    };
    const auto logit_of = [&](int32_t row) {
        return to_float(logits[static_cast<int64_t>(row / classes) * class_columns + class_of(row)]);
    };
    // -1 where it is not above the threshold.
    const auto score_of = [&](int32_t row) {
        const QueryState& query = image.scored[row / classes];
        if ((query.rejected && query.rejected != kNanInMask) || !math::above(query.score, image.threshold)) {
            return -1.0f;
        }
        const float logit = logit_of(row);
        const double value =
            softmax ? math::softmax_score(logit, query.largest, query.total) : math::sigmoid_score(logit);
        return math::above(value, image.threshold) ? static_cast<float>(value) : -1.0f;
    };

    if (threadIdx.x == 0) wanted = 0;
    __syncthreads();
    int32_t mine = 0;
    for (int32_t row = threadIdx.x; row < rows; row += kThreads) mine += score_of(row) >= 0.0f;
    mine = warp_reduce_sum(mine);
    if ((threadIdx.x & 31) == 0 && mine) atomicAdd(&wanted, mine);
    __syncthreads();
    const bool too_many = wanted > queries;
    __syncthreads();
    // The score of the last that is taken, byte by byte from the highest on; `wanted` then is how many of it
    // are.
    if (threadIdx.x == 0) {
        prefix = 0;
        wanted = queries;
    }
    uint32_t known = 0;
    for (int shift = 24; too_many && shift >= 0; shift -= 8) {
        for (int32_t k = threadIdx.x; k < 256; k += kThreads) histogram[k] = 0;
        __syncthreads();
        for (int32_t row = threadIdx.x; row < rows; row += kThreads) {
            const float value = score_of(row);
            if (value >= 0.0f && (bits_of(value) & known) == prefix) {
                atomicAdd(&histogram[bits_of(value) >> shift & 255u], 1);
            }
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int32_t k = 255;
            for (; histogram[k] < wanted; --k) wanted -= histogram[k];
            prefix |= static_cast<uint32_t>(k) << shift;
        }
        known |= 255u << shift;
        __syncthreads();
    }
    __syncthreads();

    // In order of query and class.
    int32_t count = 0, equal = 0;
    for (int32_t first = 0; first < rows; first += kThreads) {
        const int32_t row = first + static_cast<int32_t>(threadIdx.x);
        const float value = row < rows ? score_of(row) : -1.0f;
        if (!__syncthreads_or(value >= 0.0f)) continue;
        const bool is_last = too_many && value >= 0.0f && bits_of(value) == prefix;
        int32_t here = 0;
        const bool enough = equal + before_in_block(is_last, here) >= wanted;
        equal += here;
        const bool taken = value >= 0.0f && !(is_last && enough) && (!too_many || bits_of(value) >= prefix);
        const int32_t at = count + before_in_block(taken, here);
        if (taken) {
            chosen[at] = row;
            score[at] = value;
        }
        count += here;
    }
    for (int32_t q = threadIdx.x; q < queries; q += kThreads) has_row[q] = 0;
    __syncthreads();

    for (int32_t slot = threadIdx.x; slot < count; slot += kThreads) {
        int32_t rank = 0;
        for (int32_t other = 0; other < count; ++other) {
            rank += score[other] > score[slot] || (score[other] == score[slot] && other < slot);
        }
        const int32_t q = chosen[slot] / classes;
        has_row[q] = 1;
        const QueryState& query = image.scored[q];
        QueryState& row = image.queries[rank];
        row = query;
        row.best = logit_of(chosen[slot]);
        row.class_id = class_of(chosen[slot]);
        row.score = score[slot];
        row.query = q;
        image.candidates[slot] = slot;
    }
    __syncthreads();
    // Whose masks nobody needs.
    for (int32_t q = threadIdx.x; q < queries; q += kThreads) {
        if (!has_row[q]) image.scored[q].rejected = 1;
    }
    if (threadIdx.x == 0) image.counters[kCandidates] = count;
}

// A block per tile; three of them on a multiprocessor leave it registers enough. The last of all knows which
// rows are kept.
template <class T, class L>
__global__ void __launch_bounds__(kThreads, 3)
    exclusive_argmax(const ImageParams* __restrict__ params, const T* __restrict__ mask_logits,
                     int32_t queries, int32_t rows, int32_t columns, double overlap_threshold) {
    const ImageParams& image = params[blockIdx.y];
    if (!image.active) return;
    const int32_t competitors = image.counters[kCandidates];
    decide<false, T, L>(image, mask_logits + static_cast<int64_t>(blockIdx.y) * queries * rows * columns,
                        competitors, rows, columns, ByLogit{});
    if (!last_to_arrive(image.counters + kDone, static_cast<int32_t>(gridDim.x))) return;
    for (int32_t slot = threadIdx.x; slot < competitors; slot += kThreads) {
        QueryState& row = image.queries[slot];
        if (!math::is_segment(static_cast<int64_t>(row.area), static_cast<int64_t>(row.own),
                              overlap_threshold)) {
            row.rejected = 1;
        }
    }
    __threadfence();
    __syncthreads();
    finish<true>(image, queries, false, 1);
}

template <class T, class L>
void launch_contest(cudaStream_t stream, const PostprocessLaunch& l) {
    const GraphSpec& spec = *l.spec;
    const int tiles =
        ((spec.rows + kTileCells - 1) / kTileCells) * ((spec.columns + kTileCells - 1) / kTileCells);
    launch(stream, dim3(tiles, spec.batch), dim3(kThreads), exclusive_argmax<T, L>, l.params,
           static_cast<const T*>(l.mask_logits), spec.queries, spec.rows, spec.columns,
           spec.rules.overlap_threshold);
}

template <class C>
void launch_choice_of(cudaStream_t stream, const PostprocessLaunch& l) {
    const GraphSpec& spec = *l.network;
    launch(stream, dim3(1, spec.batch), dim3(kThreads), choose_rows<C>, l.params,
           static_cast<const C*>(l.class_logits), spec.queries, spec.class_columns, spec.softmax,
           spec.rules.multi_label);
}

}  // namespace

void launch_choice(cudaStream_t stream, const PostprocessLaunch& l) {
    if (l.network->class_logits == DType::f16) {
        launch_choice_of<__half>(stream, l);
    } else {
        launch_choice_of<float>(stream, l);
    }
}

template <class T>
void launch_exclusive(cudaStream_t stream, const PostprocessLaunch& l) {
    launch_own<T>(stream, l);
    if (narrow(*l.spec)) {
        launch_contest<T, uint8_t>(stream, l);
    } else {
        launch_contest<T, uint16_t>(stream, l);
    }
}

template void launch_exclusive<float>(cudaStream_t, const PostprocessLaunch&);
template void launch_exclusive<__half>(cudaStream_t, const PostprocessLaunch&);

}  // namespace fai::cuda
