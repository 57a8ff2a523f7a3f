// Packed masks: one bit per pixel, cropped to the mask's box. What a detection keeps of its mask, and every
// way to get it out again.
//
// Mask i occupies rows y1..y2-1 of its box; a row is ceil(x2/64) - floor(x1/64) words, and bit b (lowest
// first) of the row's word k is frame column 64*(floor(x1/64)+k)+b. Words are thus aligned to the frame's
// columns. Bits outside [x1, x2) are zero and the box is tight, so a mask has one form only; a mask without
// pixels has the box 0, 0, 0, 0. Masks need be neither dense nor in order in `bits`.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "csrc/core/types.h"

namespace fai::ops {

// Half-open pixel edges.
struct Box {
    int32_t x1 = 0, y1 = 0, x2 = 0, y2 = 0;
    bool operator==(const Box&) const = default;
    bool empty() const { return x1 >= x2 || y1 >= y2; }
    int64_t rows() const { return empty() ? 0 : y2 - y1; }
    int64_t first_word() const { return x1 / 64; }
    int64_t row_words() const { return empty() ? 0 : (x2 + 63) / 64 - x1 / 64; }
    int64_t words() const { return rows() * row_words(); }
};

// Masks that were made here.
struct PackedMasks {
    std::vector<uint64_t> bits;
    std::vector<int64_t> offsets;
    std::vector<Box> boxes;
};

// Borrowed masks whose boxes lie in the frame and whose words lie in `bits`. Offsets and boxes are copies:
// the caller's arrays may change under us while the GIL is released.
class MaskView {
  public:
    // Throws ValueError that names bits, offsets, boxes or size.
    MaskView(std::span<const uint64_t> bits, std::vector<int64_t> offsets, std::vector<Box> boxes, Size size);

    // Throws ValueError unless every mask is in the one form described above.
    void check_form() const;

    int64_t count() const { return static_cast<int64_t>(boxes_.size()); }
    Size size() const { return size_; }
    std::span<const uint64_t> bits() const { return bits_; }
    const Box& box(int64_t i) const { return boxes_[i]; }
    const uint64_t* words(int64_t i) const { return bits_.data() + offsets_[i]; }

  private:
    std::span<const uint64_t> bits_;
    std::vector<int64_t> offsets_;
    std::vector<Box> boxes_;
    Size size_;
};

// Unpacks every mask into out, (count, height, width) bytes of 0 or 1. `zeroed` says that out is zero
// already, which spares all but the boxes. Writes each byte at most once: bound by memory bandwidth.
void masks_decode(const MaskView& masks, uint8_t* out, bool zeroed, int num_threads);

// Unpacks mask i, cropped to its box, into out, (y2 - y1, x2 - x1) bytes of 0 or 1.
void mask_crop(const MaskView& masks, int64_t i, uint8_t* out);

// Pixels of every mask.
std::vector<int64_t> masks_area(const MaskView& masks);

// A dense copy, in order.
PackedMasks masks_compact(const MaskView& masks);

// COCO's compressed run lengths of every full-frame mask: runs down the columns, starting with zeros, each
// but the first three less the run before last, in base 32 with a continuation bit, offset by '0'. The same
// bytes as pycocotools.mask.encode.
std::vector<std::string> masks_rle(const MaskView& masks, int num_threads);

// Packs boolean masks (count, height, width); strides in bytes, of any sign; any byte but 0 is true.
PackedMasks masks_encode(const uint8_t* data, int64_t count, Size size, const int64_t strides[3],
                         int num_threads);

// `segments`, (height, width): the query that won each pixel. Result i holds the pixels that queries[i] won.
// Throws ValueError where a query is not a value of T.
template <class T>
PackedMasks masks_from_segments(const T* segments, Size size, std::span<const int64_t> queries,
                                int num_threads);

// out[p] = class_ids[i] where segments[p] == queries[i] (the first such i), -1 elsewhere. Throws ValueError
// where a query is not a value of T or a class id not one of int16.
template <class T>
void label_map(const T* segments, Size size, std::span<const int64_t> queries,
               std::span<const int64_t> class_ids, int16_t* out, int num_threads);

}  // namespace fai::ops
