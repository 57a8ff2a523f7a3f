#include "csrc/ops/queries.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "csrc/math/rows.h"

namespace fai::ops {

MaskLogits mask_logits_of(const View& masks) {
    const size_t item = item_size(masks.dtype);
    const auto bytes = static_cast<int64_t>(item);
    return {.queries = static_cast<int32_t>(masks.shape[0]),
            .rows = static_cast<int32_t>(masks.shape[1]),
            .columns = static_cast<int32_t>(masks.shape[2]),
            .query_stride = masks.strides[0] / bytes,
            .row_stride = masks.strides[1] / bytes,
            .dtype_index = masks.dtype == DType::f16,
            .data = static_cast<const char*>(masks.data),
            .item = item};
}

std::vector<ScoredQuery> score_queries(const PostprocessArguments& arguments, const cpu::Kernels& kernels) {
    const View& logits = arguments.class_logits;
    std::vector<ScoredQuery> queries;
    queries.reserve(static_cast<size_t>(logits.shape[0]));
    for (int64_t q = 0; q < logits.shape[0]; ++q) {
        ScoredQuery query{static_cast<int32_t>(q), 0.0, 0};
        kernels.class_score[logits.dtype == DType::f16](
            static_cast<const char*>(logits.data) + q * logits.strides[0],
            static_cast<int32_t>(logits.shape[1]), arguments.softmax, &query.score, &query.class_id,
            &query.has_class);
        if (!std::isnan(query.score)) queries.push_back(query);
    }
    return queries;
}

Axes build_axes(const PostprocessArguments& arguments, int32_t rows, int32_t columns) {
    const Size masks{rows, columns};
    const MaskAxes axes = arguments.letterboxed && !arguments.rules.resizes_logits()
                              ? letterboxed_axes(masks, arguments.size, arguments.tensor, arguments.placement)
                              : stretched_axes(masks, arguments.size);
    const bool nearest = arguments.rules.nearest;
    return {t_caller.x.build(axes.x, arguments.size.width, nearest),
            t_caller.y.build(axes.y, arguments.size.height, nearest)};
}

cpu::NodeGrid grid_of(const PostprocessArguments& arguments, const MaskLogits& logits) {
    if (!arguments.rules.resizes_logits()) return {{}, logits.rows, logits.columns};
    const Nodes nodes =
        nodes_of(arguments.rules.logits_size, arguments.letterboxed, arguments.tensor, arguments.placement);
    return t_caller.resampled.grid(nodes, {logits.rows, logits.columns});
}

Drawn what_is_drawn(const PostprocessArguments& arguments, const MaskLogits& logits) {
    cpu::NodeGrid grid = grid_of(arguments, logits);
    grid.logits = logits.plane(0);
    const Axes axes = build_axes(arguments, grid.rows, grid.columns);
    return {grid, axes};
}

Unread::Unread(const cpu::NodeGrid& grid) {
    if (!grid.resampled()) return;
    const int32_t rows = grid.logits.rows, columns = grid.logits.columns;
    bool skips = false;
    for (int32_t y = 1; y < grid.rows; ++y) skips |= grid.row[y].index > grid.row[y - 1].index + 2;
    for (int32_t x = 1; x < grid.columns; ++x) skips |= grid.cell[x] > grid.cell[x - 1] + 2;
    if (skips) {
        parts_ = {{0, rows, 0, columns}};
        return;
    }
    const int32_t top = grid.first_logits(0), bottom = grid.last_logits(grid.rows - 1) + 1;
    const int32_t left = grid.cell[0], right = std::min(grid.cell[grid.columns - 1] + 2, columns);
    parts_ = {{0, top, 0, columns},
              {bottom, rows, 0, columns},
              {top, bottom, 0, left},
              {top, bottom, right, columns}};
    std::erase_if(parts_,
                  [](const Part& part) { return part.top == part.bottom || part.left == part.right; });
}

bool Unread::has_nan(const cpu::Kernels& kernels, const MaskLogits& logits, int32_t query) const {
    constexpr float kAboveAll = std::numeric_limits<float>::infinity();
    const cpu::Plane plane = logits.plane(query);
    return std::any_of(parts_.begin(), parts_.end(), [&](const Part& part) {
        const int64_t first = part.top * plane.row_stride + part.left;
        const cpu::Plane there{
            static_cast<const char*>(plane.data) + first * static_cast<int64_t>(logits.item),
            part.bottom - part.top, part.right - part.left, plane.row_stride};
        return kernels.find_extent[logits.dtype_index](there, kAboveAll).has_nan;
    });
}

bool keep(const PostprocessArguments& arguments, ScoredQuery& query) {
    if (!math::enough_pixels(query.region.area, arguments.min_area)) return false;
    if (query.region.area == 0) query.region = {};  // its box is zeros, not an inverted one
    if (arguments.use_mask_score) {
        const bool of_nodes = arguments.rules.nearest;
        query.score = math::fused_score(query.score, of_nodes ? query.nodes.sum : query.region.sum,
                                        of_nodes ? query.nodes.nodes : query.region.area,
                                        arguments.rules.mask_score_epsilon());
    }
    return math::above(query.score, arguments.threshold);
}

void sort_by_score(std::vector<ScoredQuery>& queries) {
    std::sort(queries.begin(), queries.end(), [](const ScoredQuery& a, const ScoredQuery& b) {
        const float x = static_cast<float>(a.score), y = static_cast<float>(b.score);
        if (x != y) return x > y;
        return a.index != b.index ? a.index < b.index : a.class_id < b.class_id;
    });
}

}  // namespace fai::ops
