// Semantic results by sum, of crops side by side: what a network that takes a square is shown of a frame with
// another aspect (docs/postprocess.md).
#pragma once

#include <cstdint>
#include <vector>

#include "csrc/core/types.h"
#include "csrc/ops/postprocess.h"

namespace fai::ops {

struct Crops {
    Size whole;                   // what the frame is stretched to, pixels
    int32_t side;                 // of each crop, a square; the whole's shorter side, pixels
    std::vector<int32_t> starts;  // along the whole's longer side, pixels, rising

    bool down() const { return whole.height > whole.width; }
    int32_t length() const { return down() ? whole.height : whole.width; }
};

// One image's crops, which differ in their logits alone. Class sums of each are those at the crop's pixels;
// where crops overlap, their mean counts. `segments` as in postprocess(). Throws ValueError, TypeError naming
// the argument.
void postprocess_crops(const std::vector<PostprocessArguments>& images, const Crops& crops, void* segments,
                       Postprocessed& result);

}  // namespace fai::ops
