// From a frame to the normalized planar tensor: color, bilinear resize and normalization of one output pixel
// in one thread.
//
// Bytes: the source rows that an output row touches, once from memory (their second reading hits the caches),
// and the tensor: H_src_used * W * C + 3 * h * w * itemsize. At 1080p RGB to 640 x 640 float16 that is
// 6.2 + 2.5 MB: 27 us at a T4's 320 GB/s, 1.8 us at an H200's 4.8 TB/s. Twelve byte loads per thread take
// about a third of the T4's time for that, so that wider loads would gain nothing.
#include "csrc/math/pixel.h"
#include "csrc/math/sampling.h"
#include "cuda/device.cuh"
#include "cuda/params.cuh"

namespace fai::cuda {
namespace {

constexpr int kBlockColumns = 32, kBlockRows = 8;

__device__ __forceinline__ void put(float* out, float value) { *out = value; }
__device__ __forceinline__ void put(__half* out, float value) { *out = __float2half_rn(value); }

// A pixel of the horizontally resampled source row that `row` points to.
__device__ __forceinline__ math::Rgb<float> resample(const ImageParams& image, const uint8_t* const (&row)[3],
                                                     const Tap& tap) {
    const math::Rgb<float> left = math::read_pixel(image.layout, row, tap.index, image.yuv);
    const int32_t last = image.layout.size.width - 1;
    const int32_t next = tap.index < last ? tap.index + 1 : last;
    if (tap.fraction == 0.0f) return left;
    const math::Rgb<float> right = math::read_pixel(image.layout, row, next, image.yuv);
    return {math::lerp(left.r, right.r, tap.fraction), math::lerp(left.g, right.g, tap.fraction),
            math::lerp(left.b, right.b, tap.fraction)};
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    preprocess(const ImageParams* __restrict__ params, Size tensor, T* __restrict__ images) {
    const ImageParams& image = params[blockIdx.z];
    if (!image.active) return;
    const int32_t x = blockIdx.x * kBlockColumns + threadIdx.x;
    const int32_t y = blockIdx.y * kBlockRows + threadIdx.y;
    if (x >= tensor.width || y >= tensor.height) return;
    const int64_t plane = static_cast<int64_t>(tensor.height) * tensor.width;
    T* const out = images + 3 * plane * blockIdx.z + static_cast<int64_t>(y) * tensor.width + x;

    const int32_t row = y - image.top, column = x - image.left;
    if (row < 0 || column < 0 || row >= image.content.height || column >= image.content.width) {
        for (int c = 0; c < 3; ++c) put(out + c * plane, image.padding[c]);
        return;
    }
    const Tap down = image.rows[row], across = image.columns[column];
    const int32_t last = image.layout.size.height - 1;
    const bool one_row = down.fraction == 0.0f || down.index >= last;
    const uint8_t* at[3];
    for (int c = 0; c < 3; ++c) at[c] = image.plane[c] + math::row_offset(image.layout, c, down.index);
    const math::Rgb<float> above = resample(image, at, across);
    const float top[3] = {above.r, above.g, above.b};
    if (one_row) {
        for (int c = 0; c < 3; ++c) put(out + c * plane, math::blend(top[c], image.scale[c], image.bias[c]));
        return;
    }
    for (int c = 0; c < 3; ++c) at[c] = image.plane[c] + math::row_offset(image.layout, c, down.index + 1);
    const math::Rgb<float> below = resample(image, at, across);
    const float bottom[3] = {below.r, below.g, below.b};
    for (int c = 0; c < 3; ++c) {
        put(out + c * plane, math::blend(top[c], (1.0f - down.fraction) * image.scale[c], bottom[c],
                                         down.fraction * image.scale[c], image.bias[c]));
    }
}

}  // namespace

void launch_preprocess(cudaStream_t stream, const GraphSpec& spec, const ImageParams* params, void* images) {
    const dim3 grid((spec.input_size.width + kBlockColumns - 1) / kBlockColumns,
                    (spec.input_size.height + kBlockRows - 1) / kBlockRows, spec.batch);
    const dim3 block(kBlockColumns, kBlockRows);
    if (spec.images == DType::f16) {
        launch(stream, grid, block, preprocess<__half>, params, spec.input_size,
               static_cast<__half*>(images));
    } else {
        launch(stream, grid, block, preprocess<float>, params, spec.input_size, static_cast<float*>(images));
    }
}

}  // namespace fai::cuda
