// Mask logits at the nodes of another grid, before anything else is made of them (Rules::logits_size).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "csrc/core/rules.h"
#include "csrc/core/scratch.h"
#include "csrc/core/tap.h"
#include "csrc/core/types.h"
#include "csrc/cpu/kernels.h"
#include "csrc/ops/preprocess.h"

namespace fai::ops {

// A rectangle of nodes of a grid: all of them, or those that a frame takes which is a part of the network's
// input.
struct Nodes {
    Size grid;
    int32_t top = 0, left = 0;
    Size size;
};
// `tensor` and `placement` matter where letterboxed. At the input's own size the nodes are the content's
// pixels.
Nodes nodes_of(Size grid, bool letterboxed, Size tensor, const Placement& placement);

// Throws ValueError where the resized logits of that many queries were too many values.
void check_logits_size(const Rules& rules, int64_t queries);

// Where the nodes lie in a grid of `masks`.
std::vector<Tap> row_taps(const Nodes& nodes, Size masks);
std::vector<Tap> column_taps(const Nodes& nodes, Size masks);

// The logit in float32 that a mask threshold of at most 1 is; minus infinity where everything is inside,
// infinity where nothing is.
float logit_of(double mask_threshold);

// The nodes of `extent` and those around them, in a grid that is made of these logits: what lies between
// nodes is never above the largest of them.
cpu::Extent extent_among(const cpu::Extent& logits, const cpu::NodeGrid& grid);

// Keeps its memory for the next call.
class Resampled {
  public:
    // Where the nodes lie in masks of that size, for a plane that is put into it. Valid until the next call.
    cpu::NodeGrid grid(const Nodes& nodes, Size masks);

  private:
    Scratch<float> fractions_;
    Scratch<int32_t> cells_;
    std::vector<Tap> rows_;
};

}  // namespace fai::ops
