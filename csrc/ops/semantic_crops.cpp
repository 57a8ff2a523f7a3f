#include <algorithm>
#include <limits>
#include <numeric>

#include "csrc/core/error.h"
#include "csrc/core/parallel.h"
#include "csrc/ops/checks.h"
#include "csrc/ops/crops.h"
#include "csrc/ops/queries.h"
#include "csrc/ops/resample.h"
#include "csrc/ops/sums.h"

namespace fai::ops {
namespace {

// Cells side by side whose nodes are made at once: those of some hundred queries stay in a core's own cache.
constexpr int32_t kCellsAtOnce = 120;

struct TileScratch {
    Scratch<float> nodes, line;
};
thread_local TileScratch t_tile;

// Half open.
struct Span {
    int32_t begin, end;
};

// Where a crop has its logits along one side of the whole, and what its nodes count there: 0 beyond it.
struct CropAxis {
    std::vector<Tap> tap;
    std::vector<int32_t> cell;
    std::vector<float> fraction, weight;

    // `counts`: of each node, how many crops have it; empty where this is the side that all share.
    CropAxis(int32_t logits, const Crops& crops, int32_t start, const std::vector<int32_t>& counts) {
        const Nodes nodes{{crops.side, crops.side}, 0, 0, {crops.side, crops.side}};
        const std::vector<Tap> own = row_taps(nodes, {logits, logits});
        const auto length = counts.empty() ? crops.side : static_cast<int32_t>(counts.size());
        for (int32_t i = 0; i < length + cpu::kPadding; ++i) {
            const int32_t at = std::min(i, length - 1) - start;
            const bool is_mine = at >= 0 && at < crops.side;
            tap.push_back(own[static_cast<size_t>(std::clamp(at, 0, crops.side - 1))]);
            cell.push_back(tap.back().index);
            fraction.push_back(tap.back().fraction);
            const int32_t count = counts.empty() || !is_mine ? 1 : counts[static_cast<size_t>(at + start)];
            weight.push_back(is_mine ? 1.0f / static_cast<float>(count) : 0.0f);
        }
    }
};

// Cells that the same crops have a part in, and which.
struct Range {
    Span cells, crops;
};

void check_crops(const std::vector<PostprocessArguments>& images, const Crops& crops) {
    check_sides("whole", crops.whole.height, crops.whole.width);
    if (crops.side != std::min(crops.whole.height, crops.whole.width)) {
        throw ValueError(message("side: got ", crops.side, ", expected the shorter side of whole, ",
                                 crops.whole.height, " x ", crops.whole.width));
    }
    if (crops.starts.size() != images.size()) {
        throw ValueError(message("starts: got ", crops.starts.size(), ", expected one for each of ",
                                 images.size(), " crops"));
    }
    int64_t covered = 0, last = -1;
    for (const int32_t start : crops.starts) {
        if (start <= last || start > covered) {
            throw ValueError(message("starts: got ", start, " where ", covered,
                                     " pixels are covered, expected rising ones that leave no gap"));
        }
        last = start;
        covered = int64_t{start} + crops.side;
    }
    if (covered != crops.length()) {
        throw ValueError(
            message("starts: got crops of ", covered, " pixels, expected them to end at ", crops.length()));
    }
    for (const PostprocessArguments& image : images) {
        check(image);
        check_rows("mask_logits", image.mask_logits);
        check_rows("class_logits", image.class_logits);
        if (!image.rules.by_sum || image.letterboxed) {
            throw ValueError(
                "combine: got crops without 'sum', expected 'sum': sums are what is put together");
        }
    }
}

// The crops that have one of these nodes. They are one after the other.
Span crops_at(const Crops& crops, int32_t first, int32_t last) {
    const auto& starts = crops.starts;
    const auto end = std::upper_bound(starts.begin(), starts.end(), last) - starts.begin();
    const auto begin = std::upper_bound(starts.begin(), starts.end(), first - crops.side) - starts.begin();
    return {static_cast<int32_t>(begin), static_cast<int32_t>(end)};
}

// Cells of a row: of crops side by side those between the same crops, else all; none of them too long.
std::vector<Range> ranges_of(const Crops& crops) {
    const int32_t columns = crops.whole.width;
    std::vector<Range> ranges;
    for (int32_t x = 0; x < columns; ++x) {
        const Span here = crops.down() ? Span{0, 0} : crops_at(crops, x, std::min(x + 1, columns - 1));
        const bool goes_on = !ranges.empty() && ranges.back().crops.begin == here.begin &&
                             ranges.back().crops.end == here.end &&
                             x - ranges.back().cells.begin < kCellsAtOnce;
        if (!goes_on) ranges.push_back({{x, x}, here});
        ranges.back().cells.end = x + 1;
    }
    return ranges;
}

// The end of the cell rows from `top` on that the same crops have a part in.
int32_t same_crops_until(const Crops& crops, int32_t top, int32_t end) {
    if (!crops.down()) return end;
    const auto at = [&](int32_t y) { return crops_at(crops, y, std::min(y + 1, crops.whole.height - 1)); };
    const Span here = at(top);
    int32_t bottom = top + 1;
    while (bottom < end && at(bottom).begin == here.begin && at(bottom).end == here.end) ++bottom;
    return bottom;
}

// Queries of all crops without NaN, in the order of crops; those of crop c at [begin[c], begin[c + 1]).
struct Queries {
    std::vector<cpu::Plane> planes;
    std::vector<int32_t> begin;
    int dtype_index;

    int32_t count() const { return begin.back(); }
};

Queries queries_of(const std::vector<PostprocessArguments>& images, const cpu::Kernels& kernels, int threads,
                   int64_t stride, float* by_query) {
    Queries found{{}, {0}, images[0].mask_logits.dtype == DType::f16};
    for (const PostprocessArguments& image : images) {
        const MaskLogits logits = mask_logits_of(image.mask_logits);
        const auto all = static_cast<size_t>(logits.queries);
        float* const mine = by_query + found.count() * stride;
        std::vector<int32_t> index(all);
        index.resize(static_cast<size_t>(
            class_probabilities_of(image, kernels, logits.queries, stride, mine, index.data())));
        std::vector<uint8_t> has_nan(index.size());
        parallel_for(static_cast<int64_t>(index.size()), threads, [&](int64_t i) {
            constexpr float kAboveAll = std::numeric_limits<float>::infinity();
            has_nan[i] = kernels.find_extent[logits.dtype_index](logits.plane(index[i]), kAboveAll).has_nan;
        });
        int32_t kept = 0;
        for (size_t i = 0; i < index.size(); ++i) {
            if (has_nan[i]) continue;
            std::copy_n(mine + static_cast<int64_t>(i) * stride, stride, mine + kept++ * stride);
            found.planes.push_back(logits.plane(index[i]));
        }
        found.begin.push_back(found.begin.back() + kept);
    }
    return found;
}

}  // namespace

void postprocess_crops(const std::vector<PostprocessArguments>& images, const Crops& crops, void* segments,
                       Postprocessed& result) {
    check_crops(images, crops);
    const PostprocessArguments& arguments = images[0];
    check_sum_classes(arguments);
    const cpu::Kernels& kernels = cpu::kernels();
    const int threads = resolve_threads(arguments.num_threads);
    const auto classes = static_cast<int32_t>(arguments.class_logits.shape[1] - arguments.softmax);
    const int64_t stride = class_stride_of(classes);
    const auto most = static_cast<int64_t>(images.size()) * arguments.mask_logits.shape[0];
    float* const by_query = t_sums.by_query.get(static_cast<size_t>(most * stride));
    const Queries queries = queries_of(images, kernels, threads, stride, by_query);
    const int64_t total = queries.count();
    float* const by_class = t_sums.by_class.get(static_cast<size_t>(classes * total) + 1);
    transpose_classes(by_query, queries.count(), stride, classes, by_class);
    std::vector<int32_t> index(static_cast<size_t>(total));
    std::iota(index.begin(), index.end(), 0);

    std::vector<int32_t> counts(static_cast<size_t>(crops.length()));
    for (const int32_t start : crops.starts) {
        for (int32_t i = start; i < start + crops.side; ++i) ++counts[static_cast<size_t>(i)];
    }
    const Size masks{static_cast<int32_t>(arguments.mask_logits.shape[1]),
                     static_cast<int32_t>(arguments.mask_logits.shape[2])};
    const CropAxis shared(crops.down() ? masks.width : masks.height, crops, 0, {});
    std::vector<CropAxis> own;
    for (const int32_t start : crops.starts) {
        own.emplace_back(crops.down() ? masks.height : masks.width, crops, start, counts);
    }

    const Size grid = crops.whole;
    // Nodes of the whole are the frame's, whatever the logits' own size was.
    const Axes axes = build_axes(arguments, grid.height, grid.width);
    const bool wide = segment_item_size(arguments) == 2;
    const std::vector<Range> ranges = ranges_of(crops);
    const int32_t rows_per_task =
        sum_rows_per_task(grid.height, int64_t{classes} + arguments.mask_logits.shape[0]);
    const int64_t tasks = (grid.height + rows_per_task - 1) / rows_per_task;
    Region* const regions = t_caller.regions.get(static_cast<size_t>(classes) * static_cast<size_t>(tasks));
    std::fill_n(regions, classes * tasks, Region::empty());
    uint8_t* const has_nan = t_caller.has_nan.get(static_cast<size_t>(total * tasks) + 1);

    const auto draw_rows = [&](int64_t task, int32_t top, int32_t bottom) {
        const int32_t y1 = axes.y.first[top], y2 = axes.y.first[bottom];
        if (y1 == y2) return;
        const int32_t rows = std::min(bottom, grid.height - 1) - top + 1;
        for (const Range& range : ranges) {
            const int32_t left = range.cells.begin;
            const int32_t x1 = axes.x.first[left], x2 = axes.x.first[range.cells.end];
            if (x1 == x2) continue;
            const int32_t columns = std::min(range.cells.end, grid.width - 1) - left + 1;
            const Span here = crops.down() ? crops_at(crops, top, top + rows - 1) : range.crops;
            const int32_t begin = queries.begin[static_cast<size_t>(here.begin)];
            const int32_t count = queries.begin[static_cast<size_t>(here.end)] - begin;
            if (count == 0) {
                const auto item = static_cast<int64_t>(wide ? 2 : 1);
                for (int64_t y = y1; y < y2; ++y) {
                    std::fill_n(static_cast<uint8_t*>(segments) + (y * axes.x.pixels + x1) * item,
                                (x2 - x1) * item, uint8_t{0xff});
                }
                continue;
            }
            const int64_t plane = int64_t{rows} * columns;
            float* const nodes = t_tile.nodes.get(static_cast<size_t>(count * plane));
            float* const line = t_tile.line.get(static_cast<size_t>(cpu::resample_scratch(masks.width)));
            for (int32_t c = here.begin; c < here.end; ++c) {
                const CropAxis& along = own[static_cast<size_t>(c)];
                const CropAxis& down = crops.down() ? along : shared;
                const CropAxis& across = crops.down() ? shared : along;
                for (int32_t q = queries.begin[static_cast<size_t>(c)];
                     q < queries.begin[static_cast<size_t>(c) + 1]; ++q) {
                    kernels.weigh[queries.dtype_index](
                        {.grid = {.logits = queries.planes[static_cast<size_t>(q)],
                                  .rows = rows,
                                  .columns = columns,
                                  .row = down.tap.data() + top,
                                  .cell = across.cell.data() + left,
                                  .fraction = across.fraction.data() + left},
                         .out = nodes + (q - begin) * plane,
                         .scratch = line,
                         .down = down.weight.data() + top,
                         .across = across.weight.data() + left});
                }
            }
            const cpu::NodeGrid drawn{{nodes, rows, columns, columns}, grid.height, grid.width};
            kernels.draw_sums[0](
                {.grid = drawn,
                 .query_stride = plane,
                 .first_row = top,
                 .first_column = left,
                 .probabilities = true,
                 .queries = count,
                 .query = index.data(),
                 .classes = classes,
                 .class_stride = stride,
                 .by_query = by_query + begin * stride,
                 .by_class = by_class + begin,
                 .by_class_stride = total,
                 .x = axes.x,
                 .y = axes.y,
                 .row_begin = top,
                 .row_end = bottom,
                 .column_begin = left,
                 .column_end = range.cells.end,
                 .segments = segments,
                 .wide = wide,
                 .has_nan = has_nan + task * total,
                 .regions = regions + task * classes,
                 .scratch = t_worker.floats.get(
                     static_cast<size_t>(cpu::sum_scratch(count, classes, stride, drawn))),
                 .integers = t_worker.integers.get(static_cast<size_t>(cpu::sum_integers(classes)))});
        }
    };
    parallel_for(tasks, threads, [&](int64_t task) {
        auto top = static_cast<int32_t>(task * rows_per_task);
        const int32_t end = std::min(top + rows_per_task, grid.height);
        while (top < end) {
            const int32_t bottom = same_crops_until(crops, top, end);
            draw_rows(task, top, bottom);
            top = bottom;
        }
    });
    std::vector<ScoredQuery> rows;
    rows_of_sums(arguments, regions, tasks, classes, rows);
    write_rows(rows, result);
}

}  // namespace fai::ops
