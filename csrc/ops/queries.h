// What the ways from logits to rows share: queries with their scores, the logits of their masks, where pixels
// lie among those, and the memory that threads keep. Of postprocess alone.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "csrc/core/scratch.h"
#include "csrc/cpu/kernels.h"
#include "csrc/ops/pixel_axis.h"
#include "csrc/ops/postprocess.h"
#include "csrc/ops/resample.h"

namespace fai::ops {

using cpu::Region;

// The CPU's sigmoid is within 2e-7 of the true one, so this much below a threshold is surely outside.
inline constexpr double kSigmoidSlack = 1e-6;

struct ScoredQuery {
    int32_t index;
    double score;
    int64_t class_id;
    bool has_class = true;  // false where 'no object' is likelier
    Region region = Region::empty();
    cpu::NodeSum nodes{0, 0.0};  // where the mask score is of nodes
};

struct MaskLogits {
    int32_t queries, rows, columns;
    int64_t query_stride, row_stride;  // in values
    int dtype_index;                   // index into the kernels' pairs
    const char* data;
    size_t item;

    const void* query(int32_t q) const { return data + q * query_stride * static_cast<int64_t>(item); }
    cpu::Plane plane(int32_t q) const { return {query(q), rows, columns, row_stride}; }
};

MaskLogits mask_logits_of(const View& masks);

// The kernels' own need, which callers meet with a copy. Throws ValueError.
void check_rows(const char* name, const View& view);

void write_rows(const std::vector<ScoredQuery>& rows, Postprocessed& result);

// Step 1. A score that is NaN takes its query out.
std::vector<ScoredQuery> score_queries(const PostprocessArguments& arguments, const cpu::Kernels& kernels);

// Scratch of the thread that calls postprocess, and of each that works for it.
struct CallerScratch {
    PixelAxisTable x, y;
    Scratch<uint64_t> words;
    Scratch<Region> regions;
    Scratch<uint8_t> has_nan;
    Resampled resampled;
    Scratch<int64_t> won, own;
    Scratch<uint16_t> labels;
};
struct WorkerScratch {
    Scratch<float> floats;
    Scratch<uint64_t> words;
    Scratch<cpu::Candidate> candidates;
    Scratch<int32_t> integers;
};
inline thread_local CallerScratch t_caller;
inline thread_local WorkerScratch t_worker;

struct Axes {
    cpu::PixelAxis x, y;
};

// Of masks of rows x columns nodes; those of `logits_size` are the frame's alone.
Axes build_axes(const PostprocessArguments& arguments, int32_t rows, int32_t columns);

// The nodes of a plane of these logits: itself, or those of `logits_size`. Valid until the next call.
cpu::NodeGrid grid_of(const PostprocessArguments& arguments, const MaskLogits& logits);

// What a frame's pixels lie among: the nodes of the first query, and where. Valid until the next call.
struct Drawn {
    cpu::NodeGrid grid;
    Axes axes;
};
Drawn what_is_drawn(const PostprocessArguments& arguments, const MaskLogits& logits);

// The logits that no node lies between: where they are beside those that a letterboxed frame takes, or so
// many that nodes are fewer. NaN there takes a query out as well, and is met by nobody who makes nodes.
class Unread {
  public:
    explicit Unread(const cpu::NodeGrid& grid);
    bool is_empty() const { return parts_.empty(); }
    bool has_nan(const cpu::Kernels& kernels, const MaskLogits& logits, int32_t query) const;

  private:
    struct Part {
        int32_t top, bottom, left, right;
    };
    std::vector<Part> parts_;
};

// Steps 4 to 6 for a query whose region is known.
bool keep(const PostprocessArguments& arguments, ScoredQuery& query);

// By the score as it is handed out, so that equal ones are in order of their queries, then classes.
void sort_by_score(std::vector<ScoredQuery>& queries);

// Those of the queries that may be rows of an instance result, one for each of its classes where a query may
// be several.
void choose_instances(const PostprocessArguments& arguments, std::vector<ScoredQuery>& queries);

// Instances: rows into `queries`, masks into `result`.
void draw_instances(const PostprocessArguments& arguments, const MaskLogits& logits,
                    const cpu::Kernels& kernels, int threads, std::vector<ScoredQuery>& queries,
                    Postprocessed& result);

// What a contest has found of each query besides its region.
struct Contest {
    std::vector<uint8_t> rejected;  // not 0 where a NaN was met
    std::vector<int64_t> won;       // pixels
    std::vector<int64_t> own;       // pixels, where they are counted
};

// Which pixels are a query's own, of a panoptic result: where `weighted`, those where its score times the
// mask probability reaches mask_threshold, else where that does alone.
struct OwnPixels {
    bool weighted;
    bool only;  // a pixel that is not the winner's own is nobody's, and in no region
    float mask_threshold;
    double slack;           // of probabilities
    bool by_logit = false;  // those where its score times its mask logit does; none is sure

    // The logits that are surely inside and surely outside, of a query with this score.
    cpu::Surely surely(float score) const;
};

// Gives every pixel to one of the queries, which are in order of falling score then, and have their regions.
// Counts their own pixels where `own` is not null. Labels are the queries; of rules.exclusive their places in
// `queries`, in uint16.
Contest hold_contest(const PostprocessArguments& arguments, const MaskLogits& logits, const Drawn& drawn,
                     const cpu::Kernels& kernels, int threads, const OwnPixels* own,
                     std::vector<ScoredQuery>& queries, void* segments);

// The same without the queries that have NaN in their masks, which must not compete: where one is met,
// everything is drawn again without it.
Contest hold_clean_contest(const PostprocessArguments& arguments, const MaskLogits& logits,
                           const Drawn& drawn, const cpu::Kernels& kernels, int threads, const OwnPixels& own,
                           std::vector<ScoredQuery>& queries, void* segments);

// Semantic results: rows into `queries`, labels into `segments`.
void draw_semantic(const PostprocessArguments& arguments, const MaskLogits& logits,
                   const cpu::Kernels& kernels, int threads, std::vector<ScoredQuery>& queries,
                   void* segments);

// Panoptic results, of the queries that compete: rows into `queries`, labels into `segments`.
void draw_panoptic(const PostprocessArguments& arguments, const MaskLogits& logits,
                   const cpu::Kernels& kernels, int threads, std::vector<ScoredQuery>& queries,
                   void* segments);

// Instances that share no pixel, of those that compete: rows into `queries`, masks into `result`.
void draw_exclusive(const PostprocessArguments& arguments, const MaskLogits& logits,
                    const cpu::Kernels& kernels, int threads, std::vector<ScoredQuery>& queries,
                    Postprocessed& result);

// Semantic by sum: a row for each class that has won pixels into `rows`, classes into `segments`.
void draw_by_sum(const PostprocessArguments& arguments, const MaskLogits& logits, const cpu::Kernels& kernels,
                 int threads, std::vector<ScoredQuery>& rows, void* segments);

}  // namespace fai::ops
