#include "csrc/ops/resample.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "csrc/core/error.h"
#include "csrc/core/parallel.h"
#include "csrc/math/sampling.h"

namespace fai::ops {
namespace {

std::vector<Tap> taps(int32_t inputs, int32_t outputs, int32_t begin, int32_t count) {
    const math::Axis axis = math::Axis::stretch(inputs, outputs);
    std::vector<Tap> taps(static_cast<size_t>(count));
    for (int32_t i = 0; i < count; ++i) taps[i] = math::tap(axis, begin + i);
    return taps;
}

}  // namespace

Nodes nodes_of(Size grid, bool letterboxed, Size tensor, const Placement& placement) {
    if (!letterboxed) return {grid, 0, 0, grid};
    const auto scaled = [](int32_t side, int32_t nodes, int32_t pixels) {
        return static_cast<int32_t>(std::nearbyint(static_cast<double>(side) * nodes / pixels));
    };
    Nodes nodes{grid,
                std::min(scaled(placement.top, grid.height, tensor.height), grid.height - 1),
                std::min(scaled(placement.left, grid.width, tensor.width), grid.width - 1),
                {}};
    nodes.size.height =
        std::clamp(scaled(placement.content.height, grid.height, tensor.height), 1, grid.height - nodes.top);
    nodes.size.width =
        std::clamp(scaled(placement.content.width, grid.width, tensor.width), 1, grid.width - nodes.left);
    return nodes;
}

void check_logits_size(const Rules& rules, int64_t queries) {
    constexpr int64_t kMaxValues = int64_t{1} << 30;
    const Size size = rules.logits_size;
    if (queries * size.height * size.width > kMaxValues) {
        throw ValueError(message("resampling.logits_size: got ", size.height, " x ", size.width, " for ",
                                 queries, " queries, expected at most ", kMaxValues, " values"));
    }
}

std::vector<Tap> row_taps(const Nodes& nodes, Size masks) {
    return taps(masks.height, nodes.grid.height, nodes.top, nodes.size.height);
}

std::vector<Tap> column_taps(const Nodes& nodes, Size masks) {
    return taps(masks.width, nodes.grid.width, nodes.left, nodes.size.width);
}

float logit_of(double mask_threshold) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    if (mask_threshold <= 0.0) return -kInfinity;
    if (mask_threshold >= 1.0) return kInfinity;
    return static_cast<float>(std::log(mask_threshold / (1.0 - mask_threshold)));
}

cpu::Extent extent_among(const cpu::Extent& logits, const cpu::NodeGrid& grid) {
    // Node i of the grid lies between logits at(i) and at(i) + 1. Fractions are whole parts of twice the
    // grid's side, so none is so near to 1 that rounding could take a node past both.
    const auto first = [](int32_t count, int32_t least, const auto& at) {
        int32_t begin = 0;
        while (begin < count) {
            const int32_t middle = begin + (count - begin) / 2;
            if (at(middle) < least) {
                begin = middle + 1;
            } else {
                count = middle;
            }
        }
        return begin;
    };
    const auto row = [&](int32_t i) { return grid.row[i].index; };
    const auto column = [&](int32_t i) { return grid.cell[i]; };
    return {.row_begin = first(grid.rows, logits.row_begin - 1, row),
            .row_end = first(grid.rows, logits.row_end, row),
            .column_begin = first(grid.columns, logits.column_begin - 1, column),
            .column_end = first(grid.columns, logits.column_end, column),
            .has_nan = logits.has_nan};
}

cpu::NodeGrid Resampled::grid(const Nodes& nodes, Size masks) {
    const auto columns = static_cast<size_t>(nodes.size.width);
    rows_ = row_taps(nodes, masks);
    const std::vector<Tap> across = column_taps(nodes, masks);
    int32_t* const cell = cells_.get(columns + cpu::kPadding);
    float* const fraction = fractions_.get(columns + cpu::kPadding);
    for (size_t i = 0; i < columns + cpu::kPadding; ++i) {
        const Tap& tap = across[std::min(i, columns - 1)];
        cell[i] = tap.index;
        fraction[i] = tap.fraction;
    }
    return {.logits = {},
            .rows = nodes.size.height,
            .columns = nodes.size.width,
            .row = rows_.data(),
            .cell = cell,
            .fraction = fraction};
}

}  // namespace fai::ops
