// The tables of one axis of a mask's resampling.
#pragma once

#include "csrc/core/scratch.h"
#include "csrc/cpu/kernels.h"
#include "csrc/math/sampling.h"
#include "csrc/ops/preprocess.h"

namespace fai::ops {

// How masks of rows x columns samples lie over a frame of `size`: stretched over it, or, where the frame was
// letterboxed, over the tensor in which it has a place.
struct MaskAxes {
    math::Axis x, y;
};
MaskAxes stretched_axes(Size masks, Size size);
MaskAxes letterboxed_axes(Size masks, Size size, Size tensor, const Placement& placement);

class PixelAxisTable {
  public:
    // Valid until the next call. `nearest`: pixels take the value of a node.
    cpu::PixelAxis build(const math::Axis& axis, int32_t pixels, bool nearest = false);

  private:
    Scratch<int32_t> integers_;
    Scratch<float> floats_;
    Scratch<double> doubles_;
};

}  // namespace fai::ops
