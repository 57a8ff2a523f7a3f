// Instances: a mask for each query whose class score passes.
#include <algorithm>
#include <span>

#include "csrc/core/parallel.h"
#include "csrc/math/rows.h"
#include "csrc/ops/class_pairs.h"
#include "csrc/ops/queries.h"

namespace fai::ops {
namespace {

// A mask drawn into the rectangle that it can at most cover, before it is cropped to its box.
struct Canvas {
    int64_t begin = 0;   // first word
    int64_t stride = 0;  // words per row
    int32_t word_begin = 0, row_begin = 0;
    int64_t rows = 0;
};

Canvas canvas_of(const cpu::Extent& extent, const Axes& axes) {
    // A node reaches into the cells on both of its sides, and the kernel takes one node more than it must:
    // where that is the last one, the clamped cell behind it as well.
    const auto first_pixel = [](const cpu::PixelAxis& axis, int32_t node) {
        return axis.first[std::max(node - 1, 0)];
    };
    const auto last_pixel = [](const cpu::PixelAxis& axis, int32_t end) {
        return axis.first[end >= axis.nodes - 1 ? axis.nodes : end];
    };
    const int32_t x1 = first_pixel(axes.x, extent.column_begin), x2 = last_pixel(axes.x, extent.column_end);
    const int32_t y1 = first_pixel(axes.y, extent.row_begin), y2 = last_pixel(axes.y, extent.row_end);
    Canvas canvas;
    canvas.word_begin = x1 / 64;
    canvas.row_begin = y1;
    canvas.stride = (x2 + 63) / 64 - canvas.word_begin;
    canvas.rows = y2 - y1;
    return canvas;
}

}  // namespace

void choose_instances(const PostprocessArguments& arguments, std::vector<ScoredQuery>& queries) {
    if (!arguments.rules.multi_label) {
        std::erase_if(queries, [&](const ScoredQuery& query) {
            return !math::above(query.score, arguments.threshold);
        });
        return;
    }
    queries.clear();
    for (const ClassPair& pair :
         best_class_pairs(arguments.class_logits, arguments.softmax, arguments.threshold)) {
        queries.push_back({pair.query, pair.score, pair.class_id});
    }
}

void draw_instances(const PostprocessArguments& arguments, const MaskLogits& logits,
                    const cpu::Kernels& kernels, int threads, std::vector<ScoredQuery>& queries,
                    Postprocessed& result) {
    choose_instances(arguments, queries);
    const double wanted = arguments.mask_threshold;
    if (wanted > 1.0 || queries.empty()) {
        std::erase_if(queries, [&](ScoredQuery& query) { return !keep(arguments, query); });
        sort_by_score(queries);
        result.offsets.assign(queries.size(), 0);
        return;
    }
    const Rules& rules = arguments.rules;
    const bool of_logits = rules.of_logits;
    const float level = logit_of(of_logits ? wanted : wanted - kSigmoidSlack);
    const cpu::Surely surely{logit_of(wanted + kSigmoidSlack), logit_of(wanted - kSigmoidSlack)};

    // Classes of one query are next to each other, and share its mask.
    std::vector<size_t> mask_of(queries.size());
    std::vector<cpu::NodeGrid> grids;
    std::vector<double> best_score;  // of the mask's classes
    const cpu::NodeGrid grid = grid_of(arguments, logits);
    for (size_t i = 0; i < queries.size(); ++i) {
        if (i == 0 || queries[i].index != queries[i - 1].index) {
            grids.push_back(grid);
            grids.back().logits = logits.plane(queries[i].index);
            best_score.push_back(queries[i].score);
        }
        best_score.back() = std::max(best_score.back(), queries[i].score);
        mask_of[i] = grids.size() - 1;
    }
    const int dtype_index = logits.dtype_index;
    const Axes axes = build_axes(arguments, grid.rows, grid.columns);
    const auto scratch = [&] {
        return t_worker.floats.get(static_cast<size_t>(cpu::instance_scratch(grids[0])));
    };

    // Whether a mask's mean probability may suffice, and of nodes what it is.
    const bool bounds = arguments.use_mask_score && (of_logits || rules.nearest) &&
                        arguments.threshold > 0.0 && std::min(level, surely.outside) >= cpu::kLeastBoundLogit;
    // Where each pixel is a node, pixels are as nodes are.
    const auto at_nodes = [](const cpu::PixelAxis& axis) {
        return axis.nodes == axis.pixels && axis.prefix[axis.pixels] == 0.0 &&
               axis.cell[axis.pixels - 1] == axis.nodes - 1;
    };
    const bool of_nodes = rules.nearest || (at_nodes(axes.x) && at_nodes(axes.y));
    std::vector<cpu::NodeSum> node_sums(grids.size());
    const auto may_be_kept = [&](size_t i, const cpu::Extent& extent) {
        if (bounds && !kernels.mean_can_reach[dtype_index](
                          {.grid = grids[i],
                           .extent = extent,
                           .of_nodes = of_nodes,
                           .x = axes.x,
                           .y = axes.y,
                           .surely = rules.nearest ? surely : cpu::Surely{level, level},
                           .mean = arguments.threshold / best_score[i],
                           .scratch = scratch()})) {
            return false;
        }
        if (!rules.nearest || !arguments.use_mask_score) return true;
        node_sums[i] = kernels.sum_nodes[dtype_index]({.grid = grids[i],
                                                       .extent = extent,
                                                       .mask_threshold = static_cast<float>(wanted),
                                                       .surely = surely,
                                                       .scratch = scratch()});
        return math::above(math::fused_score(best_score[i], node_sums[i].sum, node_sums[i].nodes,
                                             rules.mask_score_epsilon()),
                           arguments.threshold);
    };

    const auto count = static_cast<int64_t>(grids.size());
    std::vector<cpu::Extent> extents(grids.size());
    parallel_for(count, threads, [&](int64_t i) {
        cpu::Extent extent = kernels.find_extent[dtype_index](grids[i].logits, level);
        if (extent.has_nan || extent.row_begin == extent.row_end) return;
        if (grids[i].resampled()) extent = extent_among(extent, grids[i]);
        if (extent.row_begin >= extent.row_end || extent.column_begin >= extent.column_end) return;
        if (may_be_kept(static_cast<size_t>(i), extent)) extents[i] = extent;
    });

    std::vector<Region> regions(grids.size(), Region::empty());
    std::vector<Canvas> canvases(grids.size());
    int64_t words = 0;
    for (size_t i = 0; i < grids.size(); ++i) {
        if (extents[i].row_begin == extents[i].row_end) continue;
        canvases[i] = canvas_of(extents[i], axes);
        canvases[i].begin = words;
        words += canvases[i].stride * canvases[i].rows;
    }
    uint64_t* const drawn = t_caller.words.get(static_cast<size_t>(words));
    parallel_for(count, threads, [&](int64_t i) {
        const Canvas& canvas = canvases[i];
        if (canvas.rows == 0 || canvas.stride == 0) return;
        regions[i] = kernels.draw_instance[dtype_index](
            {.grid = grids[i],
             .extent = extents[i],
             .x = axes.x,
             .y = axes.y,
             .mask_threshold = of_logits ? level : static_cast<float>(wanted),
             .of_logits = of_logits,
             .nearest = rules.nearest,
             .surely = surely,
             .want_sum = arguments.use_mask_score && !rules.nearest,
             .words = drawn + canvas.begin,
             .word_stride = canvas.stride,
             .word_begin = canvas.word_begin,
             .row_begin = canvas.row_begin,
             .scratch = scratch(),
             .node_bits = t_worker.words.get(static_cast<size_t>(grid.columns) / 64 + 2)});
    });

    std::vector<ScoredQuery> rows;
    // A kept row still finds its canvas by its query; rows of one query share their words.
    std::vector<size_t> mask_of_query(static_cast<size_t>(logits.queries));
    for (size_t i = 0; i < queries.size(); ++i) {
        ScoredQuery& query = queries[i];
        query.region = regions[mask_of[i]];
        query.nodes = node_sums[mask_of[i]];
        mask_of_query[query.index] = mask_of[i];
        if (keep(arguments, query)) rows.push_back(query);
    }
    sort_by_score(rows);

    result.words = 0;
    std::vector<int64_t> offset(grids.size(), -1);
    for (const ScoredQuery& row : rows) {
        int64_t& begin = offset[mask_of_query[row.index]];
        const bool first = begin < 0;
        if (first) begin = result.words;
        result.offsets.push_back(begin);
        if (!first) continue;
        const Region& region = row.region;
        result.words +=
            static_cast<int64_t>((region.x2 + 63) / 64 - region.x1 / 64) * (region.y2 - region.y1);
    }
    result.bits.reset(new uint64_t[static_cast<size_t>(result.words)]);
    for (size_t i = 0; i < rows.size(); ++i) {
        const Region& region = rows[i].region;
        int64_t& begin = offset[mask_of_query[rows[i].index]];
        if (region.area == 0 || begin < 0) continue;
        begin = -1;  // copied
        const Canvas& canvas = canvases[mask_of_query[rows[i].index]];
        const int64_t width = (region.x2 + 63) / 64 - region.x1 / 64;
        const uint64_t* from = drawn + canvas.begin + (region.y1 - canvas.row_begin) * canvas.stride +
                               (region.x1 / 64 - canvas.word_begin);
        uint64_t* to = result.bits.get() + result.offsets[i];
        for (int32_t y = region.y1; y < region.y2; ++y, from += canvas.stride, to += width) {
            std::copy_n(from, width, to);
        }
    }
    queries = std::move(rows);
}

}  // namespace fai::ops
