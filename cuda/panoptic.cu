// Panoptic results: which pixels are a query's own, which queries are segments, and the labels' way to the
// host once that is known. Who wins a pixel is in contest.cuh.
//
// Bytes. The mask logits of the queries that compete are read twice, for their own pixels and for the
// contest, from the L2 cache where they fit; labels are written, read, written where they change, and
// sent: 2.1 MB at 1080p, which take 38 us of a bus of 55 GB/s. That is the floor, as for semantic results,
// but here nothing of it can be sent before the last pixel is decided.
#include <cstdint>

#include "csrc/math/panoptic.h"
#include "cuda/contest.cuh"
#include "cuda/device.cuh"
#include "cuda/params.cuh"
#include "cuda/rows.cuh"
#include "cuda/warp.cuh"

namespace fai::cuda {
namespace {

// Cell rows that a block looks at, at once.
constexpr int32_t kCellRows = 4;

// A cell's corners.
struct Corners {
    float above_left, above_right, below_left, below_right;
};

template <class T>
__device__ __forceinline__ Corners logits_of(const T* mask, int32_t rows, int32_t columns, int32_t i,
                                             int32_t j) {
    const int32_t above = i * columns, below = min_i32(i + 1, rows - 1) * columns;
    const int32_t right = min_i32(j + 1, columns - 1);
    return {to_float(mask[above + j]), to_float(mask[above + right]), to_float(mask[below + j]),
            to_float(mask[below + right])};
}

// How many of a cell's pixels are the query's own, this lane's share of them. By a whole warp.
template <class Flag>
__device__ __forceinline__ int32_t count_cell(const ImageParams& image, const Corners& logits, int32_t i,
                                              int32_t j, float weight) {
    const int lane = threadIdx.x & 31;
    constexpr bool of_logits = Flag{};
    const Corners at = {node_value(logits.above_left, of_logits), node_value(logits.above_right, of_logits),
                        node_value(logits.below_left, of_logits), node_value(logits.below_right, of_logits)};
    const int32_t x1 = image.x.first[j], y1 = image.y.first[i];
    const auto width = static_cast<uint32_t>(image.x.first[j + 1] - x1);
    const auto height = static_cast<uint32_t>(image.y.first[i + 1] - y1);
    int32_t count = 0;
    for (uint32_t p = lane; p < width * height; p += 32) {
        const uint32_t line = p / width;
        const int32_t y = y1 + static_cast<int32_t>(line), x = x1 + static_cast<int32_t>(p - line * width);
        const float down = image.y.fraction[y];
        const float left = math::lerp(at.above_left, at.below_left, down);
        const float right = math::lerp(at.above_right, at.below_right, down);
        float m = math::lerp(left, right, image.x.fraction[x]);
        if (of_logits && !by_logit<Flag>) m = math::sigmoid(m);
        count += math::inside(math::own_worth(m, weight), image.mask_threshold);
    }
    return count;
}

// The pixels that are each candidate's own. A cell counts whole, or not at all, where bounds of its corners
// say so; the pixels of the others are looked at by a warp. Four blocks on a multiprocessor leave 64
// registers to a thread, with which nothing spills; unasked, nvcc takes fewer on some cards.
template <class T, class Flag>
__global__ void __launch_bounds__(kThreads, 4)
    count_own(const ImageParams* __restrict__ params, const T* __restrict__ mask_logits, int32_t queries,
              int32_t rows, int32_t columns, bool weighted) {
    const ImageParams& image = params[blockIdx.y];
    if (!image.active) return;
    const int lane = threadIdx.x & 31;
    const auto chunks = static_cast<uint32_t>((rows + kCellRows - 1) / kCellRows);
    const uint32_t items = static_cast<uint32_t>(image.counters[kCandidates]) * chunks;
    const int64_t plane = static_cast<int64_t>(rows) * columns;
    const float threshold = image.mask_threshold;
    for (uint32_t item = blockIdx.x; item < items; item += gridDim.x) {
        const int32_t q = image.candidates[item / chunks];
        const int32_t begin = static_cast<int32_t>(item % chunks) * kCellRows;
        const int32_t cells = min_i32(rows - begin, kCellRows) * columns;
        QueryState& query = image.queries[q];
        const float weight = weighted ? query.score : 1.0f;
        const T* const mask =
            mask_logits + (static_cast<int64_t>(blockIdx.y) * queries + plane_of<Flag>(image, q)) * plane;
        int32_t own = 0;
        for (int32_t first = 0; first < cells; first += kThreads) {
            const int32_t cell = first + static_cast<int32_t>(threadIdx.x);
            const bool mine = cell < cells;
            const int32_t i = begin + (mine ? cell / columns : 0), j = mine ? cell % columns : 0;
            const int32_t pixels =
                mine ? (image.x.first[j + 1] - image.x.first[j]) * (image.y.first[i + 1] - image.y.first[i])
                     : 0;
            bool mixed = false;
            if (pixels > 0) {
                const Corners at = logits_of(mask, rows, columns, i, j);
                const float lowest = math::minimum(math::minimum(at.above_left, at.above_right),
                                                   math::minimum(at.below_left, at.below_right));
                const float highest = math::maximum(math::maximum(at.above_left, at.above_right),
                                                    math::maximum(at.below_left, at.below_right));
                bool all, none;
                if constexpr (by_logit<Flag>) {
                    const float least = math::bounded(lowest), most = math::bounded(highest);
                    const float room = room_between(least, most);
                    all = (least - room) * weight >= threshold;
                    none = (most + room) * weight < threshold;
                } else {
                    all = about_sigmoid(lowest) * weight * kBelow - kNothing >= threshold;
                    none = about_sigmoid(highest) * weight * kAbove + kNothing < threshold;
                }
                if (all) own += pixels;
                mixed = !all && !none;
            }
            for (unsigned open = __ballot_sync(kAllLanes, mixed); open; open &= open - 1) {
                const int source = __ffs(static_cast<int>(open)) - 1;
                const int32_t y = __shfl_sync(kAllLanes, i, source), x = __shfl_sync(kAllLanes, j, source);
                own += count_cell<Flag>(image, logits_of(mask, rows, columns, y, x), y, x, weight);
            }
        }
        own = warp_reduce_sum(own);
        if (lane == 0 && own) atomicAdd(&query.own, static_cast<unsigned long long>(own));
    }
}

// Which queries are segments, and of stuff which are one with which; by one block, when areas, boxes and own
// pixels are complete. A query whose segment is another's gives it what it has.
__device__ __forceinline__ void settle(const ImageParams& image, int32_t queries, const uint8_t* stuff,
                                       double overlap_threshold) {
    __shared__ int32_t class_of[kMaxSemanticQueries];  // -1 where a query is no segment
    for (int32_t q = threadIdx.x; q < queries; q += kThreads) {
        const QueryState& query = image.queries[q];
        const bool exists = !query.rejected && query.area > 0 &&
                            math::is_segment(static_cast<int64_t>(query.area + query.lost),
                                             static_cast<int64_t>(query.own), overlap_threshold);
        class_of[q] = exists ? query.class_id : -1;
    }
    __syncthreads();
    for (int32_t q = threadIdx.x; q < queries; q += kThreads) {
        QueryState& query = image.queries[q];
        int32_t segment = class_of[q] < 0 ? -1 : q;
        if (segment >= 0 && stuff && stuff[class_of[q]]) {
            segment = 0;
            while (class_of[segment] != class_of[q]) ++segment;
        }
        query.segment = segment;
        if (segment == q) continue;
        query.rejected = 1;
        if (segment < 0) continue;
        QueryState& to = image.queries[segment];
        atomicAdd(&to.area, query.area);
        atomicMin(&to.x1, query.x1);
        atomicMax(&to.x2, query.x2);
        atomicMin(&to.y1, query.y1);
        atomicMax(&to.y2, query.y2);
    }
    __threadfence();
    __syncthreads();
}

// A block per tile. The last of all settles which queries are segments, and knows the rows.
template <class T, class L, bool only_own>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 ? 4 : 3)
    panoptic_argmax(const ImageParams* __restrict__ params, const T* __restrict__ mask_logits,
                    int32_t queries, int32_t rows, int32_t columns, const uint8_t* __restrict__ stuff,
                    double overlap_threshold, bool of_logits) {
    const ImageParams& image = params[blockIdx.y];
    if (!image.active) return;
    decide<only_own, T, L>(image, mask_logits + static_cast<int64_t>(blockIdx.y) * queries * rows * columns,
                           queries, rows, columns, of_logits);
    if (!last_to_arrive(image.counters + kDone, static_cast<int32_t>(gridDim.x))) return;
    settle(image, queries, stuff, overlap_threshold);
    finish(image, queries, true, 1);
}

// Labels become those of their segments, here and at the host; sixteen bytes per thread at a time.
template <class L>
__global__ void __launch_bounds__(kThreads)
    send_segments(const ImageParams* __restrict__ params, int32_t queries) {
    __shared__ L segment[kMaxSemanticQueries];
    __shared__ bool changes;
    const ImageParams& image = params[blockIdx.y];
    if (!image.active) return;
    constexpr L kNobody = static_cast<L>(-1);
    if (threadIdx.x == 0) changes = false;
    __syncthreads();
    for (int32_t q = threadIdx.x; q < queries; q += kThreads) {
        const QueryState& query = image.queries[q];
        segment[q] = static_cast<L>(query.segment);
        if (query.segment != q && query.area > 0) changes = true;
    }
    __syncthreads();
    const auto label_of = [&](L label) { return label == kNobody ? kNobody : segment[label]; };
    constexpr int kLabels = 16 / sizeof(L);
    union Vector {
        uint4 words;
        L labels[kLabels];
    };
    L* const labels = static_cast<L*>(image.segments);
    L* const out = reinterpret_cast<L*>(image.payload);
    const int64_t pixels = static_cast<int64_t>(image.size.height) * image.size.width;
    const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
    const int64_t start = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    for (int64_t v = start; v < pixels / kLabels; v += step) {
        Vector vector;
        vector.words = reinterpret_cast<const uint4*>(labels)[v];
        if (changes) {
            for (int k = 0; k < kLabels; ++k) vector.labels[k] = label_of(vector.labels[k]);
            reinterpret_cast<uint4*>(labels)[v] = vector.words;
        }
        reinterpret_cast<uint4*>(out)[v] = vector.words;
    }
    for (int64_t p = pixels / kLabels * kLabels + start; p < pixels; p += step) {
        out[p] = labels[p] = label_of(labels[p]);
    }
}

template <class T, class L>
void launch_contest(cudaStream_t stream, const PostprocessLaunch& l) {
    const GraphSpec& spec = *l.spec;
    const int tiles =
        ((spec.rows + kTileCells - 1) / kTileCells) * ((spec.columns + kTileCells - 1) / kTileCells);
    auto* const kernel = spec.rules.weighted ? panoptic_argmax<T, L, false> : panoptic_argmax<T, L, true>;
    launch(stream, dim3(tiles, spec.batch), dim3(kThreads), kernel, l.params,
           static_cast<const T*>(l.mask_logits), spec.queries, spec.rows, spec.columns, l.stuff,
           spec.rules.overlap_threshold, spec.rules.of_logits);
    launch(stream, dim3(2 * l.multiprocessors, spec.batch), dim3(kThreads), send_segments<L>, l.params,
           spec.queries);
}

}  // namespace

template <class T>
void launch_own(cudaStream_t stream, const PostprocessLaunch& l) {
    const GraphSpec& spec = *l.spec;
    auto* counts = spec.rules.of_logits ? count_own<T, Known<true>> : count_own<T, Known<false>>;
    if (spec.rules.exclusive) counts = count_own<T, ByLogit>;
    launch(stream, dim3(resident_blocks(counts, l.multiprocessors), spec.batch), dim3(kThreads), counts,
           l.params, static_cast<const T*>(l.mask_logits), spec.queries, spec.rows, spec.columns,
           spec.rules.weighted || spec.rules.exclusive);
}

template void launch_own<float>(cudaStream_t, const PostprocessLaunch&);
template void launch_own<__half>(cudaStream_t, const PostprocessLaunch&);

template <class T>
void launch_panoptic(cudaStream_t stream, const PostprocessLaunch& l) {
    const GraphSpec& spec = *l.spec;
    launch_own<T>(stream, l);
    if (narrow(spec)) {
        launch_contest<T, uint8_t>(stream, l);
    } else {
        launch_contest<T, uint16_t>(stream, l);
    }
}

template void launch_panoptic<float>(cudaStream_t, const PostprocessLaunch&);
template void launch_panoptic<__half>(cudaStream_t, const PostprocessLaunch&);

}  // namespace fai::cuda
