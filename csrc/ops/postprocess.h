// From a query-mask network's outputs to instances or a semantic segmentation (docs/postprocess.md).
#pragma once

#include <memory>
#include <vector>

#include "csrc/core/rules.h"
#include "csrc/core/types.h"
#include "csrc/math/rows.h"
#include "csrc/ops/preprocess.h"

namespace fai::ops {

struct PostprocessArguments {
    View mask_logits;   // (Q, h, w) f32 or f16, the last dimension contiguous
    View class_logits;  // (Q, C + 1) for softmax, (Q, C) for sigmoid; f32 or f16, the last dimension
                        // contiguous
    Size size;          // of the returned masks: the frame's
    double threshold = 0.5;
    double mask_threshold = 0.5;
    bool use_mask_score = false;
    bool predict_all_pixels = false;
    bool softmax = true;
    Rules rules;
    // Pixels that a row has at least; 0 keeps the queries without any, NaN in their masks too.
    int64_t min_area = math::kMinArea;
    bool letterboxed = false;
    Size tensor;          // letterboxed: the engine's input size
    Placement placement;  // letterboxed: where the frame lies in it
    int num_threads = 0;  // 0: all
};

// What is found in a frame, in order of falling score, whoever found it.
struct ResultRows {
    std::vector<float> confidence;
    std::vector<int64_t> class_id;
    std::vector<int64_t> query;
    std::vector<int64_t> area;
    std::vector<int32_t> boxes;    // 4 per row
    std::vector<int64_t> offsets;  // instances only: first word of each row's mask
};

// Masks are packed (see masks.h) for instances, segments for semantic results.
struct Postprocessed : ResultRows {
    std::unique_ptr<uint64_t[]> bits;
    int64_t words = 0;
};

// Throws TypeError, ValueError naming the argument; postprocess checks the same.
void check(const PostprocessArguments& arguments);

// What does not go with the rules. Throws ValueError naming the argument.
void check_rules(const Rules& rules, bool use_mask_score);

// Bytes of a label: 1 where 255 can mean nobody, else 2.
int segment_item_size(const PostprocessArguments& arguments);

// `segments`: (H, W) labels of segment_item_size bytes, written whole where predict_all_pixels (panoptic:
// that too), else unused. Throws TypeError, ValueError naming the argument.
void postprocess(const PostprocessArguments& arguments, void* segments, Postprocessed& result);

}  // namespace fai::ops
