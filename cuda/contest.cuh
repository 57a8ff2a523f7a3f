// The contest of queries for pixels: what a block does for its tile of the image.
#pragma once

#include <cstdint>
#include <type_traits>

#include "csrc/math/masks.h"
#include "csrc/math/sampling.h"
#include "cuda/params.cuh"
#include "cuda/warp.cuh"

namespace fai::cuda {

inline constexpr int32_t kTileNodes = kTileCells + 1;
inline constexpr int32_t kNodesOfTile = kTileNodes * kTileNodes;
inline constexpr int32_t kCellsOfTile = kTileCells * kTileCells;
static_assert(2 * kCellsOfTile == 32, "a warp looks at the cells of two queries at once");
// Contestants of a tile that are kept at hand; where there are more, their nodes are computed again for every
// pixel.
inline constexpr int32_t kAtHand = 40;
// What about_sigmoid(), the sigmoid itself and the interpolation may round off, with room to spare: relative,
// and for what is next to nothing.
inline constexpr float kAbove = 1.0001f, kBelow = 0.9999f, kNothing = 1e-30f;

// The sigmoid with the hardware's approximations, to 2e-5 of itself or 1e-34: for bounds, which decide no
// pixel.
__device__ __forceinline__ float about_sigmoid(float x) {
    const float clamped = x > 80.0f ? 80.0f : x < -80.0f ? -80.0f : x;
    return __fdividef(1.0f, 1.0f + __expf(-clamped));
}

// What is interpolated between the nodes of a mask: probabilities, or logits.
__device__ __forceinline__ float node_value(float logit, bool of_logits) {
    return of_logits ? math::bounded(logit) : math::sigmoid(logit);
}

// A tile's nodes of one query, clamped at the edge.
template <class T>
__device__ __forceinline__ float node_of(const T* mask, int32_t rows, int32_t columns, int32_t row,
                                         int32_t column, int32_t node, bool of_logits = false) {
    const int32_t y = min_i32(row + node / kTileNodes, rows - 1);
    const int32_t x = min_i32(column + node % kTileNodes, columns - 1);
    return node_value(to_float(mask[static_cast<int64_t>(y) * columns + x]), of_logits);
}

// A bool that the compiler knows.
template <bool value>
struct Known {
    __host__ __device__ constexpr operator bool() const { return value; }
};

// A flag of logits that are interpolated and compete as they are, times the scores of rows of which several
// may be of one query.
struct ByLogit {
    __host__ __device__ constexpr operator bool() const { return true; }
};
template <class Flag>
inline constexpr bool by_logit = std::is_same_v<Flag, ByLogit>;

// Less than anything that competes.
template <class Flag>
__device__ __forceinline__ float worth_nothing() {
    return by_logit<Flag> ? -infinity() : -1.0f;
}

// Whose mask is looked at.
template <class Flag>
__device__ __forceinline__ int32_t plane_of(const ImageParams& image, int32_t q) {
    return by_logit<Flag> ? image.queries[q].query : q;
}

// What the interpolation of logits between these may round past them, with room to spare.
__device__ __forceinline__ float room_between(float lowest, float highest) {
    return (highest - lowest) * 1e-6f;
}

// What a contestant has won of a tile, and what it would have if that were its own.
struct Tally {
    uint32_t area, lost;
    int32_t x1, y1, x2, y2;
    unsigned long long sum;
};

// Which part of an image a block decides: kTileCells x kTileCells cells, and their pixels.
struct Tile {
    int32_t row, column, row_end, column_end;
    int32_t y_begin, y_end, x_begin, x_end;
};

__device__ __forceinline__ Tile tile_of(const ImageParams& image, int32_t rows, int32_t columns,
                                        int32_t index) {
    const int32_t across = (columns + kTileCells - 1) / kTileCells;
    Tile tile;
    tile.row = index / across * kTileCells;
    tile.column = index % across * kTileCells;
    tile.row_end = min_i32(tile.row + kTileCells, rows);
    tile.column_end = min_i32(tile.column + kTileCells, columns);
    tile.y_begin = image.y.first[tile.row];
    tile.y_end = image.y.first[tile.row_end];
    tile.x_begin = image.x.first[tile.column];
    tile.x_end = image.x.first[tile.column_end];
    return tile;
}

// Fills `list` with the queries that can win a pixel of the tile, in their order, and returns their number.
// Bilinear values lie between their cell's smallest and largest corner, and the sigmoid is monotone: a query
// competes only where the bound of its largest logit, times its score, reaches what every cell is guaranteed
// by the smallest corner of some query. `top` is room for a value per query. By logit bounds are products of
// logits.
template <class Flag, class T>
__device__ __forceinline__ int32_t contestants_of(const ImageParams& image, const T* masks, int32_t queries,
                                                  int32_t rows, int32_t columns, const Tile& tile, float* top,
                                                  int32_t* list) {
    __shared__ float guaranteed[kWarps][kCellsOfTile];
    __shared__ int32_t contestants;
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    const int64_t plane = static_cast<int64_t>(rows) * columns;

    // Half a warp per query, a lane per cell, which is at the same place in every query's plane.
    const int32_t cell = lane % kCellsOfTile;
    const int32_t i = tile.row + cell / kTileCells, j = tile.column + cell % kTileCells;
    const int32_t above = min_i32(i, rows - 1) * columns, below = min_i32(i + 1, rows - 1) * columns;
    const int32_t left = min_i32(j, columns - 1), right = min_i32(j + 1, columns - 1);
    float least = worth_nothing<Flag>();
#pragma unroll 2
    for (int32_t first = 2 * warp; first < queries; first += 2 * kWarps) {
        const int32_t q = first + lane / kCellsOfTile;
        float lowest = 0.0f, highest = 0.0f, score = 0.0f;
        bool rejected = true;
        if (q < queries) {
            const T* const mask = masks + plane_of<Flag>(image, q) * plane;
            const float a = to_float(mask[above + left]), b = to_float(mask[above + right]);
            const float c = to_float(mask[below + left]), d = to_float(mask[below + right]);
            lowest = math::minimum(math::minimum(a, b), math::minimum(c, d));
            highest = math::maximum(math::maximum(a, b), math::maximum(c, d));
            score = image.queries[q].score;
            rejected = image.queries[q].rejected;
        }
        if constexpr (by_logit<Flag>) {
            lowest = math::bounded(lowest);
            highest = math::bounded(highest);
            const float room = room_between(lowest, highest);
            if (!rejected) least = math::maximum(least, (lowest - room) * score);
            highest = highest + room;
        } else {
            if (!rejected) least = math::maximum(least, about_sigmoid(lowest) * score * kBelow - kNothing);
        }
        for (int step = kCellsOfTile / 2; step > 0; step /= 2) {
            highest = math::maximum(highest, __shfl_xor_sync(kAllLanes, highest, step));
        }
        if (cell == 0 && q < queries) {
            const float most =
                by_logit<Flag> ? highest * score : about_sigmoid(highest) * score * kAbove + kNothing;
            top[q] = rejected ? worth_nothing<Flag>() : most;
        }
    }
    least = math::maximum(least, __shfl_xor_sync(kAllLanes, least, kCellsOfTile));
    if (lane < kCellsOfTile) guaranteed[warp][cell] = least;
    __syncthreads();

    if (warp == 0) {
        float best = worth_nothing<Flag>();
        for (int w = 0; w < kWarps; ++w) best = math::maximum(best, guaranteed[w][cell]);
        // Cells without pixels guarantee what they like.
        const bool has_pixels = i < tile.row_end && j < tile.column_end &&
                                image.y.first[i] < image.y.first[i + 1] &&
                                image.x.first[j] < image.x.first[j + 1];
        const float lowest = warp_reduce_min(has_pixels ? best : infinity());
        // In order of the queries, because the first wins a tie.
        int32_t count = 0;
        for (int32_t first = 0; first < queries; first += 32) {
            const int32_t q = first + lane;
            const bool taken_in =
                q < queries && (by_logit<Flag> ? top[q] > worth_nothing<Flag>() : top[q] >= 0.0f);
            const bool competes = taken_in && top[q] >= lowest;
            const unsigned those = __ballot_sync(kAllLanes, competes);
            if (competes) list[count + __popc(those & ((1u << lane) - 1u))] = q;
            count += __popc(those);
        }
        if (lane == 0) contestants = count;
    }
    __syncthreads();
    return contestants;
}

// What a thread has gathered on its way down a column, all of it `winner`'s.
struct Run {
    int32_t winner = -1;
    int32_t y1 = 0;
    unsigned long long sum = 0;
};

// Pixels on the way down that are nobody's, as they are not their winner's own.
struct Lost {
    int32_t winner = -1;
    uint32_t pixels = 0;
};

// Adds [x1, x2) x [y1, y2), of which `area` pixels were won, to what a query or a contestant has.
template <class Area, class To>
__device__ __forceinline__ void add(To& to, Area area, int32_t x1, int32_t x2, int32_t y1, int32_t y2,
                                    unsigned long long sum, bool want_sum) {
    atomicAdd(&to.area, area);
    atomicMin(&to.x1, x1);
    atomicMax(&to.x2, x2);
    atomicMin(&to.y1, y1);
    atomicMax(&to.y2, y2);
    if (want_sum) atomicAdd(&to.sum, sum);
}

// Decides a tile's pixels between its contestants: writes labels, and adds up what was won. Where only_own, a
// pixel whose winner's probability is below mask_threshold is nobody's.
template <bool at_hand, bool only_own, class T, class L, class Flag>
__device__ __forceinline__ void go_down(const ImageParams& image, const T* masks, int32_t rows,
                                        int32_t columns, const Tile& tile, int32_t count, const int32_t* list,
                                        const float* scores, const float (*nodes)[kNodesOfTile], Tally* won,
                                        Flag of_logits) {
    const int lane = threadIdx.x & 31;
    const bool want_sum = image.use_mask_score;
    const auto flush = [&](int32_t winner, uint32_t area, int32_t x1, int32_t x2, int32_t y1, int32_t y2,
                           unsigned long long sum) {
        if constexpr (at_hand) {
            add(won[winner], area, x1, x2, y1, y2, sum, want_sum);
        } else {
            add(image.queries[list[winner]], static_cast<unsigned long long>(area), x1, x2, y1, y2, sum,
                want_sum);
        }
    };
    const auto lose = [&](const Lost& lost) {
        if (lost.winner < 0) return;
        if constexpr (at_hand) {
            atomicAdd(&won[lost.winner].lost, lost.pixels);
        } else {
            atomicAdd(&image.queries[list[lost.winner]].lost, static_cast<unsigned long long>(lost.pixels));
        }
    };
    // A thread goes down a column, where the winner seldom changes; as many strips of columns as there are
    // threads for.
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
        const int32_t j = image.x.cell[x];
        const float right_share = image.x.fraction[x];
        const int32_t from = j - tile.column - tile.row * kTileNodes;
        Run run;
        Lost lost;
        for (int32_t y = y_begin; mine && y < y_end; ++y) {
            const int32_t i = image.y.cell[y];
            const float down = image.y.fraction[y];
            int32_t winner = -1;
            float best = worth_nothing<Flag>(), best_m = 0.0f;
            for (int32_t c = 0; c < count; ++c) {
                float above_left, above_right, below_left, below_right, score;
                if constexpr (at_hand) {
                    const float* const at = nodes[c] + i * kTileNodes + from;
                    above_left = at[0];
                    above_right = at[1];
                    below_left = at[kTileNodes];
                    below_right = at[kTileNodes + 1];
                    score = scores[c];
                } else {
                    const auto node = [&](int32_t down, int32_t right) {
                        const T* const mask =
                            masks + plane_of<Flag>(image, list[c]) * (static_cast<int64_t>(rows) * columns);
                        const int32_t at =
                            min_i32(i + down, rows - 1) * columns + min_i32(j + right, columns - 1);
                        return node_value(to_float(mask[at]), of_logits);
                    };
                    above_left = node(0, 0);
                    above_right = node(0, 1);
                    below_left = node(1, 0);
                    below_right = node(1, 1);
                    score = image.queries[list[c]].score;
                }
                const float left = math::lerp(above_left, below_left, down);
                const float right = math::lerp(above_right, below_right, down);
                float m = math::lerp(left, right, right_share);
                if (!by_logit<Flag> && of_logits) m = math::sigmoid(m);
                const float worth = m * score;
                if (math::wins(worth, best)) {
                    best = worth;
                    best_m = m;
                    winner = c;
                }
            }
            if constexpr (only_own) {
                if (winner >= 0 && !math::inside(best_m, image.mask_threshold)) {
                    if (winner != lost.winner) {
                        lose(lost);
                        lost = {winner, 0};
                    }
                    ++lost.pixels;
                    winner = -1;
                }
            }
            static_cast<L*>(image.segments)[static_cast<int64_t>(y) * image.size.width + x] =
                winner < 0 ? static_cast<L>(-1) : static_cast<L>(list[winner]);
            if (winner != run.winner) {
                if (run.winner >= 0) {
                    flush(run.winner, static_cast<uint32_t>(y - run.y1), x, x + 1, run.y1, y, run.sum);
                }
                run = {winner, y, 0};
            }
            if (want_sum) run.sum += units(best_m);
        }
        if constexpr (only_own) lose(lost);
        // What the warp's lanes end with is mostly one contestant's, and added up before it is added.
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
            const unsigned long long sum = want_sum ? warp_reduce_sum(same ? run.sum : 0ull) : 0ull;
            if (lane == 0) flush(winner, static_cast<uint32_t>(area), x1, x2, y1, y2, sum);
        }
    }
}

// Where contestants are too many to have their nodes at hand. A function of its own, so that the registers
// that it needs are not held by those tiles that do not.
template <bool only_own, class T, class L, class Flag>
__device__ __attribute__((noinline)) void go_down_slowly(const ImageParams& image, const T* masks,
                                                         int32_t rows, int32_t columns, int32_t count,
                                                         const int32_t* list, Flag of_logits) {
    const Tile tile = tile_of(image, rows, columns, static_cast<int32_t>(blockIdx.x));
    go_down<false, only_own, T, L>(image, masks, rows, columns, tile, count, list, nullptr, nullptr, nullptr,
                                   of_logits);
}

// Decides a tile's pixels, and adds what was won to the queries. Where of_logits, it is logits that are
// interpolated between nodes; a Flag is a bool, a Known, or ByLogit.
template <bool only_own, class T, class L, class Flag>
__device__ __forceinline__ void decide(const ImageParams& image, const T* masks, int32_t queries,
                                       int32_t rows, int32_t columns, Flag of_logits) {
    __shared__ float top[kMaxSemanticQueries];  // then the contestants' scores
    __shared__ int32_t list[kMaxSemanticQueries];
    __shared__ float nodes[kAtHand][kNodesOfTile];
    __shared__ Tally won[kAtHand];
    const Tile tile = tile_of(image, rows, columns, static_cast<int32_t>(blockIdx.x));
    if (tile.y_begin >= tile.y_end || tile.x_begin >= tile.x_end) return;
    const int64_t plane = static_cast<int64_t>(rows) * columns;
    const bool want_sum = image.use_mask_score;
    const int32_t count = contestants_of<Flag>(image, masks, queries, rows, columns, tile, top, list);
    const bool at_hand = count <= kAtHand;
    if (at_hand) {
        for (int32_t c = threadIdx.x; c < count; c += kThreads) {
            won[c] = {0, 0, INT32_MAX, INT32_MAX, 0, 0, 0};
            top[c] = image.queries[list[c]].score;
        }
        for (int32_t n = threadIdx.x; n < count * kNodesOfTile; n += kThreads) {
            const int32_t c = n / kNodesOfTile;
            nodes[c][n % kNodesOfTile] = node_of(masks + plane_of<Flag>(image, list[c]) * plane, rows,
                                                 columns, tile.row, tile.column, n % kNodesOfTile, of_logits);
        }
    }
    __syncthreads();

    if (at_hand) {
        go_down<true, only_own, T, L>(image, masks, rows, columns, tile, count, list, top, nodes, won,
                                      of_logits);
        __syncthreads();
        for (int32_t c = threadIdx.x; c < count; c += kThreads) {
            if constexpr (only_own) {
                if (won[c].lost) {
                    atomicAdd(&image.queries[list[c]].lost, static_cast<unsigned long long>(won[c].lost));
                }
            }
            if (won[c].area == 0) continue;
            add(image.queries[list[c]], static_cast<unsigned long long>(won[c].area), won[c].x1, won[c].x2,
                won[c].y1, won[c].y2, won[c].sum, want_sum);
        }
    } else {
        go_down_slowly<only_own, T, L>(image, masks, rows, columns, count, list, of_logits);
    }
}

}  // namespace fai::cuda
