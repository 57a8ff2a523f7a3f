// From a frame to the normalized planar tensor that an engine takes.
#pragma once

#include "csrc/core/types.h"

namespace fai::ops {

enum class Color { rgb, bgr, rgba, bgra, gray, nv12, i420, yuyv, uyvy };
enum class YuvMatrix { bt601, bt709 };
// How a frame becomes as large as the tensor: over all of it; in its middle, the rest the mean; or at its top
// left, the rest black.
enum class Resize { stretch, letterbox, pad };

// Where the frame lies in the tensor; the rest is padding.
struct Placement {
    int32_t top = 0, left = 0;
    Size content;
};

struct PreprocessArguments {
    Color color = Color::rgb;
    // One view (H, W, C), (H, W), or (3H/2, W) for nv12 and i420; or the planes of nv12 (Y, UV) and i420 (Y,
    // U, V).
    View planes[3];
    int plane_count = 1;
    YuvMatrix matrix = YuvMatrix::bt601;
    bool limited_range = true;
    float mean[3] = {0, 0, 0};  // of R, G, B on the 0..255 scale
    float stddev[3] = {1, 1, 1};
    Size size;  // of the tensor
    Resize resize = Resize::stretch;
    // Where not 0 x 0, the tensor is a part, from (top, left) on, of the frame stretched to this.
    Size whole;
    int32_t top = 0, left = 0;
};

// The frame's own size. Throws TypeError, ValueError naming `image`.
Size frame_size(const PreprocessArguments& arguments);

// The whole tensor for a stretched frame; for a letterboxed one the largest centerd box of its aspect; for a
// padded one the box of transformers' get_size_with_aspect_ratio(), which rounds the shorter side and
// truncates the longer one.
Placement place(Size frame, Size tensor, Resize resize);

// What the values of a channel are beside the frame.
float padding_of(Resize resize, float mean, float stddev);

// Writes the tensor (3, height, width), contiguous, of out_dtype (f32 or f16), all of it. Throws TypeError,
// ValueError naming the argument.
Placement preprocess(const PreprocessArguments& arguments, DType out_dtype, void* out);

}  // namespace fai::ops
