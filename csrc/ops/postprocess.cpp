#include "csrc/ops/postprocess.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "csrc/core/error.h"
#include "csrc/core/parallel.h"
#include "csrc/cpu/kernels.h"
#include "csrc/math/rows.h"
#include "csrc/ops/checks.h"
#include "csrc/ops/queries.h"

namespace fai::ops {
namespace {

void check_logits(const char* name, const View& view, int ndim, const char* expected) {
    if (view.dtype == DType::u8) {
        throw TypeError(message(name, ": got dtype uint8, expected float32 or float16"));
    }
    if (view.ndim != ndim) {
        throw ValueError(message(name, ": got shape ", shape_of(view), ", expected ", expected));
    }
}

void check_values(const char* name, const View& view, int64_t values) {
    constexpr int64_t kMaxValues = int64_t{1} << 30;
    if (values > kMaxValues) {
        throw ValueError(message(name, ": got ", values, " values in shape ", shape_of(view),
                                 ", expected at most ", kMaxValues));
    }
}

// The kernels' own need, which callers meet with a copy.
void check_rows(const char* name, const View& view) {
    const auto item = static_cast<int64_t>(item_size(view.dtype));
    const int last = view.ndim - 1;
    bool usable = view.shape[last] == 1 || view.strides[last] == item;
    for (int i = 0; i < last; ++i) usable = usable && view.strides[i] % item == 0;
    if (!usable)
        throw ValueError(message(name, ": got rows that are not contiguous, expected contiguous ones"));
}

void write_rows(const std::vector<ScoredQuery>& rows, Postprocessed& result) {
    for (const ScoredQuery& row : rows) {
        result.confidence.push_back(static_cast<float>(row.score));
        result.class_id.push_back(row.class_id);
        result.query.push_back(row.index);
        result.area.push_back(row.region.area);
        result.boxes.insert(result.boxes.end(), {row.region.x1, row.region.y1, row.region.x2, row.region.y2});
    }
}

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

void draw_instances(const PostprocessArguments& arguments, const MaskLogits& logits,
                    const cpu::Kernels& kernels, int threads, std::vector<ScoredQuery>& queries,
                    Postprocessed& result) {
    std::erase_if(queries,
                  [&](const ScoredQuery& query) { return !math::above(query.score, arguments.threshold); });
    const double wanted = arguments.mask_threshold;
    if (wanted > 1.0 || queries.empty()) {
        std::erase_if(queries, [&](ScoredQuery& query) { return !keep(arguments, query); });
        sort_by_score(queries);
        result.offsets.assign(queries.size(), 0);
        return;
    }
    const double surely_outside = wanted - kSigmoidSlack;
    const float level = surely_outside <= 0.0
                            ? -std::numeric_limits<float>::infinity()
                            : static_cast<float>(std::log(surely_outside / (1.0 - surely_outside)));

    const auto count = static_cast<int64_t>(queries.size());
    std::vector<cpu::Extent> extents(queries.size());
    parallel_for(count, threads, [&](int64_t i) {
        extents[i] = kernels.find_extent[logits.dtype_index](logits.plane(queries[i].index), level);
    });

    const Axes axes = build_axes(arguments, logits);
    std::vector<Canvas> canvases(queries.size());
    int64_t words = 0;
    for (size_t i = 0; i < queries.size(); ++i) {
        const cpu::Extent& extent = extents[i];
        if (extent.has_nan || extent.row_begin == extent.row_end) continue;
        canvases[i] = canvas_of(extent, axes);
        canvases[i].begin = words;
        words += canvases[i].stride * canvases[i].rows;
    }
    uint64_t* const drawn = t_caller.words.get(static_cast<size_t>(words));
    parallel_for(count, threads, [&](int64_t i) {
        const Canvas& canvas = canvases[i];
        if (canvas.rows == 0 || canvas.stride == 0) return;
        queries[i].region = kernels.draw_instance[logits.dtype_index](
            {.logits = logits.plane(queries[i].index),
             .extent = extents[i],
             .x = axes.x,
             .y = axes.y,
             .mask_threshold = static_cast<float>(wanted),
             .want_sum = arguments.use_mask_score,
             .words = drawn + canvas.begin,
             .word_stride = canvas.stride,
             .word_begin = canvas.word_begin,
             .row_begin = canvas.row_begin,
             .scratch = t_worker.floats.get(static_cast<size_t>(cpu::instance_scratch(logits.columns))),
             .node_bits = t_worker.words.get(static_cast<size_t>(logits.columns) / 64 + 2)});
    });

    std::vector<ScoredQuery> rows;
    for (ScoredQuery& query : queries) {
        if (keep(arguments, query)) rows.push_back(query);
    }
    // A kept row still finds its canvas by its query.
    std::vector<int32_t> canvas_of_query(static_cast<size_t>(logits.queries));
    for (size_t i = 0; i < queries.size(); ++i) canvas_of_query[queries[i].index] = static_cast<int32_t>(i);
    sort_by_score(rows);

    result.words = 0;
    for (const ScoredQuery& row : rows) {
        result.offsets.push_back(result.words);
        const Region& region = row.region;
        result.words +=
            static_cast<int64_t>((region.x2 + 63) / 64 - region.x1 / 64) * (region.y2 - region.y1);
    }
    result.bits.reset(new uint64_t[static_cast<size_t>(result.words)]);
    for (size_t i = 0; i < rows.size(); ++i) {
        const Region& region = rows[i].region;
        if (region.area == 0) continue;
        const Canvas& canvas = canvases[canvas_of_query[rows[i].index]];
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

}  // namespace

void check(const PostprocessArguments& arguments) {
    const View& masks = arguments.mask_logits;
    const View& classes = arguments.class_logits;
    check_logits("mask_logits", masks, 3, "(Q, h, w) or (1, Q, h, w)");
    check_logits("class_logits", classes, 2, "(Q, K) or (1, Q, K)");
    check_sides("size", arguments.size.height, arguments.size.width);
    check_sides("mask_logits", masks.shape[1], masks.shape[2]);
    constexpr int64_t kMaxQueries = 65534;
    if (masks.shape[0] < 1 || masks.shape[0] > kMaxQueries) {
        throw ValueError(message("mask_logits: got ", masks.shape[0], " queries in shape ", shape_of(masks),
                                 ", expected 1 to ", kMaxQueries));
    }
    if (classes.shape[0] != masks.shape[0]) {
        throw ValueError(message("class_logits: got ", classes.shape[0], " queries in shape ",
                                 shape_of(classes), ", expected ", masks.shape[0], " as in mask_logits ",
                                 shape_of(masks)));
    }
    const int64_t least = arguments.softmax ? 2 : 1;
    if (classes.shape[1] < least || classes.shape[1] > (1 << 24)) {
        throw ValueError(message("class_logits: got ", classes.shape[1], " columns in shape ",
                                 shape_of(classes), ", expected at least ", least,
                                 arguments.softmax ? " (classes and 'no object')" : " (classes)"));
    }
    check_values("mask_logits", masks, masks.shape[0] * masks.shape[1] * masks.shape[2]);
    check_values("class_logits", classes, classes.shape[0] * classes.shape[1]);
    if (!std::isfinite(arguments.threshold)) {
        throw ValueError(message("threshold: got ", arguments.threshold, ", expected a finite number"));
    }
    if (!std::isfinite(arguments.mask_threshold)) {
        throw ValueError(
            message("mask_threshold: got ", arguments.mask_threshold, ", expected a finite number"));
    }
    check_rules(arguments.rules, arguments.use_mask_score);
    if (arguments.letterboxed) {
        const Placement& at = arguments.placement;
        const bool inside = at.top >= 0 && at.left >= 0 && at.content.height >= 1 && at.content.width >= 1 &&
                            static_cast<int64_t>(at.top) + at.content.height <= arguments.tensor.height &&
                            static_cast<int64_t>(at.left) + at.content.width <= arguments.tensor.width;
        if (!inside) {
            throw ValueError(message("letterbox: got a content of ", at.content.height, " x ",
                                     at.content.width, " at (", at.top, ", ", at.left,
                                     "), expected it inside the input of ", arguments.tensor.height, " x ",
                                     arguments.tensor.width));
        }
    }
}

void check_rules(const Rules& rules, bool use_mask_score) {
    if (rules.panoptic && use_mask_score) {
        throw ValueError(
            "use_mask_score: got True with panoptic, expected False: a segment's confidence is its class "
            "score");
    }
    if (rules.by_sum && use_mask_score) {
        throw ValueError(
            "use_mask_score: got True with combine='sum', expected False: a class's confidence is its mean "
            "sum");
    }
    if (rules.by_sum && rules.of_logits) {
        throw ValueError(
            "resampling.of: got 'logits' with combine='sum', expected 'probabilities': sums are resized, not "
            "masks");
    }
}

int segment_item_size(const PostprocessArguments& arguments) {
    const int64_t labels = arguments.rules.by_sum ? arguments.class_logits.shape[1] - arguments.softmax
                                                  : arguments.mask_logits.shape[0];
    return labels <= 255 ? 1 : 2;
}

void postprocess(const PostprocessArguments& arguments, void* segments, Postprocessed& result) {
    check(arguments);
    check_rows("mask_logits", arguments.mask_logits);
    check_rows("class_logits", arguments.class_logits);
    const MaskLogits logits = mask_logits_of(arguments.mask_logits);
    const cpu::Kernels& kernels = cpu::kernels();
    const int threads = resolve_threads(arguments.num_threads);
    std::vector<ScoredQuery> queries;
    if (!arguments.rules.by_sum) queries = score_queries(arguments, kernels);
    if (arguments.rules.by_sum) {
        draw_by_sum(arguments, logits, kernels, threads, queries, segments);
    } else if (arguments.rules.panoptic) {
        draw_panoptic(arguments, logits, kernels, threads, queries, segments);
    } else if (arguments.predict_all_pixels) {
        draw_semantic(arguments, logits, kernels, threads, queries, segments);
    } else {
        draw_instances(arguments, logits, kernels, threads, queries, result);
    }
    write_rows(queries, result);
}

}  // namespace fai::ops
