// What a segment of a panoptic result is (docs/postprocess.md); for the CPU and the kernels of the GPU.
#pragma once

#include <cstdint>

#include "csrc/math/hd.h"
#include "csrc/math/rows.h"

namespace fai::math {

// Does a query compete for pixels? `has_class`: no class's logit is below that of 'no object'.
FAI_HD bool competes(bool has_class, double score, double threshold) {
    return has_class && above(score, threshold);
}

// What a pixel with mask probability m has to be for one of a query's own: `inside` of this.
template <class F>
FAI_HD F own_worth(F m, F weight) {
    return m * weight;
}

// Is what a query has won a segment? Divided as torch divides its integers, in float32.
FAI_HD bool is_segment(int64_t won, int64_t own, double overlap_threshold) {
    if (won <= 0 || own <= 0) return false;
    return static_cast<double>(static_cast<float>(won) / static_cast<float>(own)) > overlap_threshold;
}

}  // namespace fai::math
