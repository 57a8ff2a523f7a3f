// Which rows are kept (steps 4 to 6): the end of the kernel whose last block calls it.
#pragma once

#include <cstdint>

#include "csrc/math/rows.h"
#include "cuda/params.cuh"
#include "cuda/warp.cuh"

namespace fai::cuda {

// Which queries are kept, and where their masks go; by one block, when areas, boxes and sums are complete.
// Of `exclusive` rows several may be of one query.
template <bool exclusive = false>
__device__ __forceinline__ void finish(const ImageParams& image, int32_t queries, bool semantic,
                                       int64_t min_area = math::kMinArea) {
    __shared__ int32_t rows_of_warp[kWarps];
    __shared__ unsigned long long words_of_warp[kWarps];
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    const int32_t candidates = semantic ? queries : image.counters[kCandidates];
    int32_t rows = 0;
    unsigned long long words = 0;
    for (int32_t first = 0; first < candidates; first += kThreads) {
        const int32_t slot = first + static_cast<int32_t>(threadIdx.x);
        bool keep = false;
        unsigned long long size = 0;
        const QueryState* query = nullptr;
        if (slot < candidates) {
            query = image.queries + (semantic ? slot : image.candidates[slot]);
            if (!query->rejected && math::enough_pixels(static_cast<int64_t>(query->area), min_area)) {
                double score = query->score;
                if (image.use_mask_score) {
                    score =
                        math::fused_score(score, static_cast<double>(query->sum) * kSumUnit,
                                          static_cast<int64_t>(image.nearest ? query->nodes : query->area),
                                          image.mask_score_epsilon);
                }
                keep = math::perhaps_above(score, image.threshold);
                const int64_t across = (query->x2 + 63) / 64 - query->x1 / 64;
                if (keep && !semantic)
                    size = static_cast<unsigned long long>(across * (query->y2 - query->y1));
            }
        }
        // Exclusive sums over the block: of kept rows, and of words.
        const unsigned those = __ballot_sync(kAllLanes, keep);
        int32_t at = __popc(those & ((1u << lane) - 1u));
        unsigned long long offset = size;
        for (int step = 1; step < 32; step *= 2) {
            const unsigned long long before = __shfl_up_sync(kAllLanes, offset, step);
            if (lane >= step) offset += before;
        }
        if (lane == 31) {
            rows_of_warp[warp] = __popc(those);
            words_of_warp[warp] = offset;
        }
        offset -= size;
        __syncthreads();
        int32_t all_rows = 0;
        unsigned long long all_words = 0;
        for (int w = 0; w < kWarps; ++w) {
            if (w == warp) {
                at += all_rows;
                offset += all_words;
            }
            all_rows += rows_of_warp[w];
            all_words += words_of_warp[w];
        }
        if (keep) {
            const Row row = {.query = exclusive ? query->query : static_cast<int32_t>(query - image.queries),
                             .class_id = query->class_id,
                             .best = query->best,
                             .largest = query->largest,
                             .total = query->total,
                             .x1 = query->x1,
                             .y1 = query->y1,
                             .x2 = query->x2,
                             .y2 = query->y2,
                             .slot = slot,
                             .area = static_cast<int64_t>(query->area),
                             .sum = static_cast<int64_t>(query->sum),
                             .nodes = static_cast<int64_t>(query->nodes),
                             .offset = static_cast<int64_t>(words + offset)};
            image.kept[rows + at] = row;
            image.results[rows + at] = row;
        }
        rows += all_rows;
        words += all_words;
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        const Header header = {rows, candidates, static_cast<int64_t>(words)};
        *image.kept_header = header;
        *image.header = header;
    }
}

}  // namespace fai::cuda
