// Panoptic results: a contest of the queries that are sure of a class, of which those that win too little of
// what is theirs are no segments, and those of a class of stuff are one.
#include <algorithm>
#include <cmath>
#include <limits>

#include "csrc/core/parallel.h"
#include "csrc/math/panoptic.h"
#include "csrc/ops/queries.h"

namespace fai::ops {
namespace {

// Frame rows of a task that gives labels to others.
constexpr int64_t kRowsPerTask = 64;
constexpr int32_t kNobody = -1;
// Between logits that are far apart, rounding moves one by more than the sigmoid's own error.
constexpr double kLogitSlack = 1e-4;

// The query whose segment each query's pixels belong to; nobody where it is none.
std::vector<int32_t> segments_of(const Rules& rules, const std::vector<ScoredQuery>& queries,
                                 const Contest& contest) {
    const auto is_stuff = [&](const ScoredQuery& query) {
        return !rules.stuff.empty() && rules.stuff[query.class_id] != 0;
    };
    std::vector<int32_t> segment(queries.size());
    for (size_t i = 0; i < queries.size(); ++i) {
        const bool exists = queries[i].region.area > 0 &&
                            math::is_segment(contest.won[i], contest.own[i], rules.overlap_threshold);
        segment[i] = exists ? queries[i].index : kNobody;
    }
    for (size_t i = 0; i < queries.size(); ++i) {
        if (segment[i] == kNobody || !is_stuff(queries[i])) continue;
        for (size_t k = 0; k < queries.size(); ++k) {
            if (segment[k] != kNobody && queries[k].class_id == queries[i].class_id) {
                segment[i] = std::min(segment[i], queries[k].index);
            }
        }
    }
    return segment;
}

// Where a segment is none, or another's.
void relabel(const std::vector<ScoredQuery>& queries, const std::vector<int32_t>& segment, Size size,
             const cpu::Kernels& kernels, int threads, int label_bytes, void* labels) {
    std::vector<size_t> changed;
    for (size_t i = 0; i < queries.size(); ++i) {
        if (queries[i].region.area > 0 && segment[i] != queries[i].index) changed.push_back(i);
    }
    if (changed.empty()) return;
    const int64_t tasks = (size.height + kRowsPerTask - 1) / kRowsPerTask;
    parallel_for(tasks, threads, [&](int64_t task) {
        const auto begin = static_cast<int32_t>(task * kRowsPerTask);
        const auto end = std::min<int32_t>(begin + static_cast<int32_t>(kRowsPerTask), size.height);
        for (const size_t i : changed) {
            const Region& region = queries[i].region;
            for (int32_t y = std::max(region.y1, begin); y < std::min(region.y2, end); ++y) {
                char* const row = static_cast<char*>(labels) +
                                  (static_cast<int64_t>(y) * size.width + region.x1) * label_bytes;
                kernels.relabel(row, region.x2 - region.x1, label_bytes == 2, queries[i].index, segment[i]);
            }
        }
    });
}

}  // namespace

cpu::Surely OwnPixels::surely(float score) const {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    constexpr float kNever = std::numeric_limits<float>::quiet_NaN();
    if (by_logit) return {kNever, kNever};
    const float weight = weighted ? score : 1.0f;
    if (mask_threshold <= 0.0f) return {-kInfinity, -kInfinity};
    if (weight == 0.0f) return {kNever, kInfinity};
    const double wanted = static_cast<double>(mask_threshold) / static_cast<double>(weight);
    const double enough = wanted + slack;
    return {enough < 1.0 ? logit_of(enough) : kNever, logit_of(wanted - slack)};
}

void draw_panoptic(const PostprocessArguments& arguments, const MaskLogits& logits,
                   const cpu::Kernels& kernels, int threads, std::vector<ScoredQuery>& queries,
                   void* segments) {
    const Rules& rules = arguments.rules;
    const Drawn drawn = what_is_drawn(arguments, logits);
    const OwnPixels own{.weighted = rules.weighted,
                        .only = !rules.weighted,
                        .mask_threshold = static_cast<float>(arguments.mask_threshold),
                        .slack = rules.of_logits ? kLogitSlack : kSigmoidSlack};
    const Contest contest =
        hold_clean_contest(arguments, logits, drawn, kernels, threads, own, queries, segments);
    const std::vector<int32_t> segment = segments_of(rules, queries, contest);
    relabel(queries, segment, arguments.size, kernels, threads, segment_item_size(arguments), segments);

    // A query's region is its segment's, where it is the first of it.
    std::vector<ScoredQuery> rows;
    for (size_t i = 0; i < queries.size(); ++i) {
        if (segment[i] == queries[i].index) rows.push_back(queries[i]);
    }
    for (size_t i = 0; i < queries.size(); ++i) {
        if (segment[i] == kNobody || segment[i] == queries[i].index) continue;
        for (ScoredQuery& row : rows) {
            if (row.index == segment[i]) row.region.include(queries[i].region);
        }
    }
    queries = std::move(rows);
}

}  // namespace fai::ops
