// Instances: which nodes are inside, and the masks drawn from them.
#include <cstdint>

#include "csrc/math/masks.h"
#include "csrc/math/sampling.h"
#include "cuda/device.cuh"
#include "cuda/params.cuh"
#include "cuda/warp.cuh"

namespace fai::cuda {
namespace {

constexpr int32_t kNodeRows = 8;

// Probabilities of the candidates' nodes, and the rectangle of those inside.
template <class T>
__global__ void __launch_bounds__(kThreads)
    find_nodes(const ImageParams* __restrict__ params, const T* __restrict__ mask_logits, int32_t queries,
               int32_t rows, int32_t columns) {
    const ImageParams& image = params[blockIdx.y];
    if (!image.active) return;
    const int32_t chunks = (rows + kNodeRows - 1) / kNodeRows;
    const int64_t items = static_cast<int64_t>(*image.counters) * chunks;
    const int64_t plane = static_cast<int64_t>(rows) * columns;
    const float threshold = image.mask_threshold;
    for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
        const auto slot = static_cast<int32_t>(item / chunks);
        const int32_t begin = static_cast<int32_t>(item % chunks) * kNodeRows;
        const int32_t count = smaller(rows - begin, kNodeRows) * columns;
        Query& query = image.queries[image.candidates[slot]];
        const int64_t start = static_cast<int64_t>(begin) * columns;
        const T* const in = mask_logits +
                            (static_cast<int64_t>(blockIdx.y) * queries + image.candidates[slot]) * plane +
                            start;
        float* const out = image.probabilities + slot * plane + start;
        int32_t x1 = INT32_MAX, y1 = INT32_MAX, x2 = 0, y2 = 0;
        bool nan = false;
        for (int32_t i = threadIdx.x; i < count; i += kThreads) {
            const float logit = to_float(in[i]);
            nan |= is_nan(logit);
            const float m = math::sigmoid(logit);
            out[i] = m;
            if (math::inside(m, threshold)) {
                const int32_t y = begin + i / columns, x = i % columns;
                x1 = smaller(x1, x);
                x2 = larger(x2, x + 1);
                y1 = smaller(y1, y);
                y2 = larger(y2, y + 1);
            }
        }
        nan = __any_sync(kAllLanes, nan);
        x1 = smallest_of_warp(x1);
        y1 = smallest_of_warp(y1);
        x2 = largest_of_warp(x2);
        y2 = largest_of_warp(y2);
        if ((threadIdx.x & 31) == 0) {
            if (nan) atomicOr(&query.out, 1);
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

// The bits of pixels [begin, end), at most 64 of them and all in one word, of a row between the nodes `above`
// and `below`. Values between two nodes are monotone: only cells with one node inside and one outside are
// looked at pixel by pixel.
__device__ __forceinline__ uint64_t draw_word(const PixelAxis& x, const float* above, const float* below,
                                              float down, float threshold, int32_t begin, int32_t end,
                                              bool want_sum, float& sum) {
    const int32_t base = begin & ~63;
    uint64_t word = 0;
    int32_t cell = x.cell[begin];
    float left = math::lerp(above[cell], below[cell], down);
    for (int32_t at = begin; at < end; ++cell) {
        const int32_t next = smaller(cell + 1, x.nodes - 1);
        const float right = math::lerp(above[next], below[next], down);
        const int32_t stop = smaller(x.first[cell + 1], end);
        const bool left_in = math::inside(left, threshold), right_in = math::inside(right, threshold);
        if (at < stop && left_in && right_in) {
            word |= bits_between(at - base, stop - base);
            if (want_sum) {
                sum += static_cast<float>(stop - at) * left +
                       static_cast<float>(x.prefix[stop] - x.prefix[at]) * (right - left);
            }
        } else if (left_in || right_in) {
            for (int32_t p = at; p < stop; ++p) {
                const float m = math::lerp(left, right, x.fraction[p]);
                if (!math::inside(m, threshold)) continue;
                word |= uint64_t{1} << (p - base);
                if (want_sum) sum += m;
            }
        }
        at = larger(at, stop);
        left = right;
    }
    return word;
}

constexpr int32_t kDrawnRows = 8;

// Where a candidate's pixels can be: a node inside reaches into the cells on both of its sides.
struct Reach {
    int32_t x1, y1, x2, y2;
};

__device__ __forceinline__ Reach reach_of(const ImageParams& image, const Query& query) {
    if (query.out || query.row_end == 0) return {0, 0, 0, 0};
    return {image.x.first[larger(query.column_begin - 1, 0)], image.y.first[larger(query.row_begin - 1, 0)],
            image.x.first[query.column_end], image.y.first[query.row_end]};
}

// Draws the candidates into their canvases, and gathers areas, boxes and sums.
__global__ void __launch_bounds__(kThreads)
    draw_instances(const ImageParams* __restrict__ params, int32_t rows, int32_t columns) {
    const ImageParams& image = params[blockIdx.y];
    if (!image.active) return;
    const int32_t tiles = (image.size.height + kDrawnRows - 1) / kDrawnRows;
    const int64_t items = static_cast<int64_t>(*image.counters) * tiles;
    const int64_t stride = canvas_words(image.size);
    const bool want_sum = image.use_mask_score;
    for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
        const auto slot = static_cast<int32_t>(item / tiles);
        const int32_t tile = static_cast<int32_t>(item % tiles) * kDrawnRows;
        Query& query = image.queries[image.candidates[slot]];
        const Reach reach = reach_of(image, query);
        const int32_t y_begin = larger(tile, reach.y1), y_end = smaller(tile + kDrawnRows, reach.y2);
        if (y_begin >= y_end || reach.x1 >= reach.x2) continue;
        const int32_t word_begin = reach.x1 / 64, words = (reach.x2 + 63) / 64 - word_begin;
        const float* const nodes = image.probabilities + static_cast<int64_t>(slot) * rows * columns;
        uint64_t* const canvas = image.canvas + static_cast<int64_t>(slot) * image.size.height * stride;

        int32_t x1 = INT32_MAX, y1 = INT32_MAX, x2 = 0, y2 = 0, area = 0;
        unsigned long long sum = 0;
        const int32_t tasks = (y_end - y_begin) * words;
        for (int32_t task = threadIdx.x; task < tasks; task += kThreads) {
            const int32_t y = y_begin + task / words, k = word_begin + task % words;
            const int32_t i = image.y.cell[y];
            const float* const above = nodes + static_cast<int64_t>(i) * columns;
            const float* const below = nodes + static_cast<int64_t>(smaller(i + 1, rows - 1)) * columns;
            const int32_t begin = larger(64 * k, reach.x1), end = smaller(64 * k + 64, reach.x2);
            float part = 0.0f;
            const uint64_t word = draw_word(image.x, above, below, image.y.fraction[y], image.mask_threshold,
                                            begin, end, want_sum, part);
            canvas[y * stride + k] = word;
            if (!word) continue;
            area += __popcll(word);
            sum += units(part);
            x1 = smaller(x1, 64 * k + __ffsll(static_cast<long long>(word)) - 1);
            x2 = larger(x2, 64 * k + 64 - __clzll(static_cast<long long>(word)));
            y1 = smaller(y1, y);
            y2 = larger(y2, y + 1);
        }
        area = sum_of_warp(area);
        if (area == 0) continue;
        x1 = smallest_of_warp(x1);
        y1 = smallest_of_warp(y1);
        x2 = largest_of_warp(x2);
        y2 = largest_of_warp(y2);
        if (want_sum) sum = sum_of_warp(sum);
        if ((threadIdx.x & 31) == 0) {
            atomicAdd(&query.area, static_cast<unsigned long long>(area));
            if (want_sum) atomicAdd(&query.sum, sum);
            atomicMin(&query.x1, x1);
            atomicMin(&query.y1, y1);
            atomicMax(&query.x2, x2);
            atomicMax(&query.y2, y2);
        }
    }
}

}  // namespace

template <class T>
void launch_instances(cudaStream_t stream, const PostprocessLaunch& l) {
    const GraphSpec& spec = *l.spec;
    const T* const masks = static_cast<const T*>(l.mask_logits);
    // As many blocks as the device holds at once: how much there is to do is known on the device alone.
    const dim3 grid(4 * l.multiprocessors, spec.batch);
    launch(stream, grid, dim3(kThreads), find_nodes<T>, l.params, masks, spec.queries, spec.rows,
           spec.columns);
    launch(stream, grid, dim3(kThreads), draw_instances, l.params, spec.rows, spec.columns);
}

template void launch_instances<float>(cudaStream_t, const PostprocessLaunch&);
template void launch_instances<__half>(cudaStream_t, const PostprocessLaunch&);

}  // namespace fai::cuda
