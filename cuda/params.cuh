// What the kernels know of an image: one struct in the device's memory, renewed before every frame, so that a
// captured graph serves frames of any size and format.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "csrc/core/frame_layout.h"
#include "csrc/core/pixel_axis.h"
#include "csrc/math/color.h"
#include "cuda/api.h"
#include "cuda/check.cuh"

namespace fai::cuda {

// What postprocessing gathers about a query. The box starts as Region::empty() of the CPU's.
struct QueryState {
    float best, largest, total;  // logit of the best class, of the best column, and the softmax's sum
    int32_t class_id;
    float score;
    int32_t rejected;  // not 0 where NaN or the threshold takes the query out
    int32_t row_begin, row_end, column_begin, column_end;  // nodes inside
    int32_t x1, y1, x2, y2;
    unsigned long long area;
    // Panoptic: pixels that are its own, pixels that it has won without being its own where those are
    // nobody's, and the query whose segment it is of, -1 where of none.
    unsigned long long own, lost;
    int32_t segment;
    int32_t query;             // exclusive: whose mask it is, of the rows that compete
    unsigned long long sum;    // in units of kSumUnit, over pixels, or nodes
    unsigned long long nodes;  // inside, where that is what the sum is over
};

struct Header {
    int32_t count;  // of rows
    int32_t candidates;
    int64_t words;  // that the masks take
};

struct ImageParams {
    int32_t active;  // 0: nothing is asked of this image

    FrameLayout layout;
    const uint8_t* plane[3];
    math::YuvCoefficients yuv;
    float scale[3], bias[3], padding[3];
    int32_t top, left;
    Size content;
    const Tap* rows;
    const Tap* columns;

    // Where logits are resized first: the nodes that the frame takes of that grid, and where they lie among
    // the network's. Else all of the network's.
    Size nodes;
    const Tap* node_rows;     // (nodes.height)
    const Tap* node_columns;  // (nodes.width)

    Size size;
    PixelAxis x, y;
    double threshold;
    float mask_threshold;
    float mask_logit;  // the same as a logit
    int32_t of_logits, nearest;
    double mask_score_epsilon;
    int32_t mask_threshold_reachable;  // 0 where it is above 1
    int32_t use_mask_score;

    int32_t* counters;     // counters_per_image() of them, 0 when a frame begins
    int32_t* candidates;   // (Q) query of each slot: instances, and panoptic in no order
    QueryState* queries;   // (Q); exclusive: rows that compete, in order of falling score
    QueryState* scored;    // (Q) exclusive: the queries
    float* probabilities;  // (slots, h', w')
    uint64_t* canvas;      // (slots, H, words per row): a mask is drawn where it may be, before it is cropped
    void* segments;        // (H, W)
    // Semantic by sum alone.
    float* class_probabilities;  // (Q, C), 0 for queries that take no part
    QueryState* classes;         // (C) what each class has won
    float* winning_sums;         // (H, W) where more classes compete than are at hand
    Row* kept;                   // (Q) the rows again, for the kernels that follow
    Header* kept_header;

    Header* header;  // pinned, like the next two
    Row* results;
    uint64_t* payload;
    int64_t payload_words;
};

inline constexpr int kThreads = 256;
// A block of a semantic contest decides this many cells in each direction.
inline constexpr int32_t kTileCells = 4;
// Where an image's counters are: candidates, blocks or rows of tiles that are done, and tiles done in each
// row.
inline constexpr int32_t kCandidates = 0, kDone = 1, kTilesDone = 2;
inline int32_t counters_per_image(const GraphSpec& spec) {
    return kTilesDone + (spec.predict_all_pixels ? (spec.rows + kTileCells - 1) / kTileCells : 0);
}
// What `rejected` is where a mask's NaN alone takes an exclusive query out.
inline constexpr int32_t kNanInMask = 2;
// A semantic contest keeps two values per query in shared memory.
inline constexpr int32_t kMaxSemanticQueries = 1024;
// By sum it keeps a bound and a number of every class besides.
inline constexpr int32_t kMaxSumClasses = 2048;

// Words of a row of a canvas.
__host__ __device__ __forceinline__ int64_t canvas_words(Size size) { return (size.width + 63) / 64; }

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }

// ---- launchers. Grids depend on the network alone, so that they can be captured.

void launch_preprocess(cudaStream_t stream, const GraphSpec& spec, const ImageParams* params, void* images);

struct PostprocessLaunch {
    // The network's; where logits are resized first, with the masks that come of it.
    const GraphSpec* spec;
    const ImageParams* params;
    const void*
        mask_logits;  // instances: null where they are resized, and lie where their probabilities will be
    const void* class_logits;
    const uint8_t* stuff;  // (C) panoptic: not 0 for classes of stuff; null where none is
    int multiprocessors;
    const GraphSpec* network;
    const void* network_logits;
    float* resampled;  // semantic: (B, Q, h, w)
};

// Are labels of one byte?
inline bool narrow(const GraphSpec& spec) { return !wide_labels(spec); }

// Blocks of kThreads threads that a device holds at once.
template <class... Parameters>
int resident_blocks(void (*kernel)(Parameters...), int multiprocessors) {
    int blocks = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, 0),
          "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    return blocks * multiprocessors;
}

// The steps of launch_postprocess(), up to the rows. T: float or __half.
template <class T>
void launch_instances(cudaStream_t stream, const PostprocessLaunch& launch);
template <class T>
void launch_semantic(cudaStream_t stream, const PostprocessLaunch& launch);
template <class T>
void launch_semantic_sum(cudaStream_t stream, const PostprocessLaunch& launch);
// Between the scores and these, where logits are resized.
void launch_resample(cudaStream_t stream, const PostprocessLaunch& launch);

void launch_postprocess(cudaStream_t stream, const PostprocessLaunch& launch);

template <class T>
void launch_panoptic(cudaStream_t stream, const PostprocessLaunch& launch);
// The pixels that are each candidate's own.
template <class T>
void launch_own(cudaStream_t stream, const PostprocessLaunch& launch);

// Which rows compete, after the scores; and what becomes of them.
void launch_choice(cudaStream_t stream, const PostprocessLaunch& launch);
template <class T>
void launch_exclusive(cudaStream_t stream, const PostprocessLaunch& launch);

// The masks of instances to the host; again after a first run found too little room for them.
void launch_pack(cudaStream_t stream, const PostprocessLaunch& launch);

// out (count, height, width), a byte of 0 or 1 per pixel, aligned to 16 bytes; `rows` in the host's memory.
void launch_expand(cudaStream_t stream, const PostprocessLaunch& launch, int image, Size size,
                   const Row* rows, int count, uint8_t* out);

}  // namespace fai::cuda
