#include "csrc/ops/postprocess.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>

#include "csrc/core/error.h"
#include "csrc/core/parallel.h"
#include "csrc/core/scratch.h"
#include "csrc/cpu/kernels.h"
#include "csrc/math/rows.h"
#include "csrc/math/sampling.h"
#include "csrc/ops/checks.h"
#include "csrc/ops/class_pairs.h"
#include "csrc/ops/pixel_axis.h"
#include "csrc/ops/resample.h"

namespace fai::ops {
namespace {

using cpu::Region;

// A semantic task: few enough cell rows to share the work evenly, enough to reuse the row between two of
// them.
constexpr int32_t kCellRowsPerTask = 8;
// And not so few that the tasks' own regions take up much memory.
constexpr int64_t kMaxTaskRegions = int64_t{1} << 20;
// The CPU's sigmoid is within 2e-7 of the true one, so this much below the threshold is surely outside.
constexpr double kSigmoidSlack = 1e-6;

struct ScoredQuery {
    int32_t index;
    double score;
    int64_t class_id;
    Region region = Region::empty();
    cpu::NodeSum nodes{0, 0.0};  // where scores are of nodes
};

struct MaskLogits {
    int32_t queries, rows, columns;
    int64_t query_stride, row_stride;  // in values
    int dtype_index;                   // index into the kernels' pairs
    const char* data;
    size_t item;

    const void* query(int32_t q) const { return data + q * query_stride * static_cast<int64_t>(item); }
    cpu::Plane plane(int32_t q) const { return {query(q), rows, columns, row_stride}; }
};

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

bool resizes_logits(const Rules& rules) { return rules.logits_size.height > 0; }

// Step 1. A score that is NaN takes its query out.
std::vector<ScoredQuery> score_queries(const PostprocessArguments& arguments, const cpu::Kernels& kernels) {
    const View& logits = arguments.class_logits;
    std::vector<ScoredQuery> queries;
    queries.reserve(static_cast<size_t>(logits.shape[0]));
    for (int64_t q = 0; q < logits.shape[0]; ++q) {
        ScoredQuery query{static_cast<int32_t>(q), 0.0, 0};
        kernels.class_score[logits.dtype == DType::f16](
            static_cast<const char*>(logits.data) + q * logits.strides[0],
            static_cast<int32_t>(logits.shape[1]), arguments.softmax, &query.score, &query.class_id);
        if (!std::isnan(query.score)) queries.push_back(query);
    }
    return queries;
}

// Scratch of the thread that calls postprocess, and of each that works for it.
struct CallerScratch {
    PixelAxisTable x, y;
    Scratch<uint64_t> words;
    Scratch<Region> regions;
    Scratch<uint8_t> has_nan;
    Resampled resampled;
};
struct WorkerScratch {
    Scratch<float> floats;
    Scratch<uint64_t> words;
    Scratch<cpu::Candidate> candidates;
    Scratch<int32_t> integers;
};
thread_local CallerScratch t_caller;
thread_local WorkerScratch t_worker;

struct Axes {
    cpu::PixelAxis x, y;
};

// Of masks of rows x columns nodes; those of `logits_size` are the frame's alone.
Axes build_axes(const PostprocessArguments& arguments, int32_t rows, int32_t columns) {
    const Size masks{rows, columns};
    const MaskAxes axes = arguments.letterboxed && !resizes_logits(arguments.rules)
                              ? letterboxed_axes(masks, arguments.size, arguments.tensor, arguments.placement)
                              : stretched_axes(masks, arguments.size);
    const bool nearest = arguments.rules.nearest;
    return {t_caller.x.build(axes.x, arguments.size.width, nearest),
            t_caller.y.build(axes.y, arguments.size.height, nearest)};
}

// The planes of these queries at the nodes of `logits_size`, in float32.
std::span<const cpu::Plane> resample(const PostprocessArguments& arguments, std::span<const cpu::Plane> planes,
                                     const MaskLogits& logits, int threads) {
    const Nodes nodes = nodes_of(arguments.rules.logits_size, arguments.letterboxed, arguments.tensor,
                                 arguments.placement);
    return t_caller.resampled.make(planes, logits.dtype_index, nodes, threads);
}

// All queries' masks at the nodes of `logits_size`.
MaskLogits resample_all(const PostprocessArguments& arguments, const MaskLogits& logits, int threads) {
    std::vector<cpu::Plane> planes;
    for (int32_t q = 0; q < logits.queries; ++q) planes.push_back(logits.plane(q));
    const std::span<const cpu::Plane> resized = resample(arguments, planes, logits, threads);
    const int64_t values = static_cast<int64_t>(resized[0].rows) * resized[0].columns;
    return {.queries = logits.queries,
            .rows = resized[0].rows,
            .columns = resized[0].columns,
            .query_stride = values,
            .row_stride = resized[0].columns,
            .dtype_index = 0,
            .data = static_cast<const char*>(resized[0].data),
            .item = sizeof(float)};
}

// Steps 4 to 6 for a query whose region is known.
bool keep(const PostprocessArguments& arguments, ScoredQuery& query) {
    if (!math::enough_pixels(query.region.area, arguments.min_area)) return false;
    if (query.region.area == 0) query.region = {};  // its box is zeros, not an inverted one
    if (arguments.use_mask_score) {
        query.score = arguments.rules.nearest
                          ? math::fused_node_score(query.score, query.nodes.sum, query.nodes.nodes)
                          : math::fused_score(query.score, query.region.sum, query.region.area);
    }
    return math::above(query.score, arguments.threshold);
}

// By the score as it is handed out, so that equal ones are in order of their queries.
void sort_by_score(std::vector<ScoredQuery>& queries) {
    std::sort(queries.begin(), queries.end(), [](const ScoredQuery& a, const ScoredQuery& b) {
        const float x = static_cast<float>(a.score), y = static_cast<float>(b.score);
        if (x != y) return x > y;
        return a.index != b.index ? a.index < b.index : a.class_id < b.class_id;
    });
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
    if (arguments.rules.multi_label) {
        queries.clear();
        for (const ClassPair& pair :
             best_class_pairs(arguments.class_logits, arguments.softmax, arguments.threshold)) {
            queries.push_back({pair.query, pair.score, pair.class_id});
        }
    }
    const double wanted = arguments.mask_threshold;
    if (wanted > 1.0 || queries.empty()) {
        std::erase_if(queries, [&](ScoredQuery& query) { return !keep(arguments, query); });
        sort_by_score(queries);
        result.offsets.assign(queries.size(), 0);
        return;
    }
    const bool of_logits = arguments.rules.of_logits;
    const float level = logit_of(of_logits ? wanted : wanted - kSigmoidSlack);

    // Classes of one query are next to each other, and share its mask.
    std::vector<size_t> mask_of(queries.size());
    std::vector<cpu::Plane> planes;
    for (size_t i = 0; i < queries.size(); ++i) {
        if (i == 0 || queries[i].index != queries[i - 1].index) planes.push_back(logits.plane(queries[i].index));
        mask_of[i] = planes.size() - 1;
    }
    int dtype_index = logits.dtype_index;
    if (resizes_logits(arguments.rules)) {
        const std::span<const cpu::Plane> resized = resample(arguments, planes, logits, threads);
        planes.assign(resized.begin(), resized.end());
        dtype_index = 0;
    }
    const int32_t columns = planes[0].columns;

    const auto count = static_cast<int64_t>(planes.size());
    std::vector<cpu::Extent> extents(planes.size());
    parallel_for(count, threads,
                 [&](int64_t i) { extents[i] = kernels.find_extent[dtype_index](planes[i], level); });

    const Axes axes = build_axes(arguments, planes[0].rows, columns);
    std::vector<Region> regions(planes.size(), Region::empty());
    std::vector<cpu::NodeSum> node_sums(planes.size());
    std::vector<Canvas> canvases(planes.size());
    int64_t words = 0;
    for (size_t i = 0; i < planes.size(); ++i) {
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
        if (arguments.rules.nearest && arguments.use_mask_score) {
            node_sums[i] =
                kernels.sum_nodes[dtype_index](planes[i], extents[i], static_cast<float>(wanted));
        }
        regions[i] = kernels.draw_instance[dtype_index](
            {.logits = planes[i],
             .extent = extents[i],
             .x = axes.x,
             .y = axes.y,
             .mask_threshold = of_logits ? level : static_cast<float>(wanted),
             .of_logits = of_logits,
             .want_sum = arguments.use_mask_score && !arguments.rules.nearest,
             .words = drawn + canvas.begin,
             .word_stride = canvas.stride,
             .word_begin = canvas.word_begin,
             .row_begin = canvas.row_begin,
             .scratch = t_worker.floats.get(static_cast<size_t>(cpu::instance_scratch(columns))),
             .node_bits = t_worker.words.get(static_cast<size_t>(columns) / 64 + 2)});
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
    std::vector<int64_t> offset(planes.size(), -1);
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

int segment_item_size(const PostprocessArguments& arguments) {
    return arguments.mask_logits.shape[0] <= 255 ? 1 : 2;
}

void postprocess(const PostprocessArguments& arguments, void* segments, Postprocessed& result) {
    check(arguments);
    check_rows("mask_logits", arguments.mask_logits);
    check_rows("class_logits", arguments.class_logits);
    const MaskLogits logits = mask_logits_of(arguments.mask_logits);
    const cpu::Kernels& kernels = cpu::kernels();
    const int threads = resolve_threads(arguments.num_threads);
    std::vector<ScoredQuery> queries = score_queries(arguments, kernels);
    if (arguments.predict_all_pixels) {
        const MaskLogits drawn =
            resizes_logits(arguments.rules) ? resample_all(arguments, logits, threads) : logits;
        draw_semantic(arguments, drawn, kernels, threads, queries, segments);
    } else {
        draw_instances(arguments, logits, kernels, threads, queries, result);
    }
    write_rows(queries, result);
}

}  // namespace fai::ops
