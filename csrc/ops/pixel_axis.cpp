#include "csrc/ops/pixel_axis.h"

#include <algorithm>

namespace fai::ops {

MaskAxes stretched_axes(Size masks, Size size) {
    return {math::Axis::stretch(masks.width, size.width), math::Axis::stretch(masks.height, size.height)};
}

MaskAxes letterboxed_axes(Size masks, Size size, Size tensor, const Placement& placement) {
    // Frame pixel -> tensor pixel -> mask sample, in one affine step.
    MaskAxes axes = stretched_axes(masks, size);
    const double per_column = static_cast<double>(masks.width) / tensor.width;
    const double per_row = static_cast<double>(masks.height) / tensor.height;
    axes.x.scale = per_column * placement.content.width / size.width;
    axes.x.offset = per_column * placement.left;
    axes.y.scale = per_row * placement.content.height / size.height;
    axes.y.offset = per_row * placement.top;
    return axes;
}

cpu::PixelAxis PixelAxisTable::build(const math::Axis& axis, int32_t pixels, bool nearest) {
    const int32_t nodes = axis.inputs;
    int32_t* cell = integers_.get(static_cast<size_t>(pixels) + cpu::kPadding + nodes + 1);
    int32_t* first = cell + pixels + cpu::kPadding;
    float* fraction =
        floats_.get(static_cast<size_t>(pixels) + 2 * static_cast<size_t>(nodes) + 3 * cpu::kPadding);
    float* left_weight = fraction + pixels + cpu::kPadding;
    float* right_weight = left_weight + nodes + cpu::kPadding;
    double* prefix = doubles_.get(static_cast<size_t>(pixels) + 1);

    int32_t started = 0;  // cells whose first pixel is known
    prefix[0] = 0.0;
    for (int32_t i = 0; i < pixels; ++i) {
        const Tap tap = nearest ? Tap{math::nearest_sample(axis, i), 0.0f} : math::tap(axis, i);
        cell[i] = tap.index;
        fraction[i] = tap.fraction;
        prefix[i + 1] = prefix[i] + tap.fraction;
        while (started <= tap.index) first[started++] = i;
    }
    while (started <= nodes) first[started++] = pixels;
    std::fill_n(cell + pixels, cpu::kPadding, cell[pixels - 1]);
    std::fill_n(fraction + pixels, cpu::kPadding, 0.0f);
    for (int32_t j = 0; j < nodes; ++j) {
        const double right = prefix[first[j + 1]] - prefix[first[j]];
        right_weight[j] = static_cast<float>(right);
        left_weight[j] = static_cast<float>(first[j + 1] - first[j] - right);
    }
    std::fill_n(left_weight + nodes, cpu::kPadding, 0.0f);
    std::fill_n(right_weight + nodes, cpu::kPadding, 0.0f);
    return {nodes, pixels, cell, fraction, first, prefix, left_weight, right_weight};
}

}  // namespace fai::ops
