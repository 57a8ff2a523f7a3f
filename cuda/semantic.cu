// Semantic results: which query wins each pixel.
#include <cstdint>

#include "csrc/math/masks.h"
#include "csrc/math/sampling.h"
#include "cuda/device.cuh"
#include "cuda/params.cuh"
#include "cuda/warp.cuh"

namespace fai::cuda {
namespace {

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

}  // namespace

template <class T>
void launch_semantic(cudaStream_t stream, const PostprocessLaunch& l) {
    const GraphSpec& spec = *l.spec;
    const T* const masks = static_cast<const T*>(l.mask_logits);
    const int tiles =
        ((spec.rows + kTileCells - 1) / kTileCells) * ((spec.columns + kTileCells - 1) / kTileCells);
    const dim3 grid(tiles, spec.batch);
    if (narrow(spec)) {
        launch(stream, grid, dim3(kThreads), contest<T, uint8_t>, l.params, masks, spec.queries, spec.rows,
               spec.columns);
    } else {
        launch(stream, grid, dim3(kThreads), contest<T, uint16_t>, l.params, masks, spec.queries, spec.rows,
               spec.columns);
    }
}

template void launch_semantic<float>(cudaStream_t, const PostprocessLaunch&);
template void launch_semantic<__half>(cudaStream_t, const PostprocessLaunch&);

}  // namespace fai::cuda
