// Semantic results by sum: which class has the largest sum, over all queries, of class probability times mask
// probability at each pixel; the same bits as csrc/cpu/semantic_sum.inl.
//
// Bytes. Logits are read twice, labels written, read and sent, as in semantic.cu; class probabilities (60 KB
// of 100 queries and 150 classes) are read by every tile, from the L2 cache. Work. For every tile a product
// with two numbers a query for bounds, 24 million multiplications and additions twice; and the sums of the
// one or two classes that can win.
#include <cstdint>

#include "csrc/math/masks.h"
#include "csrc/math/rows.h"
#include "csrc/math/sampling.h"
#include "cuda/contest.cuh"
#include "cuda/device.cuh"
#include "cuda/labels.cuh"
#include "cuda/params.cuh"
#include "cuda/warp.cuh"

namespace fai::cuda {
namespace {

// Queries whose nodes are at hand; where there are more, nodes are computed twice.
constexpr int32_t kChunk = 128;
// Three interpolations may round past the corners of a cell by this share of the largest, with room to spare.
constexpr float kRounding = 2e-6f;

// ---- class probabilities

// A block per query, after its score. What takes no part has probabilities of 0, with which a sum stays what
// it is.
template <class C>
__global__ void __launch_bounds__(kThreads)
    class_probabilities(const ImageParams* __restrict__ params, const C* __restrict__ class_logits,
                        int32_t queries, int32_t class_columns, bool softmax) {
    const ImageParams& image = params[blockIdx.y];
    if (!image.active) return;
    const auto q = static_cast<int32_t>(blockIdx.x);
    const QueryState& query = image.queries[q];
    const int32_t classes = softmax ? class_columns - 1 : class_columns;
    const C* const logits = class_logits + (static_cast<int64_t>(blockIdx.y) * queries + q) * class_columns;
    float* const out = image.class_probabilities + static_cast<int64_t>(q) * classes;
    for (auto k = static_cast<int32_t>(threadIdx.x); k < classes; k += kThreads) {
        float p = 0.0f;
        if (!query.rejected && softmax) {
            const float x = to_float(logits[k]) - query.largest;
            p = (x >= -87.0f ? math::exponential(math::maximum(x, -87.0f)) : 0.0f) / query.total;
        } else if (!query.rejected) {
            p = math::sigmoid(to_float(logits[k]));
        }
        out[k] = p;
    }
    const int32_t step = static_cast<int32_t>(gridDim.x) * kThreads;
    for (int32_t k = q * kThreads + static_cast<int32_t>(threadIdx.x); k < classes; k += step) {
        QueryState& state = image.classes[k];
        state.x1 = state.y1 = INT32_MAX;
        state.x2 = state.y2 = 0;
        state.area = state.sum = 0;
    }
}

// ---- sums and bounds

// What a block knows of its tile.
struct SumTile {
    float m[kChunk][kNodesOfTile];      // mask probabilities of some queries
    float high[kMaxSemanticQueries];    // the largest of each query
    float low[kMaxSemanticQueries];     // the smallest
    float bound[kMaxSumClasses];        // what each class's sum is at most
    uint16_t list[kMaxSumClasses];      // classes that can win, in order
    float sums[kAtHand][kNodesOfTile];  // of some of those
    float guaranteed[kWarps];
    Tally won[kAtHand];
    int32_t contestants;
    int32_t takes_part;  // not 0 where some query does
};
static_assert(sizeof(SumTile) <= 48 * 1024, "what a block may have without being asked for more");

template <class T>
__device__ __forceinline__ void load_nodes(SumTile& at, const ImageParams& image, const T* masks,
                                           int32_t rows, int32_t columns, const Tile& tile, int32_t first,
                                           int32_t count) {
    const int64_t plane = static_cast<int64_t>(rows) * columns;
    for (auto n = static_cast<int32_t>(threadIdx.x); n < count * kNodesOfTile; n += kThreads) {
        const int32_t q = n / kNodesOfTile, node = n % kNodesOfTile;
        const bool rejected = image.queries[first + q].rejected;
        at.m[q][node] =
            rejected ? 0.0f
                     : node_of(masks + (first + q) * plane, rows, columns, tile.row, tile.column, node);
    }
    __syncthreads();
}

// Fills the list of classes that can win a pixel of the tile. Sums of each query's largest and smallest mask
// probability, added up as a node's are, are not below or above any node's: each rounding is monotone.
template <class T>
__device__ __forceinline__ void find_competing(SumTile& at, const ImageParams& image, const T* masks,
                                               int32_t queries, int32_t classes, int32_t rows,
                                               int32_t columns, const Tile& tile) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    if (threadIdx.x == 0) at.takes_part = 0;
    for (int32_t first = 0; first < queries; first += kChunk) {
        const int32_t count = min_i32(queries - first, kChunk);
        __syncthreads();
        load_nodes(at, image, masks, rows, columns, tile, first, count);
        for (auto q = static_cast<int32_t>(threadIdx.x); q < count; q += kThreads) {
            float most = 0.0f, least = 1.0f;
            for (const float m : at.m[q]) {
                most = math::maximum(most, m);
                least = math::minimum(least, m);
            }
            at.high[first + q] = most;
            at.low[first + q] = least;
            if (!image.queries[first + q].rejected) at.takes_part = 1;
        }
    }
    __syncthreads();
    float guaranteed = -1.0f;
    for (auto k = static_cast<int32_t>(threadIdx.x); k < classes; k += kThreads) {
        float most = 0.0f, least = 0.0f;
        for (int32_t q = 0; q < queries; ++q) {
            const float p = image.class_probabilities[static_cast<int64_t>(q) * classes + k];
            most = most + p * at.high[q];
            least = least + p * at.low[q];
        }
        at.bound[k] = most + most * kRounding;
        guaranteed = math::maximum(guaranteed, least - most * kRounding);
    }
    guaranteed = warp_reduce_max(guaranteed);
    if (lane == 0) at.guaranteed[warp] = guaranteed;
    __syncthreads();
    if (warp == 0) {
        float needed = -1.0f;
        for (const float value : at.guaranteed) needed = math::maximum(needed, value);
        // In order of the classes, because the first wins a tie.
        int32_t count = 0;
        for (int32_t first = 0; first < classes; first += 32) {
            const int32_t k = first + lane;
            const bool competes = at.takes_part && k < classes && at.bound[k] >= needed;
            const unsigned those = __ballot_sync(kAllLanes, competes);
            if (competes) at.list[count + __popc(those & ((1u << lane) - 1u))] = static_cast<uint16_t>(k);
            count += __popc(those);
        }
        if (lane == 0) at.contestants = count;
    }
    __syncthreads();
}

// Sums of `count` contestants from `from` on at the tile's nodes, all queries in their order.
template <class T>
__device__ __forceinline__ void sum_up(SumTile& at, const ImageParams& image, const T* masks, int32_t queries,
                                       int32_t classes, int32_t rows, int32_t columns, const Tile& tile,
                                       int32_t from, int32_t count) {
    constexpr int kPerThread = (kAtHand * kNodesOfTile + kThreads - 1) / kThreads;
    float total[kPerThread] = {};
    for (int32_t first = 0; first < queries; first += kChunk) {
        const int32_t some = min_i32(queries - first, kChunk);
        // Where one chunk is all, its nodes are there.
        if (queries > kChunk) {
            __syncthreads();
            load_nodes(at, image, masks, rows, columns, tile, first, some);
        }
#pragma unroll
        for (int i = 0; i < kPerThread; ++i) {
            const int32_t n = static_cast<int32_t>(threadIdx.x) + i * kThreads;
            if (n >= count * kNodesOfTile) continue;
            const int32_t node = n % kNodesOfTile;
            const float* p = image.class_probabilities + static_cast<int64_t>(first) * classes +
                             at.list[from + n / kNodesOfTile];
            for (int32_t q = 0; q < some; ++q, p += classes) total[i] = total[i] + *p * at.m[q][node];
        }
    }
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
        const int32_t n = static_cast<int32_t>(threadIdx.x) + i * kThreads;
        if (n < count * kNodesOfTile) at.sums[n / kNodesOfTile][n % kNodesOfTile] = total[i];
    }
    __syncthreads();
}

// ---- pixels

// Decides a tile's pixels between some of its contestants and who has won so far, of whom there is nobody
// where `begins`; where `ends`, adds up what was won. A thread goes down a column, as in a contest.
template <bool begins, bool ends, class L>
__device__ __forceinline__ void go_down_sums(SumTile& at, const ImageParams& image, const Tile& tile,
                                             int32_t from, int32_t count) {
    const int lane = threadIdx.x & 31;
    constexpr bool alone = begins && ends;
    const auto flush = [&](int32_t winner, uint32_t area, int32_t x1, int32_t x2, int32_t y1, int32_t y2,
                           unsigned long long sum) {
        if constexpr (alone) {
            add(at.won[winner], area, x1, x2, y1, y2, sum, true);
        } else {
            add(image.classes[winner], static_cast<unsigned long long>(area), x1, x2, y1, y2, sum, true);
        }
    };
    const auto width = static_cast<uint32_t>(tile.x_end - tile.x_begin);
    const uint32_t across = width < kThreads ? width : kThreads, strips = kThreads / across;
    const uint32_t strip = threadIdx.x / across;
    const auto height =
        static_cast<int32_t>((static_cast<uint32_t>(tile.y_end - tile.y_begin) + strips - 1) / strips);
    const int32_t y_begin = tile.y_begin + static_cast<int32_t>(strip) * height;
    const int32_t y_end = strip < strips ? min_i32(y_begin + height, tile.y_end) : y_begin;
    for (uint32_t start = 0; start < width; start += across) {
        const uint32_t ahead = start + (threadIdx.x - strip * across);
        const bool mine = ahead < width;
        const int32_t x = tile.x_begin + static_cast<int32_t>(mine ? ahead : 0);
        const float right_share = image.x.fraction[x];
        const int32_t corner = image.x.cell[x] - tile.column - tile.row * kTileNodes;
        Run run;
        for (int32_t y = y_begin; mine && y < y_end; ++y) {
            const int32_t i = image.y.cell[y];
            const float down = image.y.fraction[y];
            const int64_t pixel = static_cast<int64_t>(y) * image.size.width + x;
            L* const label = static_cast<L*>(image.segments) + pixel;
            int32_t winner = -1;  // of the contestants here
            float best = -1.0f;
            if constexpr (!begins) best = image.winning_sums[pixel];
            for (int32_t c = 0; c < count; ++c) {
                const float* const node = at.sums[c] + i * kTileNodes + corner;
                const float left = math::lerp(node[0], node[kTileNodes], down);
                const float right = math::lerp(node[1], node[kTileNodes + 1], down);
                const float value = math::lerp(left, right, right_share);
                if (math::wins(value, best)) {
                    best = value;
                    winner = c;
                }
            }
            // Their number where there are others, else their place in the list.
            int32_t owner = winner;
            if constexpr (begins) {
                *label = winner < 0 ? static_cast<L>(-1) : static_cast<L>(at.list[from + winner]);
            } else if (winner >= 0) {
                *label = static_cast<L>(at.list[from + winner]);
            }
            if constexpr (!ends) {
                image.winning_sums[pixel] = best;
            } else {
                if constexpr (!alone) owner = *label;
                if (owner != run.winner) {
                    if (run.winner >= 0) {
                        flush(run.winner, static_cast<uint32_t>(y - run.y1), x, x + 1, run.y1, y, run.sum);
                    }
                    run = {owner, y, 0};
                }
                run.sum += units(math::minimum(best, 1.0f));
            }
        }
        if constexpr (!ends) continue;
        // What the warp's lanes end with is mostly one class's, and added up before it is added.
        unsigned open = __ballot_sync(kAllLanes, run.winner >= 0);
        while (open) {
            const int32_t winner = __shfl_sync(kAllLanes, run.winner, __ffs(static_cast<int>(open)) - 1);
            const bool same = run.winner == winner;
            open &= ~__ballot_sync(kAllLanes, same);
            const int32_t area = warp_reduce_sum(same ? y_end - run.y1 : 0);
            const int32_t x1 = warp_reduce_min(same ? x : INT32_MAX);
            const int32_t x2 = warp_reduce_max(same ? x + 1 : 0);
            const int32_t y1 = warp_reduce_min(same ? run.y1 : INT32_MAX);
            const int32_t y2 = warp_reduce_max(same ? y_end : 0);
            const unsigned long long sum = warp_reduce_sum(same ? run.sum : 0ull);
            if (lane == 0) flush(winner, static_cast<uint32_t>(area), x1, x2, y1, y2, sum);
        }
    }
}

template <class T, class L>
__device__ __forceinline__ void decide_sums(const ImageParams& image, const T* masks, int32_t queries,
                                            int32_t classes, int32_t rows, int32_t columns) {
    __shared__ SumTile at;
    const Tile tile = tile_of(image, rows, columns, static_cast<int32_t>(blockIdx.x));
    if (tile.y_begin >= tile.y_end || tile.x_begin >= tile.x_end) return;
    find_competing(at, image, masks, queries, classes, rows, columns, tile);
    const int32_t count = at.contestants;
    if (count <= kAtHand) {
        for (auto c = static_cast<int32_t>(threadIdx.x); c < count; c += kThreads) {
            at.won[c] = {0, 0, INT32_MAX, INT32_MAX, 0, 0, 0};
        }
        sum_up(at, image, masks, queries, classes, rows, columns, tile, 0, count);
        go_down_sums<true, true, L>(at, image, tile, 0, count);
        __syncthreads();
        for (auto c = static_cast<int32_t>(threadIdx.x); c < count; c += kThreads) {
            const Tally& won = at.won[c];
            if (won.area == 0) continue;
            add(image.classes[at.list[c]], static_cast<unsigned long long>(won.area), won.x1, won.x2, won.y1,
                won.y2, won.sum, true);
        }
        return;
    }
    // Some after the others; each thread comes back to the pixels that it has decided before.
    for (int32_t from = 0; from < count; from += kAtHand) {
        const int32_t some = min_i32(count - from, kAtHand);
        sum_up(at, image, masks, queries, classes, rows, columns, tile, from, some);
        if (from == 0) {
            go_down_sums<true, false, L>(at, image, tile, from, some);
        } else if (from + some < count) {
            go_down_sums<false, false, L>(at, image, tile, from, some);
        } else {
            go_down_sums<false, true, L>(at, image, tile, from, some);
        }
        __syncthreads();
    }
}

// The rows, by one block, when all that was won is complete.
__device__ __forceinline__ void finish_sums(const ImageParams& image, int32_t classes) {
    __shared__ int32_t rows;
    if (threadIdx.x == 0) rows = 0;
    __syncthreads();
    for (auto k = static_cast<int32_t>(threadIdx.x); k < classes; k += kThreads) {
        const QueryState& state = image.classes[k];
        const auto area = static_cast<int64_t>(state.area);
        if (!math::enough_pixels(area)) continue;
        const double score = math::mean_sum(static_cast<double>(state.sum), area);
        if (!math::perhaps_above(score, image.threshold)) continue;
        const Row row = {.query = k,
                         .class_id = k,
                         .best = 0.0f,
                         .largest = 0.0f,
                         .total = 0.0f,
                         .x1 = state.x1,
                         .y1 = state.y1,
                         .x2 = state.x2,
                         .y2 = state.y2,
                         .slot = k,
                         .area = area,
                         .sum = static_cast<int64_t>(state.sum),
                         .offset = 0};
        const int32_t at = atomicAdd(&rows, 1);
        image.kept[at] = row;
        image.results[at] = row;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        const Header header = {rows, classes, 0};
        *image.kept_header = header;
        *image.header = header;
    }
}

// A block per tile; labels and rows go to the host as in semantic.cu. Three of them on a multiprocessor leave
// 80 registers to a thread, which it does with; unasked, nvcc takes 64 on some cards, and spills.
template <class T, class L>
__global__ void __launch_bounds__(kThreads, 3)
    sum_argmax(const ImageParams* __restrict__ params, const T* __restrict__ mask_logits, int32_t queries,
               int32_t classes, int32_t rows, int32_t columns) {
    const ImageParams& image = params[blockIdx.y];
    if (!image.active) return;
    decide_sums<T, L>(image, mask_logits + static_cast<int64_t>(blockIdx.y) * queries * rows * columns,
                      queries, classes, rows, columns);
    const int32_t tiles_across = (columns + kTileCells - 1) / kTileCells;
    const int32_t tiles_down = (rows + kTileCells - 1) / kTileCells;
    const int32_t tile_row = static_cast<int32_t>(blockIdx.x) / tiles_across;
    if (!last_to_arrive(image.counters + kTilesDone + tile_row, tiles_across)) return;
    if (last_to_arrive(image.counters + kDone, tiles_down)) finish_sums(image, classes);
    const Tile tile = tile_of(image, rows, columns, static_cast<int32_t>(blockIdx.x));
    const int64_t line = static_cast<int64_t>(image.size.width) * static_cast<int64_t>(sizeof(L));
    send(image, tile.y_begin * line, tile.y_end * line);
}

template <class C>
void launch_probabilities(cudaStream_t stream, const PostprocessLaunch& l) {
    const GraphSpec& spec = *l.spec;
    launch(stream, dim3(spec.queries, spec.batch), dim3(kThreads), class_probabilities<C>, l.params,
           static_cast<const C*>(l.class_logits), spec.queries, spec.class_columns, spec.softmax);
}

}  // namespace

template <class T>
void launch_semantic_sum(cudaStream_t stream, const PostprocessLaunch& l) {
    const GraphSpec& spec = *l.spec;
    if (spec.class_logits == DType::f16) {
        launch_probabilities<__half>(stream, l);
    } else {
        launch_probabilities<float>(stream, l);
    }
    const T* const masks = static_cast<const T*>(l.mask_logits);
    const int tiles =
        ((spec.rows + kTileCells - 1) / kTileCells) * ((spec.columns + kTileCells - 1) / kTileCells);
    const dim3 grid(tiles, spec.batch);
    auto* const kernel = narrow(spec) ? sum_argmax<T, uint8_t> : sum_argmax<T, uint16_t>;
    launch(stream, grid, dim3(kThreads), kernel, l.params, masks, spec.queries, classes_of(spec), spec.rows,
           spec.columns);
}

template void launch_semantic_sum<float>(cudaStream_t, const PostprocessLaunch&);
template void launch_semantic_sum<__half>(cudaStream_t, const PostprocessLaunch&);

}  // namespace fai::cuda
