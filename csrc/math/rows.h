// What a row is: the score of a query, and whether it is kept (docs/postprocess.md, steps 1 and 4 to 6); for
// the CPU, the kernels of the GPU and the host's half of a frame there.
#pragma once

#include <cstdint>

#include "csrc/math/hd.h"

namespace fai::math {

// e**x to 2e-16 of itself: x = n ln 2 + r, |r| <= ln 2 / 2, and a polynomial in r (Taylor, degree 13: its
// remainder is below 1e-17 of the value). The exp of each machine's and GPU's library rounds in a way of its
// own, and a score decides who competes and who wins a pixel.
FAI_HD double exponential(double x) {
    if (!(x < 710.0)) return x * 1e308;  // infinite, or NaN
    if (x < -746.0) return 0.0;
    const double shift = 6755399441055744.0;  // 1.5 * 2**52: adding it rounds to a whole number
    const double n = (x * 1.4426950408889634 + shift) - shift;
    // ln 2 in two parts, of which n times the first is exact.
    const double r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
    double p = 1.0 / 6227020800.0;
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = (p * r) * r + r;
    // In two steps, as 2**n alone may be out of range.
    union {
        uint64_t bits;
        double value;
    } half, rest;
    const auto whole = static_cast<int32_t>(n);
    half.bits = static_cast<uint64_t>(whole / 2 + 1023) << 52;
    rest.bits = static_cast<uint64_t>(whole - whole / 2 + 1023) << 52;
    return (p + 1.0) * half.value * rest.value;
}

// Softmax: the share of the best class, whose logit is `best`, in the sum over all of e**(logit - largest).
FAI_HD double softmax_score(float best, float largest, float total) {
    return exponential(static_cast<double>(best) - static_cast<double>(largest)) / total;
}

// Sigmoid of the best class's logit.
FAI_HD double sigmoid_score(float best) { return 1.0 / (1.0 + exponential(-static_cast<double>(best))); }

// With use_mask_score: the score times the mean mask probability, `sum` of it over `count` pixels or nodes.
// See Rules::mask_score_epsilon().
FAI_HD double fused_score(double score, double sum, int64_t count, double epsilon) {
    return score * (sum / (static_cast<double>(count) + epsilon));
}

// Semantic by sum: the score is the mean of the winning sums over the class's pixels, of which each counts up
// to 1, in whole units: integers add up to the same in any order, on every machine.
inline constexpr float kUnitsOfOne = 16777216.0f;
FAI_HD double mean_sum(double units, int64_t area) { return units / kUnitsOfOne / static_cast<double>(area); }

// A mask of fewer pixels gives no row, unless the caller asks for it.
inline constexpr int64_t kMinArea = 2;
FAI_HD bool enough_pixels(int64_t area, int64_t min_area = kMinArea) { return area >= min_area; }

// Step 6 of docs/postprocess.md, in the type that scores are handed out in: a score that equals the threshold
// there is not above it, whatever the rounding to that type did to either.
FAI_HD bool above(double score, double threshold) {
    return static_cast<float>(score) > static_cast<float>(threshold);
}

// What a GPU hands to the host, which decides: what is above the threshold, or this little below.
FAI_HD bool perhaps_above(double score, double threshold) { return score > threshold - 1e-6; }

}  // namespace fai::math
