// Which samples of one axis a resampled pixel lies between.
#pragma once

#include <cstdint>

namespace fai {

// The sample left of (or at) the center, and how far the center lies towards the next one, in [0, 1).
struct Tap {
    int32_t index;
    float fraction;
};

}  // namespace fai
