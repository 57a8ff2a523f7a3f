// The CPU kernels as the ops see them: plain structs, and one table of functions per instruction set.
#pragma once

#include <cstdint>
#include <vector>

#include "csrc/core/pixel_axis.h"
#include "csrc/core/tap.h"
#include "csrc/core/types.h"
#include "csrc/math/color.h"

namespace fai::cpu {

// Tables of one axis are padded by this many entries, so that a vector may be loaded at the last.
inline constexpr int kPadding = 16;

// ---- postprocess

using fai::PixelAxis;

struct ClassScore {
    int32_t class_id;
    double score;
};

// One query's logits. Rows are contiguous; strides count values.
struct Plane {
    const void* data;
    int32_t rows;
    int32_t columns;
    int64_t row_stride;
};

// The nodes that may be inside: rows [row_begin, row_end), columns likewise; empty where none.
struct Extent {
    int32_t row_begin, row_end, column_begin, column_end;
    bool has_nan;
};

// Pixel box, half open, and what lies in it.
struct Region {
    int32_t x1, y1, x2, y2;
    int64_t area;
    double sum;  // of mask probabilities over the region

    static Region empty() { return {INT32_MAX, INT32_MAX, 0, 0, 0, 0.0}; }

    // What lies in another as well, which shares no pixel with this.
    void include(const Region& other) {
        x1 = other.x1 < x1 ? other.x1 : x1;
        y1 = other.y1 < y1 ? other.y1 : y1;
        x2 = other.x2 > x2 ? other.x2 : x2;
        y2 = other.y2 > y2 ? other.y2 : y2;
        area += other.area;
        sum += other.sum;
    }
};

// A mask's nodes: its logits, or those resampled to another grid, row by row where they are needed.
struct NodeGrid {
    Plane logits;
    int32_t rows, columns;
    const Tap* row = nullptr;         // (rows) where they lie among the logits; null where they are these
    const int32_t* cell = nullptr;    // (columns + padding) likewise
    const float* fraction = nullptr;  // (columns + padding)

    bool resampled() const { return row != nullptr; }
    // The rows of logits that rows [begin, end] of nodes lie between: first and last.
    int32_t first_logits(int32_t begin) const { return resampled() ? row[begin].index : begin; }
    int32_t last_logits(int32_t end) const {
        if (!resampled()) return end;
        return row[end].index + 1 < logits.rows ? row[end].index + 1 : logits.rows - 1;
    }
};

// Floats for what lies between two rows of that many logits.
inline int64_t resample_scratch(int32_t columns) { return static_cast<int64_t>(columns) + 2 * kPadding; }

// Probabilities at the nodes of a resampled grid, each times its row's and its column's weight.
struct WeighTask {
    NodeGrid grid;
    float* out;           // (rows, columns)
    float* scratch;       // resample_scratch(logits.columns) floats
    const float* down;    // (rows)
    const float* across;  // (columns + padding)
};

// Logits from which on a node's probability is surely inside, and below which it surely is not; between them
// the sigmoid decides.
struct Surely {
    float inside, outside;
};

struct InstanceTask {
    NodeGrid grid;
    Extent extent;
    PixelAxis x, y;
    float mask_threshold;  // of_logits: a logit
    bool of_logits;        // logits are interpolated, not probabilities
    bool nearest;          // a pixel is what a node is: fractions are 0
    Surely surely;         // nearest, not of_logits
    bool want_sum;         // not where nearest
    uint64_t* words;       // (rows of the extent's pixels, word_stride), written whole
    int64_t word_stride;   // words per row
    int32_t word_begin;    // frame column of the first bit, divided by 64
    int32_t row_begin;     // frame row of the first row
    float* scratch;        // instance_scratch(grid) floats
    uint64_t* node_bits;   // columns / 64 + 2
};

inline int64_t instance_scratch(const NodeGrid& grid) {
    return 3 * (static_cast<int64_t>(grid.columns) + 2 * kPadding) + resample_scratch(grid.logits.columns);
}

// The nodes inside, and the sum of their probabilities.
struct NodeSum {
    int64_t nodes;
    double sum;
};
struct NodeSumTask {
    NodeGrid grid;
    Extent extent;
    float mask_threshold;
    Surely surely;
    float* scratch;  // instance_scratch(grid) floats
};

// Whether a mask's mean probability can reach some value. Its threshold is at least kLeastBoundLogit, and
// logits are what is interpolated.
struct MeanTask {
    NodeGrid grid;
    Extent extent;
    bool of_nodes;   // the mean is of nodes; of pixels else
    PixelAxis x, y;  // of pixels
    Surely surely;   // where logits are what is interpolated: the threshold, twice
    double mean;
    float* scratch;  // instance_scratch(grid) floats
};
inline constexpr float kLeastBoundLogit = -0.01f;

// A query that can win pixels in some cells of a block.
struct Candidate {
    int32_t position;  // among the competitors
    int32_t query;
    uint32_t cells;
};

// Cells are taken 15 at a time, a block: their 16 nodes are one vector.
inline constexpr int kBlockCells = 15;

// Which pixels are a query's own, for a panoptic result: those where `weight` times the mask probability
// reaches mask_threshold. `weight` is its score, or 1.
struct OwnTask {
    bool weighted;
    const Surely* surely;  // (competitors) logits: inside from which on, outside below which
    int64_t* pixels;       // (competitors) of this task alone
    uint64_t* bits;        // own_bits() of them
};

struct SemanticTask {
    NodeGrid grid;         // of the first query
    int64_t query_stride;  // logits from one query's to the next one's
    int32_t competitors;
    const int32_t* query;  // (competitors) in order of falling score
    const float* score;    // (competitors)
    PixelAxis x, y;
    int32_t row_begin, row_end;  // cell rows of this task
    void* segments;              // (y.pixels, x.pixels) uint8 or uint16
    bool wide;                   // uint16
    bool want_sum;
    bool of_logits;  // logits are interpolated, not probabilities
    // No sigmoid is taken of them: they compete times their scores. Labels are uint16, positions among the
    // competitors, of which several may be of one query, and ties go to the first of them. With `own`, of
    // which nothing is sure; not with only_own or want_sum.
    bool by_logit;
    // A pixel is nobody's where its winner's probability is below mask_threshold; not with want_sum. `won`
    // counts what each has won all the same.
    bool only_own;
    float mask_threshold;
    int64_t* won;           // (competitors) of this task alone; only_own
    const OwnTask* own;     // null: they are not counted
    uint8_t* has_nan;       // (competitors) set to 1 where a NaN is met, with `own` wherever it is
    Region* regions;        // (competitors) of this task alone
    float* scratch;         // semantic_scratch() floats
    Candidate* candidates;  // (competitors)
    int32_t* integers;      // semantic_integers(competitors)
};

inline int64_t semantic_scratch(int32_t competitors, const NodeGrid& grid) {
    return static_cast<int64_t>(competitors) * 7 * 16 + resample_scratch(grid.logits.columns);
}
inline int64_t semantic_integers(int32_t competitors) { return static_cast<int64_t>(competitors) * 6; }
// A bit for each competitor: for each row of logits that the nodes of cell rows [begin, end) lie between, and
// for each block, who is inside everywhere, who outside, and who below each of two levels; and the same of
// one cell row.
inline constexpr int kOwnBits = 4;
inline int64_t own_words(int32_t competitors) { return (static_cast<int64_t>(competitors) + 63) / 64; }
inline int64_t own_bits(int32_t competitors, const NodeGrid& grid, int32_t begin, int32_t end) {
    const int32_t last = grid.last_logits(end < grid.rows ? end : grid.rows - 1);
    const int64_t blocks = (grid.columns + kBlockCells - 1) / kBlockCells;
    return kOwnBits * own_words(competitors) * ((last - grid.first_logits(begin) + 1) * blocks + 1);
}

// Cell rows that share one list of classes that can win there.
inline constexpr int32_t kSumTileRows = 7;

// Semantic, by sum: of queries without NaN in their class logits, in order.
struct SumTask {
    NodeGrid grid;         // of the first query
    int64_t query_stride;  // logits from one query's to the next one's
    // What the logits begin with, where they are a part of the grid: all nodes of the task's cells.
    int32_t first_row = 0, first_column = 0;
    bool probabilities = false;  // of float32, in the place of logits
    int32_t queries;
    const int32_t* query;  // (queries) where each is among the logits
    int32_t classes;
    int64_t class_stride;   // classes, rounded up to whole vectors
    const float* by_query;  // (queries, class_stride) class probabilities, 0 beyond the last class
    const float* by_class;  // (classes, queries) the same
    int64_t by_class_stride;
    PixelAxis x, y;
    int32_t row_begin, row_end;        // cell rows of this task
    int32_t column_begin, column_end;  // likewise
    void* segments;                    // (y.pixels, x.pixels) uint8 or uint16: classes
    bool wide;                         // uint16
    uint8_t* has_nan;                  // (queries) set to 1 where a NaN is met
    Region* regions;                   // (classes) of this task alone; sums in units of math::kUnitsOfOne
    float* scratch;                    // sum_scratch() floats
    int32_t* integers;                 // sum_integers() of them
};

inline int64_t sum_scratch(int32_t queries, int32_t classes, int64_t class_stride, const NodeGrid& grid) {
    const int64_t rows = kSumTileRows + 1;
    return queries * (rows * 16 + 2) + class_stride + classes * (rows * 16 + 5 * 16) + kPadding +
           resample_scratch(grid.logits.columns);
}
inline int64_t sum_integers(int32_t classes) { return static_cast<int64_t>(classes) * 5; }

// ---- preprocess

enum class RowFormat : uint8_t {
    packed,  // channels within four bytes: one load per pixel
    planar,  // three channels anywhere
    gray,    // one channel
    yuv,     // luma and chroma anywhere, V within four bytes of U or in a plane of its own
};

// How a source row is sampled: byte offsets of the left and right tap of every output column.
struct RowPlan {
    RowFormat format;
    int32_t columns;               // output columns
    bool two_taps;                 // false where every fraction is 0
    const float* fraction;         // (columns)
    const int32_t* left;           // (columns) into every plane, or into luma
    const int32_t* right;          // (columns)
    const int32_t* chroma_left;    // (columns) yuv
    const int32_t* chroma_right;   // (columns) yuv
    int32_t safe_begin, safe_end;  // columns whose taps may load four bytes (eight where pair_shift); the
                                   // others go byte by byte
    int32_t shift[3];              // packed: bits below each channel
    int32_t pair_shift;  // packed: bits from the left tap to the right where eight bytes hold both, else 0
    int32_t v_shift;     // yuv: bits from U to V, 0 where V has a plane of its own
    math::YuvCoefficients yuv;
};

// The rows of memory that a RowPlan's offsets refer to.
struct SourceRow {
    const uint8_t* plane[3];
};

struct BlendTask {
    const float* top;     // source rows, horizontally resampled
    const float* bottom;  // == top where one row is enough
    float top_weight, bottom_weight, bias;
    int32_t columns;
    void* out;
    bool half;
};

// ---- drawing

// Bytes of the 64 pixels of a word.
inline constexpr int kWordBytes = 3 * 64;

// One row of one mask, in words that are aligned to the frame's columns.
struct PaintRow {
    uint8_t* pixels;        // the frame's row, three bytes per pixel
    int64_t width;          // pixels of the frame's row
    const uint64_t* mask;   // (words); bits beyond the frame are zero
    const uint64_t* inner;  // (words), those of the mask that are not its contour
    int64_t words;
    int64_t first_word;    // frame column of the first bit, divided by 64
    const uint8_t* color;  // (kWordBytes), the same three bytes again and again
    uint8_t alpha;         // of the inner pixels; contours are opaque
};

struct Kernels {
    const char* isa;
    // [0] float32 logits, [1] float16.
    // `has_class`: false where 'no object' is likelier than each class.
    void (*class_score[2])(const void* logits, int32_t count, bool softmax, double* score, int64_t* class_id,
                           bool* has_class);
    // Those of a query's classes whose score is above the threshold, into `out`, in their order, which has
    // room for all; how many. None where the logits have NaN.
    int32_t (*class_scores[2])(const void* logits, int32_t count, bool softmax, double threshold,
                               ClassScore* out);
    Extent (*find_extent[2])(const Plane& logits, float level);
    NodeSum (*sum_nodes[2])(const NodeSumTask& task);
    // False only where the mean is surely below.
    bool (*mean_can_reach[2])(const MeanTask& task);
    void (*weigh[2])(const WeighTask& task);
    Region (*draw_instance[2])(const InstanceTask& task);
    void (*draw_segments[2])(const SemanticTask& task);
    // Gives the pixels of one label to another; labels of two bytes where `wide`.
    void (*relabel)(void* labels, int64_t count, bool wide, int32_t from, int32_t to);
    // The probabilities of one query's classes, 0 beyond them up to a whole vector; false where they are NaN.
    bool (*class_probabilities[2])(const void* logits, int32_t count, bool softmax, float* out);
    void (*draw_sums[2])(const SumTask& task);
    // out[c * columns + x] = channel c of the row at output column x, 0..255; gray fills c = 0 only.
    void (*load_row)(const RowPlan& plan, const SourceRow& row, float* out);
    void (*blend_rows)(const BlendTask& task);
    void (*paint_row)(const PaintRow& row);
};

// The table of the best instruction set that the CPU has, or of the one FAI_FAST_FORCE_ISA names. Throws
// std::runtime_error where that is unknown or not to be had here.
const Kernels& kernels();

struct IsaInfo {
    const char* name;
    bool available;
};

// What was compiled in, the best last.
std::vector<IsaInfo> isas();

}  // namespace fai::cpu
