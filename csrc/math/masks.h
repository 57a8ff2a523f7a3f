// What a mask's pixel is: the sigmoid, and the two decisions (specification, steps 2 and 3).
#pragma once

#include "csrc/math/hd.h"
#include "csrc/math/sampling.h"
#include "csrc/math/scalar.h"

namespace fai::math {

// e**x for x in [-87, 87], to 2 units in the last place: x = n ln 2 + r, |r| <= ln 2 / 2, and a polynomial in
// r (Taylor, degree 7: its remainder is below 1e-8 of the value). Plain multiplications and additions,
// because a fused one would round otherwise on machines without it.
template <class F>
FAI_HD F exponential(F x) {
    const F shift = broadcast(x, 12582912.0f);  // 1.5 * 2**23: adding it rounds to a whole number
    const F n = (x * broadcast(x, 1.44269504f) + shift) - shift;
    const F r = (x - n * broadcast(x, 0.693359375f)) + n * broadcast(x, 2.12194440e-4f);
    F p = broadcast(x, 1.0f / 5040.0f);
    p = p * r + broadcast(x, 1.0f / 720.0f);
    p = p * r + broadcast(x, 1.0f / 120.0f);
    p = p * r + broadcast(x, 1.0f / 24.0f);
    p = p * r + broadcast(x, 1.0f / 6.0f);
    p = p * r + broadcast(x, 0.5f);
    p = (p * r) * r + r;
    return (p + broadcast(x, 1.0f)) * power_of_two(n);
}

// 1 / (1 + e**-x); exactly 0.5 at 0, 0 below -87 and 1 above 17. NaN gives an unspecified value.
template <class F>
FAI_HD F sigmoid(F x) {
    const F limit = broadcast(x, 87.0f);
    const F one = broadcast(x, 1.0f);
    const F zero = broadcast(x, 0.0f);
    const F clamped = maximum(minimum(x, limit), zero - limit);
    const F value = one / (one + exponential(zero - clamped));
    return select(x < zero - limit, zero, value);
}

// sigmoid(x) + sigmoid(y) with one division, for sums alone: of less than -40 it is as of that, 4e-18.
template <class F>
FAI_HD F two_sigmoids(F x, F y) {
    const F limit = broadcast(x, 40.0f);
    const F one = broadcast(x, 1.0f);
    const F zero = broadcast(x, 0.0f);
    const F a = one + exponential(minimum(maximum(zero - x, zero - limit), limit));
    const F b = one + exponential(minimum(maximum(zero - y, zero - limit), limit));
    return (a + b) / (a * b);
}

// What is interpolated where logits are: infinite ones would give NaN. Halves have no finite value beyond.
inline constexpr float kMostLogit = 1e30f;
template <class F>
FAI_HD F bounded(F logit) {
    return maximum(minimum(logit, broadcast(logit, kMostLogit)), broadcast(logit, -kMostLogit));
}

// Instance: is a pixel with mask probability m inside?
template <class F>
FAI_HD auto inside(F m, F mask_threshold) {
    return m >= mask_threshold;
}

// Semantic: does a query with score * m = `value` take the pixel from a query before it? Never on a tie.
template <class F>
FAI_HD auto wins(F value, F best) {
    return value > best;
}

}  // namespace fai::math
