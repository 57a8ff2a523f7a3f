// From YUV samples to RGB on the 0..255 scale (ITU-R BT.601 and BT.709).
#pragma once

#include "csrc/math/hd.h"
#include "csrc/math/scalar.h"

namespace fai::math {

// R = y*Y + y0 + rv*V, G = y*Y + y0 + gu*U + gv*V, B = y*Y + y0 + bu*U with U, V centerd on 0.
struct YuvCoefficients {
    float y, y0, rv, gu, gv, bu;

    // kr, kb: luma weights of red and blue. Limited range: luma 16..235, chroma 16..240.
    static FAI_HD YuvCoefficients make(double kr, double kb, bool limited) {
        const double kg = 1.0 - kr - kb;
        const double luma = limited ? 255.0 / 219.0 : 1.0;
        const double chroma = limited ? 255.0 / 224.0 : 1.0;
        return {static_cast<float>(luma),
                static_cast<float>(limited ? -16.0 * luma : 0.0),
                static_cast<float>(chroma * 2.0 * (1.0 - kr)),
                static_cast<float>(-chroma * 2.0 * kb * (1.0 - kb) / kg),
                static_cast<float>(-chroma * 2.0 * kr * (1.0 - kr) / kg),
                static_cast<float>(chroma * 2.0 * (1.0 - kb))};
    }
};

template <class F>
struct Rgb {
    F r, g, b;
};

template <class F>
FAI_HD F clamp_to_byte(F x) {
    return maximum(minimum(x, broadcast(x, 255.0f)), broadcast(x, 0.0f));
}

// luma 0..255; u, v = chroma sample - 128.
template <class F>
FAI_HD Rgb<F> yuv_to_rgb(F luma, F u, F v, const YuvCoefficients& k) {
    const F y = luma * broadcast(luma, k.y) + broadcast(luma, k.y0);
    return {clamp_to_byte(y + v * broadcast(v, k.rv)),
            clamp_to_byte(y + (u * broadcast(u, k.gu) + v * broadcast(v, k.gv))),
            clamp_to_byte(y + u * broadcast(u, k.bu))};
}

}  // namespace fai::math
