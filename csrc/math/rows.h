// What decides whether a query becomes a row, for the CPU and for the host's half of a frame on the GPU.
#pragma once

#include "csrc/math/hd.h"

namespace fai::math {

// Step 6 of docs/postprocess.md, in the type that scores are handed out in: a score that equals the threshold
// there is not above it, whatever the rounding to that type did to either.
FAI_HD bool above(double score, double threshold) {
    return static_cast<float>(score) > static_cast<float>(threshold);
}

}  // namespace fai::math
