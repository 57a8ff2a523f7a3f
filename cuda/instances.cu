// Instances: which nodes are inside, and the masks drawn from them.
//
// Bytes. The mask logits of the queries whose class score passes are read once and written as probabilities
// (Q' * h * w * (itemsize + 4)), then read again from the L2 cache; masks are drawn into a canvas, a bit a
// pixel of a box. 20 of 160 x 160 at 1080p: 3 MB, 1 us of an H200's memory; latency is what there is to save.
#include <cstdint>

#include "csrc/math/masks.h"
#include "csrc/math/sampling.h"
#include "cuda/device.cuh"
#include "cuda/params.cuh"
#include "cuda/rows.cuh"
#include "cuda/warp.cuh"

namespace fai::cuda {
namespace {

constexpr int32_t kNodeRows = 8;

// Kernels are `plain` where no rule asks for resized logits, for logits at the nodes or for the nearest node:
// what those need would cost every other network registers.

// Probabilities of the candidates' nodes, and the rectangle of those inside.
template <class T, bool plain>
__global__ void __launch_bounds__(kThreads)
    find_nodes(const ImageParams* __restrict__ params, const T* __restrict__ mask_logits, int32_t queries,
               int32_t rows, int32_t columns) {
    const ImageParams& image = params[blockIdx.y];
    if (!image.active) return;
    const int32_t chunks = (rows + kNodeRows - 1) / kNodeRows;
    const int64_t items = static_cast<int64_t>(image.counters[kCandidates]) * chunks;
    const int64_t plane = static_cast<int64_t>(rows) * columns;
    const bool of_logits = !plain && image.of_logits;
    const bool sum_nodes = !plain && image.nearest && image.use_mask_score;
    const float threshold = of_logits ? image.mask_logit : image.mask_threshold;
    for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
        const auto slot = static_cast<int32_t>(item / chunks);
        const int32_t begin = static_cast<int32_t>(item % chunks) * kNodeRows;
        const int32_t count = min_i32(rows - begin, kNodeRows) * columns;
        QueryState& query = image.queries[image.candidates[slot]];
        const int64_t start = static_cast<int64_t>(begin) * columns;
        float* const out = image.probabilities + slot * plane + start;
        const T* const in =
            plain || mask_logits
                ? mask_logits +
                      (static_cast<int64_t>(blockIdx.y) * queries + image.candidates[slot]) * plane + start
                : reinterpret_cast<const T*>(out);
        float part = 0.0f;
        uint32_t inside = 0;
        int32_t x1 = INT32_MAX, y1 = INT32_MAX, x2 = 0, y2 = 0;
        bool nan = false;
        for (int32_t i = threadIdx.x; i < count; i += kThreads) {
            const float logit = to_float(in[i]);
            nan |= is_nan(logit);
            const float m = of_logits ? math::bounded(logit) : math::sigmoid(logit);
            out[i] = m;
            if (sum_nodes && begin + i / columns < image.nodes.height && i % columns < image.nodes.width) {
                const float probability = math::sigmoid(logit);
                if (math::inside(probability, image.mask_threshold)) {
                    part += probability;
                    ++inside;
                }
            }
            if (math::inside(m, threshold)) {
                const int32_t y = begin + i / columns, x = i % columns;
                x1 = min_i32(x1, x);
                x2 = max_i32(x2, x + 1);
                y1 = min_i32(y1, y);
                y2 = max_i32(y2, y + 1);
            }
        }
        nan = __any_sync(kAllLanes, nan);
        if (sum_nodes) {
            const unsigned long long sum = warp_reduce_sum(units(part));
            inside = warp_reduce_sum(inside);
            if ((threadIdx.x & 31) == 0 && inside) {
                atomicAdd(&query.sum, sum);
                atomicAdd(&query.nodes, static_cast<unsigned long long>(inside));
            }
        }
        x1 = warp_reduce_min(x1);
        y1 = warp_reduce_min(y1);
        x2 = warp_reduce_max(x2);
        y2 = warp_reduce_max(y2);
        if ((threadIdx.x & 31) == 0) {
            if (nan) atomicOr(&query.rejected, 1);
            if (y2 > 0) {
                atomicMin(&query.column_begin, x1);
                atomicMax(&query.column_end, x2);
                atomicMin(&query.row_begin, y1);
                atomicMax(&query.row_end, y2);
            }
        }
    }
}

__device__ __forceinline__ uint64_t bits_between(int32_t begin, int32_t end) {
    return (~uint64_t{0} << begin) & (~uint64_t{0} >> (64 - end));
}

// The bits of pixels [begin, end), at most 64 of them and all in one word, of a row between the nodes that
// begin at `above` and at `below`. Values between two nodes are monotone: only cells with one node inside and
// one outside are looked at pixel by pixel.
__device__ __forceinline__ uint64_t draw_word(const PixelAxis& x, const float* nodes, int32_t above,
                                              int32_t below, float down, float threshold, int32_t begin,
                                              int32_t end, bool want_sum, bool of_logits, float& sum) {
    const int32_t base = begin & ~63;
    uint64_t word = 0;
    int32_t cell = x.cell[begin];
    float left = math::lerp(nodes[above + cell], nodes[below + cell], down);
    for (int32_t at = begin; at < end; ++cell) {
        const int32_t next = min_i32(cell + 1, x.nodes - 1);
        const float right = math::lerp(nodes[above + next], nodes[below + next], down);
        const int32_t stop = min_i32(x.first[cell + 1], end);
        const bool left_in = math::inside(left, threshold), right_in = math::inside(right, threshold);
        if (at < stop && left_in && right_in) {
            word |= bits_between(at - base, stop - base);
            if (want_sum && of_logits) {
                for (int32_t p = at; p < stop; ++p) {
                    sum += math::sigmoid(math::lerp(left, right, x.fraction[p]));
                }
            } else if (want_sum) {
                sum += static_cast<float>(stop - at) * left +
                       static_cast<float>(x.prefix[stop] - x.prefix[at]) * (right - left);
            }
        } else if (left_in || right_in) {
            for (int32_t p = at; p < stop; ++p) {
                const float m = math::lerp(left, right, x.fraction[p]);
                if (!math::inside(m, threshold)) continue;
                word |= uint64_t{1} << (p - base);
                if (want_sum) sum += of_logits ? math::sigmoid(m) : m;
            }
        }
        at = max_i32(at, stop);
        left = right;
    }
    return word;
}

constexpr int32_t kDrawnRows = 4;

// Where a candidate's pixels can be: a node inside reaches into the cells on both of its sides.
struct Reach {
    int32_t x1, y1, x2, y2;
};

__device__ __forceinline__ Reach reach_of(const ImageParams& image, const QueryState& query) {
    if (query.rejected || query.row_end == 0) return {0, 0, 0, 0};
    return {image.x.first[max_i32(query.column_begin - 1, 0)], image.y.first[max_i32(query.row_begin - 1, 0)],
            image.x.first[query.column_end], image.y.first[query.row_end]};
}

// Draws kDrawnRows lines of a candidate into its canvas, and gathers area, box and sum. One warp: of most
// masks there are too few words in a line to occupy more.
template <bool plain>
__device__ __forceinline__ void draw(const ImageParams& image, int32_t slot, int32_t top, int32_t rows,
                                     int32_t columns) {
    const int lane = threadIdx.x & 31;
    const int64_t stride = canvas_words(image.size);
    const bool of_logits = !plain && image.of_logits;
    const bool want_sum = image.use_mask_score && (plain || !image.nearest);
    const float threshold = of_logits ? image.mask_logit : image.mask_threshold;
    QueryState& query = image.queries[image.candidates[slot]];
    const Reach reach = reach_of(image, query);
    const int32_t y_begin = max_i32(top, reach.y1), y_end = min_i32(top + kDrawnRows, reach.y2);
    if (y_begin >= y_end || reach.x1 >= reach.x2) return;
    const int32_t word_begin = reach.x1 / 64, words = (reach.x2 + 63) / 64 - word_begin;
    const float* const nodes = image.probabilities + static_cast<int64_t>(slot) * rows * columns;
    uint64_t* const canvas = image.canvas + static_cast<int64_t>(slot) * image.size.height * stride;

    int32_t x1 = INT32_MAX, y1 = INT32_MAX, x2 = 0, y2 = 0, area = 0;
    unsigned long long sum = 0;
    const int32_t tasks = (y_end - y_begin) * words;
    for (int32_t task = lane; task < tasks; task += 32) {
        const int32_t line = static_cast<int32_t>(static_cast<uint32_t>(task) / static_cast<uint32_t>(words));
        const int32_t y = y_begin + line, k = word_begin + task - line * words;
        const int32_t i = image.y.cell[y];
        const int32_t above = i * columns, below = min_i32(i + 1, rows - 1) * columns;
        const int32_t begin = max_i32(64 * k, reach.x1), end = min_i32(64 * k + 64, reach.x2);
        float part = 0.0f;
        const uint64_t word = draw_word(image.x, nodes, above, below, image.y.fraction[y], threshold, begin,
                                        end, want_sum, of_logits, part);
        canvas[y * stride + k] = word;
        if (!word) continue;
        area += __popcll(word);
        sum += units(part);
        x1 = min_i32(x1, 64 * k + __ffsll(static_cast<long long>(word)) - 1);
        x2 = max_i32(x2, 64 * k + 64 - __clzll(static_cast<long long>(word)));
        y1 = min_i32(y1, y);
        y2 = max_i32(y2, y + 1);
    }
    area = warp_reduce_sum(area);
    if (area == 0) return;
    x1 = warp_reduce_min(x1);
    y1 = warp_reduce_min(y1);
    x2 = warp_reduce_max(x2);
    y2 = warp_reduce_max(y2);
    if (want_sum) sum = warp_reduce_sum(sum);
    if (lane == 0) {
        atomicAdd(&query.area, static_cast<unsigned long long>(area));
        if (want_sum) atomicAdd(&query.sum, sum);
        atomicMin(&query.x1, x1);
        atomicMin(&query.y1, y1);
        atomicMax(&query.x2, x2);
        atomicMax(&query.y2, y2);
    }
}

// Draws the candidates; the last block then knows which of them are kept.
template <bool plain>
__global__ void __launch_bounds__(kThreads, 3)
    draw_instances(const ImageParams* __restrict__ params, int32_t queries, int32_t rows, int32_t columns) {
    const ImageParams& image = params[blockIdx.y];
    if (!image.active) return;
    const auto tiles = static_cast<uint32_t>((image.size.height + kDrawnRows - 1) / kDrawnRows);
    const uint32_t items = static_cast<uint32_t>(image.counters[kCandidates]) * tiles;
    for (uint32_t item = blockIdx.x * kWarps + threadIdx.x / 32; item < items; item += gridDim.x * kWarps) {
        const uint32_t slot = item / tiles;
        draw<plain>(image, static_cast<int32_t>(slot), static_cast<int32_t>(item - slot * tiles) * kDrawnRows,
                    rows, columns);
    }
    if (last_to_arrive(image.counters + kDone, static_cast<int32_t>(gridDim.x))) {
        finish(image, queries, false);
    }
}

}  // namespace

template <class T>
void launch_instances(cudaStream_t stream, const PostprocessLaunch& l) {
    const GraphSpec& spec = *l.spec;
    const T* const masks = static_cast<const T*>(l.mask_logits);
    const bool plain = masks && !spec.rules.of_logits && !spec.rules.nearest;
    auto* const finds = plain ? find_nodes<T, true> : find_nodes<T, false>;
    // As many blocks as the device holds at once: how much there is to do is known on the device alone.
    launch(stream, dim3(resident_blocks(finds, l.multiprocessors), spec.batch), dim3(kThreads), finds,
           l.params, masks, spec.queries, spec.rows, spec.columns);
    auto* const draws = plain ? draw_instances<true> : draw_instances<false>;
    launch(stream, dim3(resident_blocks(draws, l.multiprocessors), spec.batch), dim3(kThreads), draws,
           l.params, spec.queries, spec.rows, spec.columns);
}

template void launch_instances<float>(cudaStream_t, const PostprocessLaunch&);
template void launch_instances<__half>(cudaStream_t, const PostprocessLaunch&);

}  // namespace fai::cuda
