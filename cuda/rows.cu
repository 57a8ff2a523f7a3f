// Which rows are kept (steps 4 to 6), and the way of their masks to the host, or into boolean masks.
#include <cstdint>

#include "csrc/math/masks.h"
#include "csrc/math/sampling.h"
#include "cuda/device.cuh"
#include "cuda/params.cuh"
#include "cuda/warp.cuh"

namespace fai::cuda {
namespace {

// One block an image: which queries are kept, and where their masks go.
__global__ void __launch_bounds__(kThreads)
    finish(const ImageParams* __restrict__ params, int32_t queries, bool semantic) {
    __shared__ int32_t rows_of_warp[kWarps];
    __shared__ unsigned long long words_of_warp[kWarps];
    const ImageParams& image = params[blockIdx.x];
    if (!image.active) return;
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    const int32_t candidates = semantic ? queries : *image.counters;
    int32_t rows = 0;
    unsigned long long words = 0;
    for (int32_t first = 0; first < candidates; first += kThreads) {
        const int32_t slot = first + static_cast<int32_t>(threadIdx.x);
        Row row = {};
        bool keep = false;
        unsigned long long size = 0;
        if (slot < candidates) {
            const int32_t q = semantic ? slot : image.candidates[slot];
            const Query& query = image.queries[q];
            if (!query.out && query.area >= 2) {
                double score = query.score;
                if (image.use_mask_score) {
                    score *=
                        static_cast<double>(query.sum) * kSumUnit / (static_cast<double>(query.area) + 0.01);
                }
                keep = score > image.threshold - kSlack;
                row = {q,
                       query.class_id,
                       query.best,
                       query.largest,
                       query.total,
                       query.x1,
                       query.y1,
                       query.x2,
                       query.y2,
                       slot,
                       static_cast<int64_t>(query.area),
                       static_cast<int64_t>(query.sum),
                       0};
                const int64_t across = (row.x2 + 63) / 64 - row.x1 / 64;
                if (keep && !semantic) size = static_cast<unsigned long long>(across * (row.y2 - row.y1));
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
            row.offset = static_cast<int64_t>(words + offset);
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

// Copies the masks' boxes out of their canvases, or all labels, to the host's memory.
template <class L>
__global__ void __launch_bounds__(kThreads) pack(const ImageParams* __restrict__ params, bool semantic) {
    const ImageParams& image = params[blockIdx.y];
    if (!image.active) return;
    const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
    if (semantic) {
        const int64_t bytes =
            static_cast<int64_t>(image.size.height) * image.size.width * static_cast<int64_t>(sizeof(L));
        const uint4* const from = static_cast<const uint4*>(image.segments);
        uint4* const to = reinterpret_cast<uint4*>(image.payload);
        // Both have room for whole vectors.
        for (int64_t i = thread; i < (bytes + 15) / 16; i += threads) to[i] = from[i];
        return;
    }
    const Header header = *image.kept_header;
    if (header.words > image.payload_words) return;
    const int64_t stride = canvas_words(image.size);
    for (int32_t r = 0; r < header.count; ++r) {
        const Row& row = image.kept[r];
        const int32_t first = row.x1 / 64, across = (row.x2 + 63) / 64 - first;
        const int64_t words = static_cast<int64_t>(across) * (row.y2 - row.y1);
        const uint64_t* const from =
            image.canvas + (static_cast<int64_t>(row.slot) * image.size.height + row.y1) * stride + first;
        for (int64_t i = thread; i < words; i += threads) {
            image.payload[row.offset + i] = from[i / across * stride + i % across];
        }
    }
}

// One row of the output in blockIdx.z; pixels in x and y.
template <class L>
__global__ void __launch_bounds__(kThreads)
    expand(const ImageParams* __restrict__ params, int32_t index, Size size, const Row* __restrict__ rows,
           bool semantic, uint8_t* __restrict__ out) {
    const ImageParams& image = params[index];
    const Row& row = rows[blockIdx.z];
    const int64_t pixels = static_cast<int64_t>(size.height) * size.width;
    const int64_t stride = canvas_words(size);
    const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; p < pixels; p += step) {
        const auto y = static_cast<int32_t>(p / size.width), x = static_cast<int32_t>(p % size.width);
        bool inside;
        if (semantic) {
            inside = static_cast<const L*>(image.segments)[p] == static_cast<L>(row.query);
        } else {
            inside = x >= row.x1 && x < row.x2 && y >= row.y1 && y < row.y2 &&
                     (image.canvas[(static_cast<int64_t>(row.slot) * size.height + y) * stride + x / 64] >>
                          (x & 63) &
                      1);
        }
        out[blockIdx.z * pixels + p] = inside;
    }
}

}  // namespace

void launch_finish(cudaStream_t stream, const PostprocessLaunch& l) {
    launch(stream, dim3(l.spec->batch), dim3(kThreads), finish, l.params, l.spec->queries,
           l.spec->predict_all_pixels);
}

void launch_pack(cudaStream_t stream, const PostprocessLaunch& l) {
    const dim3 grid(2 * l.multiprocessors, l.spec->batch);
    if (narrow(*l.spec)) {
        launch(stream, grid, dim3(kThreads), pack<uint8_t>, l.params, l.spec->predict_all_pixels);
    } else {
        launch(stream, grid, dim3(kThreads), pack<uint16_t>, l.params, l.spec->predict_all_pixels);
    }
}

void launch_expand(cudaStream_t stream, const PostprocessLaunch& l, int image, Size size, const Row* rows,
                   int count, uint8_t* out) {
    const dim3 grid(2 * l.multiprocessors, 1, count);
    if (narrow(*l.spec)) {
        launch(stream, grid, dim3(kThreads), expand<uint8_t>, l.params, image, size, rows,
               l.spec->predict_all_pixels, out);
    } else {
        launch(stream, grid, dim3(kThreads), expand<uint16_t>, l.params, image, size, rows,
               l.spec->predict_all_pixels, out);
    }
}

}  // namespace fai::cuda
