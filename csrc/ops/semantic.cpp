// Semantic results: a contest of all queries for every pixel.
#include <algorithm>
#include <limits>

#include "csrc/core/parallel.h"
#include "csrc/ops/queries.h"

namespace fai::ops {
namespace {

// A semantic task: few enough cell rows to share the work evenly, enough to reuse the row between two of
// them.
constexpr int32_t kCellRowsPerTask = 8;
// And not so few that the tasks' own regions take up much memory.
constexpr int64_t kMaxTaskRegions = int64_t{1} << 20;

}  // namespace

void draw_semantic(const PostprocessArguments& arguments, const MaskLogits& logits,
                   const cpu::Kernels& kernels, int threads, std::vector<ScoredQuery>& queries,
                   void* segments) {
    const Axes axes = build_axes(arguments, logits.rows, logits.columns);
    const bool wide = segment_item_size(arguments) == 2;
    const auto rows_per_task = static_cast<int32_t>(
        std::max<int64_t>(kCellRowsPerTask, int64_t{logits.rows} * logits.queries / kMaxTaskRegions));
    const int64_t tasks = (logits.rows + rows_per_task - 1) / rows_per_task;

    // A query with NaN in its mask must not compete, but looking for NaN everywhere first would read what
    // nobody needs. So all compete, and where one that has NaN was met, everything is drawn again without it.
    std::vector<ScoredQuery> without_mask;
    for (;;) {
        sort_by_score(queries);
        const size_t competitors = queries.size();
        std::vector<int32_t> index(competitors);
        std::vector<float> score(competitors);
        for (size_t i = 0; i < competitors; ++i) {
            index[i] = queries[i].index;
            score[i] = static_cast<float>(queries[i].score);
        }
        Region* const regions = t_caller.regions.get(competitors * static_cast<size_t>(tasks) + 1);
        uint8_t* const has_nan = t_caller.has_nan.get(competitors * static_cast<size_t>(tasks) + 1);
        std::fill_n(regions, competitors * static_cast<size_t>(tasks), Region::empty());
        std::fill_n(has_nan, competitors * static_cast<size_t>(tasks), uint8_t{0});
        parallel_for(tasks, threads, [&](int64_t task) {
            const auto begin = static_cast<int32_t>(task * rows_per_task);
            const int64_t mine = task * static_cast<int64_t>(competitors);
            const auto count = static_cast<int32_t>(competitors);
            kernels.draw_segments[logits.dtype_index](
                {.logits = logits.data,
                 .rows = logits.rows,
                 .columns = logits.columns,
                 .query_stride = logits.query_stride,
                 .row_stride = logits.row_stride,
                 .competitors = count,
                 .query = index.data(),
                 .score = score.data(),
                 .x = axes.x,
                 .y = axes.y,
                 .row_begin = begin,
                 .row_end = std::min(begin + rows_per_task, logits.rows),
                 .segments = segments,
                 .wide = wide,
                 .want_sum = arguments.use_mask_score,
                 .has_nan = has_nan + mine,
                 .regions = regions + mine,
                 .scratch = t_worker.floats.get(static_cast<size_t>(cpu::semantic_scratch(count))),
                 .candidates = t_worker.candidates.get(competitors + 1),
                 .integers = t_worker.integers.get(static_cast<size_t>(cpu::semantic_integers(count)))});
        });
        std::vector<uint8_t> rejected(competitors, 0);
        for (int64_t task = 0; task < tasks; ++task) {
            for (size_t i = 0; i < competitors; ++i) {
                const Region& part =
                    regions[task * static_cast<int64_t>(competitors) + static_cast<int64_t>(i)];
                Region& whole = queries[i].region;
                if (task == 0) whole = Region::empty();
                whole.x1 = std::min(whole.x1, part.x1);
                whole.y1 = std::min(whole.y1, part.y1);
                whole.x2 = std::max(whole.x2, part.x2);
                whole.y2 = std::max(whole.y2, part.y2);
                whole.area += part.area;
                whole.sum += part.sum;
                rejected[i] |= has_nan[task * static_cast<int64_t>(competitors) + static_cast<int64_t>(i)];
            }
        }
        // Winners may have NaN where they were not read.
        parallel_for(static_cast<int64_t>(competitors), threads, [&](int64_t i) {
            if (queries[i].region.area == 0 || rejected[i]) return;
            constexpr float kAboveAll = std::numeric_limits<float>::infinity();
            rejected[i] =
                kernels.find_extent[logits.dtype_index](logits.plane(queries[i].index), kAboveAll).has_nan;
        });
        const bool clean = std::find(rejected.begin(), rejected.end(), 1) == rejected.end();
        if (clean) break;
        size_t i = 0;
        std::erase_if(queries, [&](const ScoredQuery& query) {
            if (rejected[i++] == 0) return false;
            without_mask.push_back({query.index, query.score, query.class_id});
            return true;
        });
    }
    queries.insert(queries.end(), without_mask.begin(), without_mask.end());
    std::erase_if(queries, [&](ScoredQuery& query) { return !keep(arguments, query); });
    sort_by_score(queries);
}

}  // namespace fai::ops
