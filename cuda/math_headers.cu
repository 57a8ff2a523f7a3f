// Every function of csrc/math in a kernel that nobody launches: keeps the shared headers compiling under
// nvcc.
#include "csrc/math/color.h"
#include "csrc/math/hd.h"
#include "csrc/math/masks.h"
#include "csrc/math/panoptic.h"
#include "csrc/math/rows.h"
#include "csrc/math/sampling.h"
#include "csrc/math/scalar.h"

namespace fai::cuda {

__global__ void use_math_headers(const float* in, float* out) {
    const math::Axis axis = math::Axis::stretch(160, 640);
    const Tap tap = math::tap(axis, threadIdx.x);
    const float sample = math::lerp(in[tap.index], in[tap.index + 1], tap.fraction);
    const float probability = math::sigmoid(sample);
    const math::Rgb<float> rgb =
        math::yuv_to_rgb(sample, in[0], in[1], math::YuvCoefficients::make(0.299, 0.114, true));
    const bool won = math::inside(probability, 0.5f) && math::wins(probability, in[2]) &&
                     math::above(probability, 0.5) &&
                     math::inside(math::own_worth(probability, in[3]), 0.5f) &&
                     math::competes(in[4] > 0.0f, 0.5, 0.25) && math::is_segment(3, 4, 0.5);
    out[threadIdx.x] = won ? rgb.r + rgb.g : rgb.b;
}

}  // namespace fai::cuda
