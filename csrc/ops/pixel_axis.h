// The tables of one axis of a mask's resampling.
#pragma once

#include "csrc/core/scratch.h"
#include "csrc/cpu/kernels.h"
#include "csrc/math/sampling.h"

namespace fai::ops {

class PixelAxisTable {
  public:
    // Valid until the next call.
    cpu::PixelAxis build(const math::Axis& axis, int32_t pixels);

  private:
    Scratch<int32_t> integers_;
    Scratch<float> floats_;
    Scratch<double> doubles_;
};

}  // namespace fai::ops
