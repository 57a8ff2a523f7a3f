// Semantic results: which query wins each pixel, and the labels' way to the host.
//
// Bytes. All mask logits are read once more after the scan for NaN (postprocess.cu), from the L2 cache where
// they fit; labels are written, read and sent: 2.1 MB at 1080p, which take 38 us of a bus of 55 GB/s. That is
// the floor from the engine's end to the frame's, 3.5 % of bisenetformer-m's engine on an H200; all else
// should happen in the meantime, but for the scan and the first rows of tiles.
#include <cstdint>

#include "cuda/contest.cuh"
#include "cuda/device.cuh"
#include "cuda/labels.cuh"
#include "cuda/params.cuh"
#include "cuda/rows.cuh"
#include "cuda/warp.cuh"

namespace fai::cuda {
namespace {

// A block per tile; four of them on a multiprocessor leave 64 registers to a thread, which float32 does not
// do with. The last block of a row of tiles sends its labels to the host while other rows are being decided;
// the last of all knows which queries are kept.
template <class T, class L, class Flag>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 ? 4 : 3)
    semantic_argmax(const ImageParams* __restrict__ params, const T* __restrict__ mask_logits,
                    int32_t queries, int32_t rows, int32_t columns) {
    const ImageParams& image = params[blockIdx.y];
    if (!image.active) return;
    decide<false, T, L>(image, mask_logits + static_cast<int64_t>(blockIdx.y) * queries * rows * columns,
                        queries, rows, columns, Flag{});
    const int32_t tiles_across = (columns + kTileCells - 1) / kTileCells;
    const int32_t tiles_down = (rows + kTileCells - 1) / kTileCells;
    const int32_t tile_row = static_cast<int32_t>(blockIdx.x) / tiles_across;
    if (!last_to_arrive(image.counters + kTilesDone + tile_row, tiles_across)) return;
    if (last_to_arrive(image.counters + kDone, tiles_down)) finish(image, queries, true);
    const Tile tile = tile_of(image, rows, columns, static_cast<int32_t>(blockIdx.x));
    const int64_t line = static_cast<int64_t>(image.size.width) * static_cast<int64_t>(sizeof(L));
    send(image, tile.y_begin * line, tile.y_end * line);
}

}  // namespace

template <class T>
void launch_semantic(cudaStream_t stream, const PostprocessLaunch& l) {
    const GraphSpec& spec = *l.spec;
    const int tiles =
        ((spec.rows + kTileCells - 1) / kTileCells) * ((spec.columns + kTileCells - 1) / kTileCells);
    const auto start = [&](auto* kernel) {
        launch(stream, dim3(tiles, spec.batch), dim3(kThreads), kernel, l.params,
               static_cast<const T*>(l.mask_logits), spec.queries, spec.rows, spec.columns);
    };
    if (spec.rules.of_logits) {
        start(narrow(spec) ? semantic_argmax<T, uint8_t, Known<true>>
                           : semantic_argmax<T, uint16_t, Known<true>>);
    } else {
        start(narrow(spec) ? semantic_argmax<T, uint8_t, Known<false>>
                           : semantic_argmax<T, uint16_t, Known<false>>);
    }
}

template void launch_semantic<float>(cudaStream_t, const PostprocessLaunch&);
template void launch_semantic<__half>(cudaStream_t, const PostprocessLaunch&);

}  // namespace fai::cuda
