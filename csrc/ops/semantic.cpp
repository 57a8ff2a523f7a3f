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

Contest hold_contest(const PostprocessArguments& arguments, const MaskLogits& logits, const Drawn& drawn,
                     const cpu::Kernels& kernels, int threads, const OwnPixels* own,
                     std::vector<ScoredQuery>& queries, void* segments) {
    sort_by_score(queries);
    const cpu::NodeGrid& grid = drawn.grid;
    const bool only_own = own && own->only;
    const bool wide = arguments.rules.exclusive || segment_item_size(arguments) == 2;
    const int32_t stretched = std::max(1, grid.rows / logits.rows);
    const auto rows_per_task = static_cast<int32_t>(std::max<int64_t>(
        kCellRowsPerTask * stretched, int64_t{grid.rows} * logits.queries / kMaxTaskRegions));
    const int64_t tasks = (grid.rows + rows_per_task - 1) / rows_per_task;
    const size_t competitors = queries.size();
    std::vector<int32_t> index(competitors);
    std::vector<float> score(competitors);
    std::vector<cpu::Surely> surely;
    for (size_t i = 0; i < competitors; ++i) {
        index[i] = queries[i].index;
        score[i] = static_cast<float>(queries[i].score);
        if (own) surely.push_back(own->surely(score[i]));
    }
    const size_t parts = competitors * static_cast<size_t>(tasks);
    Region* const regions = t_caller.regions.get(parts + 1);
    uint8_t* const has_nan = t_caller.has_nan.get(parts + 1);
    int64_t* const won = only_own ? t_caller.won.get(parts + 1) : nullptr;
    std::fill_n(regions, parts, Region::empty());
    std::fill_n(has_nan, parts, uint8_t{0});
    if (only_own) std::fill_n(won, parts, int64_t{0});
    int64_t* const pixels = own ? t_caller.own.get(parts + 1) : nullptr;
    if (own) std::fill_n(pixels, parts, int64_t{0});
    parallel_for(tasks, threads, [&](int64_t task) {
        const auto begin = static_cast<int32_t>(task * rows_per_task);
        const int64_t mine = task * static_cast<int64_t>(competitors);
        const auto count = static_cast<int32_t>(competitors);
        const auto end = std::min(begin + rows_per_task, grid.rows);
        cpu::OwnTask own_task{};
        if (own) {
            const int64_t bits = cpu::own_bits(count, grid, begin, end);
            own_task = {.weighted = own->weighted,
                        .surely = surely.data(),
                        .pixels = pixels + mine,
                        .bits = t_worker.words.get(static_cast<size_t>(bits))};
        }
        kernels.draw_segments[logits.dtype_index](
            {.grid = grid,
             .query_stride = logits.query_stride,
             .competitors = count,
             .query = index.data(),
             .score = score.data(),
             .x = drawn.axes.x,
             .y = drawn.axes.y,
             .row_begin = begin,
             .row_end = end,
             .segments = segments,
             .wide = wide,
             .want_sum = arguments.use_mask_score,
             .of_logits = arguments.rules.of_logits,
             .by_logit = arguments.rules.exclusive,
             .only_own = only_own,
             .mask_threshold = static_cast<float>(arguments.mask_threshold),
             .won = won + (only_own ? mine : 0),
             .own = own ? &own_task : nullptr,
             .has_nan = has_nan + mine,
             .regions = regions + mine,
             .scratch = t_worker.floats.get(static_cast<size_t>(cpu::semantic_scratch(count, grid))),
             .candidates = t_worker.candidates.get(competitors + 1),
             .integers = t_worker.integers.get(static_cast<size_t>(cpu::semantic_integers(count)))});
    });
    Contest contest{std::vector<uint8_t>(competitors), std::vector<int64_t>(competitors),
                    std::vector<int64_t>(competitors)};
    const Unread unread(grid);
    if (own && !unread.is_empty()) {
        parallel_for(static_cast<int64_t>(competitors), threads,
                     [&](int64_t i) { contest.rejected[i] = unread.has_nan(kernels, logits, index[i]); });
    }
    for (int64_t task = 0; task < tasks; ++task) {
        for (size_t i = 0; i < competitors; ++i) {
            const size_t at = static_cast<size_t>(task) * competitors + i;
            const Region& part = regions[at];
            Region& whole = queries[i].region;
            if (task == 0) whole = Region::empty();
            whole.include(part);
            contest.rejected[i] |= has_nan[at];
            contest.won[i] += only_own ? won[at] : part.area;
            if (own) contest.own[i] += pixels[at];
        }
    }
    return contest;
}

Contest hold_clean_contest(const PostprocessArguments& arguments, const MaskLogits& logits,
                           const Drawn& drawn, const cpu::Kernels& kernels, int threads, const OwnPixels& own,
                           std::vector<ScoredQuery>& queries, void* segments) {
    for (;;) {
        Contest contest = hold_contest(arguments, logits, drawn, kernels, threads, &own, queries, segments);
        size_t i = 0;
        if (!std::erase_if(queries, [&](const ScoredQuery&) { return contest.rejected[i++] != 0; })) {
            return contest;
        }
    }
}

void draw_semantic(const PostprocessArguments& arguments, const MaskLogits& logits,
                   const cpu::Kernels& kernels, int threads, std::vector<ScoredQuery>& queries,
                   void* segments) {
    const Drawn drawn = what_is_drawn(arguments, logits);

    // A query with NaN in its mask must not compete, but looking for NaN everywhere first would read what
    // nobody needs. So all compete, and where one that has NaN was met, everything is drawn again without it.
    std::vector<ScoredQuery> without_mask;
    for (;;) {
        std::vector<uint8_t> rejected =
            hold_contest(arguments, logits, drawn, kernels, threads, nullptr, queries, segments).rejected;
        // Winners may have NaN where they were not read.
        parallel_for(static_cast<int64_t>(queries.size()), threads, [&](int64_t i) {
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
