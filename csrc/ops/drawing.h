// Packed masks painted into a frame.
#pragma once

#include <cstdint>
#include <span>

#include "csrc/ops/masks.h"

namespace fai::ops {

struct Brush {
    int alpha;  // of the masks' inner pixels, 0..255
    int line;   // width of their contours, pixels; 0 for none
};

// Paints masks rows[0], rows[1], ... over each other into `image`, (height, width, 3) bytes: mask rows[i] in
// color colors[3 * rows[i]], ..., opaque where it is fewer than `line` steps, across or down, from a pixel of
// the frame that is not in it. What lies beyond the frame counts as in the mask.
//
// Throws ValueError that names colors, rows, alpha or line.
void paint_masks(const MaskView& masks, std::span<const int64_t> rows, std::span<const uint8_t> colors,
                 Brush brush, uint8_t* image, int num_threads);

}  // namespace fai::ops
