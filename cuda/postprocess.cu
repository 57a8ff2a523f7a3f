// From a network's outputs to rows and packed masks, or to labels: docs/postprocess.md on the GPU. What a
// pixel is comes from csrc/math; here is who walks over pixels.
//
// Bytes. Instances: the mask logits of the queries whose class score passes are read once and written as
// probabilities (Q' * h * w * (itemsize + 4)), then read again from L2; masks are drawn into a canvas and
// their boxes copied to the host. Semantic: all mask logits are read twice (once for NaN), labels written
// twice, the second time to the host. At 1080p with Q = 100, 160 x 160 float16: 20 instances 3 MB + the
// masks' boxes, 0.01 ms of a T4's memory; semantic 10 MB + 4 MB, 0.05 ms.
#include <cstdint>

#include "csrc/math/masks.h"
#include "csrc/math/sampling.h"
#include "cuda/device.cuh"
#include "cuda/params.cuh"

namespace fai::cuda {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarps = kThreads / 32;
// Queries whose score is this little below the threshold are kept for the host to decide, in double.
constexpr double kSlack = 1e-6;

__device__ __forceinline__ int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
__device__ __forceinline__ int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }
__device__ __forceinline__ bool is_nan(float x) { return !(x == x); }
__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

template <class T>
__device__ __forceinline__ T largest_of_warp(T value) {
    for (int step = 16; step > 0; step /= 2) {
        const T other = __shfl_xor_sync(kAllLanes, value, step);
        value = value > other ? value : other;
    }
    return value;
}

template <class T>
__device__ __forceinline__ T smallest_of_warp(T value) {
    for (int step = 16; step > 0; step /= 2) {
        const T other = __shfl_xor_sync(kAllLanes, value, step);
        value = value < other ? value : other;
    }
    return value;
}

template <class T>
__device__ __forceinline__ T sum_of_warp(T value) {
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
    return value;
}

// Whole units of a sum of probabilities: integers add up to the same in any order.
__device__ __forceinline__ unsigned long long units(float sum) {
    return static_cast<unsigned long long>(sum * 16777216.0f);
}

// ---- class scores (step 1), and whether a mask has NaN

// One warp; as the CPU's class_score, with its sixteen lanes, so that scores have the same bits.
template <class T>
__device__ void score(const T* logits, int32_t columns, bool softmax, Query& query) {
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
    best = largest_of_warp(best);
    int32_t class_id = INT32_MAX;
    for (int32_t k = lane; k < classes && class_id == INT32_MAX; k += 32) {
        if (to_float(logits[k]) >= best) class_id = k;
    }
    class_id = smallest_of_warp(class_id);

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
        value = exp(static_cast<double>(best) - static_cast<double>(largest)) / total;
    } else {
        value = 1.0 / (1.0 + exp(-static_cast<double>(best)));
    }
    if (lane != 0) return;
    query.best = best;
    query.largest = largest;
    query.total = total;
    query.class_id = class_id == INT32_MAX ? 0 : class_id;
    query.score = static_cast<float>(value);
    query.out = nan || is_nan(query.score);
    query.row_begin = query.column_begin = INT32_MAX;
    query.row_end = query.column_end = 0;
    query.x1 = query.y1 = INT32_MAX;
    query.x2 = query.y2 = 0;
    query.area = query.sum = 0;
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

// A block a query.
template <class T, class C>
__global__ void __launch_bounds__(kThreads)
    score_queries(const ImageParams* __restrict__ params, const T* __restrict__ mask_logits,
                  const C* __restrict__ class_logits, int32_t queries, int64_t plane, int32_t class_columns,
                  bool softmax, bool semantic) {
    const ImageParams& image = params[blockIdx.y];
    if (!image.active) return;
    const int32_t q = blockIdx.x;
    const int64_t index = static_cast<int64_t>(blockIdx.y) * queries + q;
    bool nan = false;
    if (semantic) nan = scan_for_nan(mask_logits + index * plane, plane);
    nan = __syncthreads_or(nan);
    if (threadIdx.x >= 32) return;
    Query& query = image.queries[q];
    score(class_logits + index * class_columns, class_columns, softmax, query);
    if (threadIdx.x != 0) return;
    if (nan) query.out = 1;
    if (!semantic && !query.out && image.mask_threshold_reachable && query.score > image.threshold - kSlack) {
        image.candidates[atomicAdd(image.counters, 1)] = q;
    }
}

// ---- instances

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

// ---- semantic results

constexpr int32_t kTileCells = 8;
constexpr int32_t kTileNodes = kTileCells + 1;
constexpr int32_t kNodesOfTile = kTileNodes * kTileNodes;
constexpr int32_t kCellsOfTile = kTileCells * kTileCells;
// Contestants of a tile that are kept at hand; where there are more, their nodes are computed again for every
// pixel.
constexpr int32_t kAtHand = 40;
// The interpolation may round past a corner by a unit in the last place.
constexpr float kRounding = 1.000001f;

// A tile's nodes of one query, clamped at the edge.
template <class T>
__device__ __forceinline__ float node_of(const T* mask, int32_t rows, int32_t columns, int32_t row,
                                         int32_t column, int32_t node) {
    const int32_t y = smaller(row + node / kTileNodes, rows - 1);
    const int32_t x = smaller(column + node % kTileNodes, columns - 1);
    return math::sigmoid(to_float(mask[static_cast<int64_t>(y) * columns + x]));
}

template <class L>
struct Tally {
    uint32_t area;
    int32_t x1, y1, x2, y2;
    unsigned long long sum;
};

// What a warp's lanes won, lane l the pixel (x + l, y): added to `add(winner, mask, x1, x2, sum)` once for
// each winner. `winner` is -1 in lanes without a pixel.
template <class Add>
__device__ __forceinline__ void tally(int32_t winner, float m, bool want_sum, const Add& add) {
    const int lane = threadIdx.x & 31;
    unsigned open = __ballot_sync(kAllLanes, winner >= 0);
    while (open) {
        const int32_t current = __shfl_sync(kAllLanes, winner, __ffs(static_cast<int>(open)) - 1);
        const unsigned mine = __ballot_sync(kAllLanes, winner == current);
        const float sum = want_sum ? sum_of_warp(winner == current ? m : 0.0f) : 0.0f;
        if (lane == 0) add(current, mine, sum);
        open &= ~mine;
    }
}

// A block decides the pixels of kTileCells x kTileCells cells. Bilinear values lie between their cell's
// smallest and largest corner: a query competes only where its largest node in the tile, times its score,
// reaches what every cell of the tile is guaranteed by the smallest corner of some query.
template <class T, class L>
__global__ void __launch_bounds__(kThreads, 4)
    contest(const ImageParams* __restrict__ params, const T* __restrict__ mask_logits, int32_t queries,
            int32_t rows, int32_t columns) {
    __shared__ float top[kMaxSemanticQueries];
    __shared__ float guaranteed[kWarps][kCellsOfTile];
    __shared__ float nodes[kAtHand][kNodesOfTile];
    __shared__ int32_t list[kMaxSemanticQueries];
    __shared__ int32_t contestants;
    __shared__ Tally<L> won[kAtHand];

    const ImageParams& image = params[blockIdx.y];
    if (!image.active) return;
    const int32_t tiles_across = (columns + kTileCells - 1) / kTileCells;
    const int32_t row = static_cast<int32_t>(blockIdx.x) / tiles_across * kTileCells;
    const int32_t column = static_cast<int32_t>(blockIdx.x) % tiles_across * kTileCells;
    const int32_t row_end = smaller(row + kTileCells, rows),
                  column_end = smaller(column + kTileCells, columns);
    const int32_t y_begin = image.y.first[row], y_end = image.y.first[row_end];
    const int32_t x_begin = image.x.first[column], x_end = image.x.first[column_end];
    if (y_begin >= y_end || x_begin >= x_end) return;

    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    const int64_t plane = static_cast<int64_t>(rows) * columns;
    const T* const masks = mask_logits + static_cast<int64_t>(blockIdx.y) * queries * plane;
    const bool want_sum = image.use_mask_score;

    // A warp a query: its largest node, and for two cells a lane what it guarantees them.
    float least[2] = {-1.0f, -1.0f};
    float* const scratch = nodes[warp];
    for (int32_t q = warp; q < queries; q += kWarps) {
        const Query& query = image.queries[q];
        if (query.out) {
            if (lane == 0) top[q] = -1.0f;
            continue;
        }
        const float score = query.score;
        float most = 0.0f;
        for (int32_t n = lane; n < kNodesOfTile; n += 32) {
            const float m = node_of(masks + q * plane, rows, columns, row, column, n);
            scratch[n] = m;
            most = m > most ? m : most;
        }
        __syncwarp();
        for (int k = 0; k < 2; ++k) {
            const int32_t cell = lane + 32 * k;
            const float* const corner = scratch + cell / kTileCells * kTileNodes + cell % kTileCells;
            const float low = math::minimum(math::minimum(corner[0], corner[1]),
                                            math::minimum(corner[kTileNodes], corner[kTileNodes + 1]));
            least[k] = math::maximum(least[k], low * score);
        }
        __syncwarp();
        most = largest_of_warp(most);
        if (lane == 0) top[q] = most * score * kRounding;
    }
    for (int k = 0; k < 2; ++k) guaranteed[warp][lane + 32 * k] = least[k];
    __syncthreads();

    if (warp == 0) {
        // Cells without pixels guarantee what they like.
        float lowest = infinity();
        for (int k = 0; k < 2; ++k) {
            const int32_t cell = lane + 32 * k;
            const int32_t i = row + cell / kTileCells, j = column + cell % kTileCells;
            float best = -1.0f;
            for (int w = 0; w < kWarps; ++w) best = math::maximum(best, guaranteed[w][cell]);
            const bool has_pixels = i < row_end && j < column_end &&
                                    image.y.first[i] < image.y.first[i + 1] &&
                                    image.x.first[j] < image.x.first[j + 1];
            if (has_pixels) lowest = math::minimum(lowest, best);
        }
        lowest = smallest_of_warp(lowest);
        // In order of the queries, because the first wins a tie.
        int32_t count = 0;
        for (int32_t first = 0; first < queries; first += 32) {
            const int32_t q = first + lane;
            const bool competes = q < queries && top[q] >= 0.0f && top[q] >= lowest;
            const unsigned those = __ballot_sync(kAllLanes, competes);
            if (competes) list[count + __popc(those & ((1u << lane) - 1u))] = q;
            count += __popc(those);
        }
        if (lane == 0) {
            contestants = count;
        }
    }
    for (int32_t c = threadIdx.x; c < kAtHand; c += kThreads) {
        won[c] = {0, INT32_MAX, INT32_MAX, 0, 0, 0};
    }
    __syncthreads();
    const int32_t count = contestants;
    const bool at_hand = count <= kAtHand;
    if (at_hand) {
        for (int32_t n = threadIdx.x; n < count * kNodesOfTile; n += kThreads) {
            const int32_t c = n / kNodesOfTile;
            nodes[c][n % kNodesOfTile] =
                node_of(masks + list[c] * plane, rows, columns, row, column, n % kNodesOfTile);
            if (n % kNodesOfTile == 0) top[c] = image.queries[list[c]].score;
        }
    }
    __syncthreads();

    L* const labels = static_cast<L*>(image.segments);
    for (int32_t y = y_begin + warp; y < y_end; y += kWarps) {
        const int32_t i = image.y.cell[y] - row;
        const float down = image.y.fraction[y];
        for (int32_t x0 = x_begin; x0 < x_end; x0 += 32) {
            const int32_t x = x0 + lane;
            const bool mine = x < x_end;
            int32_t winner = -1;
            float best = -1.0f, best_m = 0.0f;
            if (mine) {
                const int32_t j = image.x.cell[x] - column;
                const float across = image.x.fraction[x];
                const int32_t corner = i * kTileNodes + j;
                for (int32_t c = 0; c < count; ++c) {
                    float above_left, above_right, below_left, below_right, score;
                    if (at_hand) {
                        const float* const at = nodes[c] + corner;
                        above_left = at[0];
                        above_right = at[1];
                        below_left = at[kTileNodes];
                        below_right = at[kTileNodes + 1];
                        score = top[c];
                    } else {
                        const T* const mask = masks + list[c] * plane;
                        above_left = node_of(mask, rows, columns, row, column, corner);
                        above_right = node_of(mask, rows, columns, row, column, corner + 1);
                        below_left = node_of(mask, rows, columns, row, column, corner + kTileNodes);
                        below_right = node_of(mask, rows, columns, row, column, corner + kTileNodes + 1);
                        score = image.queries[list[c]].score;
                    }
                    const float left = math::lerp(above_left, below_left, down);
                    const float right = math::lerp(above_right, below_right, down);
                    const float m = math::lerp(left, right, across);
                    const float worth = m * score;
                    if (math::takes(worth, best)) {
                        best = worth;
                        best_m = m;
                        winner = c;
                    }
                }
                labels[static_cast<int64_t>(y) * image.size.width + x] =
                    winner < 0 ? static_cast<L>(-1) : static_cast<L>(list[winner]);
            }
            tally(winner, best_m, want_sum, [&](int32_t c, unsigned lanes, float sum) {
                const auto area = static_cast<uint32_t>(__popc(lanes));
                const int32_t x1 = x0 + __ffs(static_cast<int>(lanes)) - 1;
                const int32_t x2 = x0 + 32 - __clz(static_cast<int>(lanes));
                if (at_hand) {
                    atomicAdd(&won[c].area, area);
                    atomicMin(&won[c].x1, x1);
                    atomicMax(&won[c].x2, x2);
                    atomicMin(&won[c].y1, y);
                    atomicMax(&won[c].y2, y + 1);
                    if (want_sum) atomicAdd(&won[c].sum, units(sum));
                } else {
                    Query& query = image.queries[list[c]];
                    atomicAdd(&query.area, static_cast<unsigned long long>(area));
                    atomicMin(&query.x1, x1);
                    atomicMax(&query.x2, x2);
                    atomicMin(&query.y1, y);
                    atomicMax(&query.y2, y + 1);
                    if (want_sum) atomicAdd(&query.sum, units(sum));
                }
            });
        }
    }
    if (!at_hand) return;
    __syncthreads();
    for (int32_t c = threadIdx.x; c < count; c += kThreads) {
        if (won[c].area == 0) continue;
        Query& query = image.queries[list[c]];
        atomicAdd(&query.area, static_cast<unsigned long long>(won[c].area));
        atomicAdd(&query.sum, won[c].sum);
        atomicMin(&query.x1, won[c].x1);
        atomicMin(&query.y1, won[c].y1);
        atomicMax(&query.x2, won[c].x2);
        atomicMax(&query.y2, won[c].y2);
    }
}

// ---- rows (steps 4 to 6), and the way to the host

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

bool narrow(const GraphSpec& spec) { return spec.queries <= 255; }

template <class T, class C>
void launch_scores(cudaStream_t stream, const PostprocessLaunch& l) {
    const GraphSpec& spec = *l.spec;
    launch(stream, dim3(spec.queries, spec.batch), dim3(kThreads), score_queries<T, C>, l.params,
           static_cast<const T*>(l.mask_logits), static_cast<const C*>(l.class_logits), spec.queries,
           static_cast<int64_t>(spec.rows) * spec.columns, spec.class_columns, spec.softmax,
           spec.predict_all_pixels);
}

template <class T>
void launch_masks(cudaStream_t stream, const PostprocessLaunch& l) {
    const GraphSpec& spec = *l.spec;
    if (spec.class_logits == DType::f16) {
        launch_scores<T, __half>(stream, l);
    } else {
        launch_scores<T, float>(stream, l);
    }
    const T* const masks = static_cast<const T*>(l.mask_logits);
    if (spec.predict_all_pixels) {
        const int tiles =
            ((spec.rows + kTileCells - 1) / kTileCells) * ((spec.columns + kTileCells - 1) / kTileCells);
        const dim3 grid(tiles, spec.batch);
        if (narrow(spec)) {
            launch(stream, grid, dim3(kThreads), contest<T, uint8_t>, l.params, masks, spec.queries,
                   spec.rows, spec.columns);
        } else {
            launch(stream, grid, dim3(kThreads), contest<T, uint16_t>, l.params, masks, spec.queries,
                   spec.rows, spec.columns);
        }
        return;
    }
    // As many blocks as the device holds at once: how much there is to do is known on the device alone.
    const dim3 grid(4 * l.multiprocessors, spec.batch);
    launch(stream, grid, dim3(kThreads), find_nodes<T>, l.params, masks, spec.queries, spec.rows,
           spec.columns);
    launch(stream, grid, dim3(kThreads), draw_instances, l.params, spec.rows, spec.columns);
}

}  // namespace

void launch_postprocess(cudaStream_t stream, const PostprocessLaunch& l) {
    if (l.spec->mask_logits == DType::f16) {
        launch_masks<__half>(stream, l);
    } else {
        launch_masks<float>(stream, l);
    }
    launch(stream, dim3(l.spec->batch), dim3(kThreads), finish, l.params, l.spec->queries,
           l.spec->predict_all_pixels);
    launch_pack(stream, l);
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
