// What masks have in common, what they fall into, and their pixels as lines of a picture: on packed masks,
// without unpacking them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "csrc/ops/masks.h"

namespace fai::ops {

// Non-maximum suppression: goes through the masks in `order`, and keeps one unless its intersection over
// union with one of the same group that was kept before is above `iou`. Masks without pixels overlap none.
// Returns 1 or 0 for each mask. Throws ValueError unless order is a permutation of the masks and groups has
// one for each.
std::vector<uint8_t> masks_nms(const MaskView& masks, std::span<const int64_t> order,
                               std::span<const int64_t> groups, double iou);

// The masks without their small parts, dense and in order. A part is a set of pixels that touch, at corners
// too. Only parts of at least `min_area` pixels stay, and with `largest` only the largest of each mask, the
// first on ties.
PackedMasks masks_clean(const MaskView& masks, int64_t min_area, bool largest, int num_threads);

// Mask i, cropped to its box, as what a PNG of one bit a pixel compresses: for each row the filter's number
// (2: the difference to the row above, nothing for most rows of a smooth mask) and ceil(width / 8) bytes, the
// first pixel highest.
std::vector<uint8_t> mask_scanlines(const MaskView& masks, int64_t i);

}  // namespace fai::ops
