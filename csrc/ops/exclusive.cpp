// Instances that share no pixel: a contest of rows by their logits, of which those that win too little of
// what is theirs are no instances.
#include <algorithm>
#include <utility>

#include "csrc/math/panoptic.h"
#include "csrc/ops/masks.h"
#include "csrc/ops/queries.h"

namespace fai::ops {

void draw_exclusive(const PostprocessArguments& arguments, const MaskLogits& logits,
                    const cpu::Kernels& kernels, int threads, std::vector<ScoredQuery>& queries,
                    Postprocessed& result) {
    const Drawn drawn = what_is_drawn(arguments, logits);
    const OwnPixels own{.weighted = true,
                        .only = false,
                        .mask_threshold = static_cast<float>(arguments.mask_threshold),
                        .slack = 0.0,
                        .by_logit = true};
    const Size size = arguments.size;
    uint16_t* const labels = t_caller.labels.get(static_cast<size_t>(size.height) * size.width);
    if (queries.empty()) return;
    const Contest contest =
        hold_clean_contest(arguments, logits, drawn, kernels, threads, own, queries, labels);
    if (queries.empty()) return;

    std::vector<ScoredQuery> rows;
    std::vector<int64_t> label_of_row;
    for (size_t i = 0; i < queries.size(); ++i) {
        if (!math::is_segment(contest.won[i], contest.own[i], arguments.rules.overlap_threshold)) continue;
        rows.push_back(queries[i]);
        label_of_row.push_back(static_cast<int64_t>(i));
    }
    queries = std::move(rows);

    const PackedMasks masks = masks_from_segments(labels, size, label_of_row, threads);
    result.offsets = masks.offsets;
    result.words = static_cast<int64_t>(masks.bits.size());
    result.bits.reset(new uint64_t[masks.bits.size()]);
    std::copy(masks.bits.begin(), masks.bits.end(), result.bits.get());
}

}  // namespace fai::ops
