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

// The logit of a probability; infinite where there is none.
float logit_of(double probability) {
    if (probability <= 0.0) return -std::numeric_limits<float>::infinity();
    if (probability >= 1.0) return std::numeric_limits<float>::infinity();
    return static_cast<float>(std::log(probability / (1.0 - probability)));
}

// From which logit on a pixel is surely its query's own, and below which it surely is not.
struct Surely {
    float inside, outside;
};

Surely surely_own(float mask_threshold, float weight, double slack) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    if (mask_threshold <= 0.0f) return {-kInfinity, -kInfinity};
    if (weight == 0.0f) return {std::numeric_limits<float>::quiet_NaN(), kInfinity};
    const double wanted = static_cast<double>(mask_threshold) / static_cast<double>(weight);
    const double enough = wanted + slack;
    return {enough < 1.0 ? logit_of(enough) : std::numeric_limits<float>::quiet_NaN(),
            logit_of(wanted - slack)};
}

// Likewise of logits, of those within kFarLogit. Where the weight is next to nothing, none is sure.
Surely surely_own_by_logit(float mask_threshold, float weight) {
    constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
    if (!(weight > 1e-6f)) return {kNan, kNan};
    const double wanted = static_cast<double>(mask_threshold) / static_cast<double>(weight);
    const double slack = 1e-5 * (cpu::kFarLogit + std::abs(wanted));
    return {static_cast<float>(wanted + slack), static_cast<float>(wanted - slack)};
}

}  // namespace

void count_own(const PostprocessArguments& arguments, const MaskLogits& logits, const Axes& axes,
               const cpu::Kernels& kernels, int threads, std::vector<ScoredQuery>& queries) {
    std::vector<cpu::Own> found(queries.size());
    const auto mask_threshold = static_cast<float>(arguments.mask_threshold);
    const bool of_logits = arguments.rules.of_logits, by_logit = arguments.rules.exclusive;
    const bool weighted = arguments.rules.weighted || by_logit;
    const double slack = of_logits ? kLogitSlack : kSigmoidSlack;
    parallel_for(static_cast<int64_t>(queries.size()), threads, [&](int64_t i) {
        const float weight = weighted ? static_cast<float>(queries[i].score) : 1.0f;
        const Surely surely = by_logit ? surely_own_by_logit(mask_threshold, weight)
                                       : surely_own(mask_threshold, weight, slack);
        found[i] = kernels.count_own[logits.dtype_index](
            {.logits = logits.plane(queries[i].index),
             .x = axes.x,
             .y = axes.y,
             .weight = weight,
             .of_logits = of_logits,
             .by_logit = by_logit,
             .mask_threshold = mask_threshold,
             .surely_inside = surely.inside,
             .surely_outside = surely.outside,
             .node_bits = t_worker.words.get(static_cast<size_t>(cpu::own_words(logits.columns)))});
    });
    size_t i = 0;
    for (ScoredQuery& query : queries) query.own = found[i++].area;
    i = 0;
    std::erase_if(queries, [&](const ScoredQuery&) { return found[i++].has_nan; });
}

namespace {

// The query whose segment each query's pixels belong to; nobody where it is none.
std::vector<int32_t> segments_of(const Rules& rules, const std::vector<ScoredQuery>& queries,
                                 const Contest& contest) {
    const auto is_stuff = [&](const ScoredQuery& query) {
        return !rules.stuff.empty() && rules.stuff[query.class_id] != 0;
    };
    std::vector<int32_t> segment(queries.size());
    for (size_t i = 0; i < queries.size(); ++i) {
        const bool exists = queries[i].region.area > 0 &&
                            math::is_segment(contest.won[i], queries[i].own, rules.overlap_threshold);
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

void draw_panoptic(const PostprocessArguments& arguments, const MaskLogits& logits,
                   const cpu::Kernels& kernels, int threads, std::vector<ScoredQuery>& queries,
                   void* segments) {
    const Rules& rules = arguments.rules;
    const Axes axes = build_axes(arguments, logits.rows, logits.columns);
    count_own(arguments, logits, axes, kernels, threads, queries);
    const Contest contest =
        hold_contest(arguments, logits, axes, kernels, threads, !rules.weighted, queries, segments);
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
