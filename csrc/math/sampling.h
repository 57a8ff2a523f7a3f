// Where an output pixel samples its input: bilinear, half-pixel centers, edges clamped, no antialias
// (the specification's step 2; torch's interpolate(mode="bilinear", align_corners=False)).
#pragma once

#include <cstdint>

#include "csrc/core/tap.h"
#include "csrc/math/hd.h"

namespace fai::math {

// One axis: output index i has its center at source coordinate (i + 0.5) * scale + offset - 0.5.
struct Axis {
    double scale;
    double offset;
    int32_t inputs;

    // Stretches `inputs` samples over `outputs` pixels.
    static FAI_HD Axis stretch(int32_t inputs, int32_t outputs) {
        return {static_cast<double>(inputs) / outputs, 0.0, inputs};
    }
};

FAI_HD Tap tap_at(double position, int32_t inputs) {
    const double last = inputs - 1;
    position = position < 0.0 ? 0.0 : position > last ? last : position;
    const int32_t index = static_cast<int32_t>(position);
    const float fraction = static_cast<float>(position - index);
    // Rounding to float can reach 1, which is the next sample.
    if (fraction < 1.0f) return {index, fraction};
    return {index + 1, 0.0f};
}

// Exact to double precision: a mask's pixels are defined by real numbers.
FAI_HD Tap tap(const Axis& axis, int32_t output) {
    return tap_at((output + 0.5) * axis.scale + axis.offset - 0.5, axis.inputs);
}

// Rounded where torch rounds on CPUs with fused multiply-add (scale and center to float), because networks
// were trained on frames resized so. At 2000 samples that moves a center by up to 1e-4 of a sample.
FAI_HD Tap tap_as_torch(const Axis& axis, int32_t output) {
    const double scale = static_cast<float>(axis.scale);
    return tap_at(static_cast<float>(scale * (output + 0.5) - 0.5), axis.inputs);
}

// The sample that a pixel takes as it is (torch's interpolate(mode="nearest"), which rounds the scale and the
// position to float): not the one nearest to the pixel's center, but the one in which its first edge lies.
FAI_HD int32_t nearest_sample(const Axis& axis, int32_t output) {
    const float position =
        static_cast<float>(output) * static_cast<float>(axis.scale) + static_cast<float>(axis.offset);
    const int32_t index = static_cast<int32_t>(position);
    return index < axis.inputs ? index : axis.inputs - 1;
}

// a at t = 0, towards b. Monotone in t, and exactly a where a equals b.
template <class F>
FAI_HD F lerp(F a, F b, F t) {
    return a + (b - a) * t;
}

}  // namespace fai::math
