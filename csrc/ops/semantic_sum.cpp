// Semantic results by sum: each pixel's class is the one with the largest sum, over all queries, of class
// probability times mask probability.
#include <algorithm>

#include "csrc/core/error.h"
#include "csrc/core/parallel.h"
#include "csrc/math/rows.h"
#include "csrc/ops/checks.h"
#include "csrc/ops/queries.h"
#include "csrc/ops/sums.h"

namespace fai::ops {
namespace {

// Few enough cell rows to share the work evenly, enough to load few node rows twice.
constexpr int32_t kCellRowsPerTask = 2 * cpu::kSumTileRows;
// And not so few that the tasks' own regions take up much memory.
constexpr int64_t kMaxTaskRegions = int64_t{1} << 20;
// What a label of two bytes can say beside nobody.
constexpr int64_t kMaxClasses = 65534;

}  // namespace

void check_sum_classes(const PostprocessArguments& arguments) {
    const int64_t classes = arguments.class_logits.shape[1] - arguments.softmax;
    if (classes > kMaxClasses) {
        throw ValueError(message("class_logits: got ", classes, " classes in shape ",
                                 shape_of(arguments.class_logits), " with combine='sum', expected at most ",
                                 kMaxClasses));
    }
}

int32_t class_probabilities_of(const PostprocessArguments& arguments, const cpu::Kernels& kernels,
                               int32_t queries, int64_t stride, float* by_query, int32_t* index) {
    const View& class_logits = arguments.class_logits;
    int32_t kept = 0;
    for (int32_t q = 0; q < queries; ++q) {
        const bool takes_part = kernels.class_probabilities[class_logits.dtype == DType::f16](
            static_cast<const char*>(class_logits.data) + q * class_logits.strides[0],
            static_cast<int32_t>(class_logits.shape[1]), arguments.softmax, by_query + kept * stride);
        if (takes_part) index[kept++] = q;
    }
    return kept;
}

void transpose_classes(const float* by_query, int32_t queries, int64_t stride, int32_t classes,
                       float* by_class) {
    for (int32_t q = 0; q < queries; ++q) {
        for (int32_t k = 0; k < classes; ++k) {
            by_class[static_cast<int64_t>(k) * queries + q] = by_query[q * stride + k];
        }
    }
}

int32_t sum_rows_per_task(int32_t rows, int64_t regions_per_row) {
    return static_cast<int32_t>(
        std::max<int64_t>(kCellRowsPerTask, int64_t{rows} * regions_per_row / kMaxTaskRegions));
}

void rows_of_sums(const PostprocessArguments& arguments, const Region* regions, int64_t tasks,
                  int32_t classes, std::vector<ScoredQuery>& rows) {
    for (int32_t k = 0; k < classes; ++k) {
        ScoredQuery row{k, 0.0, k};
        for (int64_t task = 0; task < tasks; ++task) row.region.include(regions[task * classes + k]);
        if (row.region.area == 0) continue;
        row.score = math::mean_sum(row.region.sum, row.region.area);
        if (keep(arguments, row)) rows.push_back(row);
    }
    sort_by_score(rows);
}

void draw_by_sum(const PostprocessArguments& arguments, const MaskLogits& logits, const cpu::Kernels& kernels,
                 int threads, std::vector<ScoredQuery>& rows, void* segments) {
    check_sum_classes(arguments);
    const auto classes = static_cast<int32_t>(arguments.class_logits.shape[1] - arguments.softmax);
    const int64_t stride = class_stride_of(classes);

    // Class probabilities of the queries that take part, one after the other.
    float* const by_query = t_sums.by_query.get(static_cast<size_t>(logits.queries * stride));
    int32_t* const index = t_sums.index.get(static_cast<size_t>(logits.queries));
    int32_t queries = class_probabilities_of(arguments, kernels, logits.queries, stride, by_query, index);
    const Drawn drawn = what_is_drawn(arguments, logits);
    const cpu::NodeGrid& grid = drawn.grid;
    const Axes& axes = drawn.axes;
    const Unread unread(grid);
    const bool wide = segment_item_size(arguments) == 2;
    const int32_t rows_per_task = sum_rows_per_task(grid.rows, int64_t{classes} + logits.queries);
    const int64_t tasks = (grid.rows + rows_per_task - 1) / rows_per_task;
    const size_t regions_size = static_cast<size_t>(classes) * static_cast<size_t>(tasks);
    Region* const regions = t_caller.regions.get(regions_size);

    // As in a contest: a query with NaN in its mask must not take part, and where one is met, everything is
    // drawn again without it.
    for (;;) {
        float* const by_class =
            t_sums.by_class.get(static_cast<size_t>(classes) * static_cast<size_t>(queries) + 1);
        transpose_classes(by_query, queries, stride, classes, by_class);
        const size_t flags = static_cast<size_t>(queries) * static_cast<size_t>(tasks);
        uint8_t* const nans = t_caller.has_nan.get(flags + 1);
        std::fill_n(nans, flags, uint8_t{0});
        std::fill_n(regions, regions_size, Region::empty());
        if (queries == 0) break;
        parallel_for(tasks, threads, [&](int64_t task) {
            const auto begin = static_cast<int32_t>(task * rows_per_task);
            kernels.draw_sums[logits.dtype_index](
                {.grid = grid,
                 .query_stride = logits.query_stride,
                 .queries = queries,
                 .query = index,
                 .classes = classes,
                 .class_stride = stride,
                 .by_query = by_query,
                 .by_class = by_class,
                 .by_class_stride = queries,
                 .x = axes.x,
                 .y = axes.y,
                 .row_begin = begin,
                 .row_end = std::min(begin + rows_per_task, grid.rows),
                 .column_begin = 0,
                 .column_end = grid.columns,
                 .segments = segments,
                 .wide = wide,
                 .has_nan = nans + task * queries,
                 .regions = regions + task * classes,
                 .scratch = t_worker.floats.get(
                     static_cast<size_t>(cpu::sum_scratch(queries, classes, stride, grid))),
                 .integers = t_worker.integers.get(static_cast<size_t>(cpu::sum_integers(classes)))});
        });
        std::vector<uint8_t> has_unread_nan(static_cast<size_t>(queries));
        if (!unread.is_empty()) {
            parallel_for(queries, threads,
                         [&](int64_t q) { has_unread_nan[q] = unread.has_nan(kernels, logits, index[q]); });
        }
        int32_t kept = 0;
        for (int32_t q = 0; q < queries; ++q) {
            bool rejected = has_unread_nan[q] != 0;
            for (int64_t task = 0; task < tasks; ++task) rejected |= nans[task * queries + q] != 0;
            if (rejected) continue;
            if (kept != q) {
                index[kept] = index[q];
                std::copy_n(by_query + q * stride, stride, by_query + kept * stride);
            }
            ++kept;
        }
        if (kept == queries) break;
        queries = kept;
    }
    if (queries == 0) {
        const size_t pixels = static_cast<size_t>(arguments.size.height) * arguments.size.width;
        std::fill_n(static_cast<uint8_t*>(segments), pixels * (wide ? 2 : 1), uint8_t{0xff});
        return;
    }
    rows_of_sums(arguments, regions, tasks, classes, rows);
}

}  // namespace fai::ops
