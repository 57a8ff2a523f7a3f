// What a row is: the score of a query, and whether it is kept (docs/postprocess.md, steps 1 and 4 to 6); for
// the CPU, the kernels of the GPU and the host's half of a frame there.
#pragma once

#include <cmath>
#include <cstdint>

#include "csrc/math/hd.h"

namespace fai::math {

// Softmax: the share of the best class, whose logit is `best`, in the sum over all of e**(logit - largest).
FAI_HD double softmax_score(float best, float largest, float total) {
    return exp(static_cast<double>(best) - static_cast<double>(largest)) / total;
}

// Sigmoid of the best class's logit.
FAI_HD double sigmoid_score(float best) { return 1.0 / (1.0 + exp(-static_cast<double>(best))); }

// With use_mask_score: the score times the mean mask probability, `sum` of it over `count` pixels or nodes. See
// Rules::mask_score_epsilon().
FAI_HD double fused_score(double score, double sum, int64_t count, double epsilon) {
    return score * (sum / (static_cast<double>(count) + epsilon));
}

// A mask of fewer pixels gives no row, unless the caller asks for it.
inline constexpr int64_t kMinArea = 2;
FAI_HD bool enough_pixels(int64_t area, int64_t min_area = kMinArea) { return area >= min_area; }

// Step 6 of docs/postprocess.md, in the type that scores are handed out in: a score that equals the threshold
// there is not above it, whatever the rounding to that type did to either.
FAI_HD bool above(double score, double threshold) {
    return static_cast<float>(score) > static_cast<float>(threshold);
}

// What a GPU hands to the host, whose exp is the exact one: what is above the threshold, or this little
// below.
FAI_HD bool perhaps_above(double score, double threshold) { return score > threshold - 1e-6; }

}  // namespace fai::math
