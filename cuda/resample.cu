// Mask logits at the nodes of another grid (Rules::logits_size), as csrc/cpu/resample.inl makes them.
//
// Bytes. The logits of the queries that are drawn are read once (Q' * h * w * itemsize), what becomes of them
// is written (Q' * h' * w' * 4): 59 MB of 100 queries at 384 x 384, 12 us of an H200's memory.
#include <cstdint>

#include "csrc/math/masks.h"
#include "csrc/math/sampling.h"
#include "cuda/device.cuh"
#include "cuda/params.cuh"
#include "cuda/warp.cuh"

namespace fai::cuda {
namespace {

constexpr int32_t kNodeRows = 8;

// Whose planes are made: candidates', or those of all queries that take part; of queries that rows are of.
enum class Planes { of_candidates, of_queries, of_scored };

// Instances: a plane for each candidate, in the order of their slots, where their probabilities will be.
// Semantic: one for each query that takes part. Beside the nodes that the frame takes, the last ones are
// repeated.
template <class T, Planes of>
__global__ void __launch_bounds__(kThreads)
    resample(const ImageParams* __restrict__ params, const T* __restrict__ mask_logits, Size masks,
             int32_t queries, Size grid, float* __restrict__ resampled) {
    constexpr bool semantic = of != Planes::of_candidates;
    const ImageParams& image = params[blockIdx.y];
    if (!image.active) return;
    const int32_t chunks = (grid.height + kNodeRows - 1) / kNodeRows;
    const int32_t planes = semantic ? queries : image.counters[kCandidates];
    const int64_t items = static_cast<int64_t>(planes) * chunks;
    const int64_t plane = static_cast<int64_t>(masks.height) * masks.width;
    const int64_t made = static_cast<int64_t>(grid.height) * grid.width;
    for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
        const auto slot = static_cast<int32_t>(item / chunks);
        const int32_t q = semantic ? slot : image.candidates[slot];
        if ((of == Planes::of_scored ? image.scored : image.queries)[q].rejected) continue;
        const int64_t first = static_cast<int64_t>(blockIdx.y) * queries;
        const T* const in = mask_logits + (first + q) * plane;
        float* const out = semantic ? resampled + (first + q) * made : image.probabilities + slot * made;
        const int32_t begin = static_cast<int32_t>(item % chunks) * kNodeRows;
        const int32_t count = min_i32(grid.height - begin, kNodeRows) * grid.width;
        for (int32_t i = threadIdx.x; i < count; i += kThreads) {
            const int32_t y = begin + i / grid.width, x = i % grid.width;
            const Tap down = image.node_rows[min_i32(y, image.nodes.height - 1)];
            const Tap across = image.node_columns[min_i32(x, image.nodes.width - 1)];
            const T* const above = in + static_cast<int64_t>(down.index) * masks.width;
            const T* const below =
                in + static_cast<int64_t>(min_i32(down.index + 1, masks.height - 1)) * masks.width;
            const int32_t next = min_i32(across.index + 1, masks.width - 1);
            const auto between = [&](int32_t column) {
                return math::lerp(math::bounded(to_float(above[column])),
                                  math::bounded(to_float(below[column])), down.fraction);
            };
            out[static_cast<int64_t>(y) * grid.width + x] =
                math::lerp(between(across.index), between(next), across.fraction);
        }
    }
}

template <class T, Planes of>
void run_of(cudaStream_t stream, const PostprocessLaunch& l) {
    const GraphSpec& spec = *l.network;
    // As many blocks as the device holds at once: how much there is to do is known on the device alone.
    launch(stream, dim3(resident_blocks(resample<T, of>, l.multiprocessors), spec.batch), dim3(kThreads),
           resample<T, of>, l.params, static_cast<const T*>(l.network_logits), Size{spec.rows, spec.columns},
           spec.queries, spec.rules.logits_size, l.resampled);
}

template <class T>
void run(cudaStream_t stream, const PostprocessLaunch& l) {
    if (l.network->rules.exclusive) {
        run_of<T, Planes::of_scored>(stream, l);
    } else if (l.network->predict_all_pixels) {
        run_of<T, Planes::of_queries>(stream, l);
    } else {
        run_of<T, Planes::of_candidates>(stream, l);
    }
}

}  // namespace

void launch_resample(cudaStream_t stream, const PostprocessLaunch& l) {
    if (l.network->mask_logits == DType::f16) {
        run<__half>(stream, l);
    } else {
        run<float>(stream, l);
    }
}

}  // namespace fai::cuda
