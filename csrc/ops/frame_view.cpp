#include "csrc/ops/frame_view.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "csrc/core/error.h"
#include "csrc/ops/checks.h"

namespace fai::ops {
namespace {

using cpu::RowFormat;

int channels_of(Color color) {
    switch (color) {
        case Color::rgb:
        case Color::bgr:
            return 3;
        case Color::rgba:
        case Color::bgra:
            return 4;
        case Color::yuyv:
        case Color::uyvy:
            return 2;
        default:
            return 1;
    }
}

[[noreturn]] void wrong_shape(const View& view, const char* expected) {
    throw ValueError(message("image: got shape ", shape_of(view), ", expected ", expected));
}

const uint8_t* bytes(const View& view) { return static_cast<const uint8_t*>(view.data); }

FrameView packed_view(const View& view, Color color) {
    const int channels = channels_of(color);
    if (view.ndim != 3 || view.shape[2] != channels) {
        wrong_shape(view, channels == 3   ? "(H, W, 3) for color 'rgb' or 'bgr'"
                          : channels == 4 ? "(H, W, 4) for color 'rgba' or 'bgra'"
                                          : "(H, W, 2) for color 'yuyv' or 'uyvy'");
    }
    FrameView frame;
    check_sides("image", view.shape[0], view.shape[1]);
    frame.size = {static_cast<int32_t>(view.shape[0]), static_cast<int32_t>(view.shape[1])};
    const int64_t pixel = view.strides[1], channel = view.strides[2];

    if (color == Color::yuyv || color == Color::uyvy) {
        if (frame.size.width % 2) wrong_shape(view, "an even width for color 'yuyv' or 'uyvy'");
        const int luma = color == Color::yuyv ? 0 : 1;
        frame.format = RowFormat::yuv;
        frame.plane[0] = bytes(view) + luma * channel;
        frame.plane[1] = bytes(view) + (1 - luma) * channel;
        frame.plane[2] = frame.plane[1] + pixel;
        frame.pixel_stride = pixel;
        frame.chroma_stride = 2 * pixel;
        for (int64_t& stride : frame.row_stride) stride = view.strides[0];
    } else {
        const bool reversed = color == Color::bgr || color == Color::bgra;
        frame.pixel_stride = pixel;
        for (int c = 0; c < 3; ++c) {
            frame.plane[c] = bytes(view) + (reversed ? 2 - c : c) * channel;
            frame.row_stride[c] = view.strides[0];
        }
        if (channel == 1 || channel == -1) {
            // The lowest byte of a pixel, from which every channel is a shift.
            const uint8_t* lowest = bytes(view) + (channel < 0 ? -(channels - 1) : 0);
            frame.format = RowFormat::packed;
            frame.window = channels;
            for (int c = 0; c < 3; ++c) frame.shift[c] = 8 * static_cast<int>(frame.plane[c] - lowest);
            frame.plane[0] = lowest;
        } else {
            frame.format = RowFormat::planar;
        }
    }
    return frame;
}

FrameView gray_view(const View& view) {
    if (view.ndim != 2 && !(view.ndim == 3 && view.shape[2] == 1)) {
        wrong_shape(view, "(H, W) or (H, W, 1) for color 'gray'");
    }
    check_sides("image", view.shape[0], view.shape[1]);
    FrameView frame;
    frame.format = RowFormat::gray;
    frame.size = {static_cast<int32_t>(view.shape[0]), static_cast<int32_t>(view.shape[1])};
    frame.plane[0] = bytes(view);
    frame.row_stride[0] = view.strides[0];
    frame.pixel_stride = view.strides[1];
    return frame;
}

void check_plane(const View& view, const char* name, int64_t rows, int64_t columns, int64_t channels) {
    const bool fits = view.shape[0] == rows && view.shape[1] == columns &&
                      (channels == 1 ? view.ndim == 2 || (view.ndim == 3 && view.shape[2] == 1)
                                     : view.ndim == 3 && view.shape[2] == channels);
    if (!fits) {
        throw ValueError(message("image: got plane ", name, " of shape ", shape_of(view), ", expected (",
                                 rows, ", ", columns, channels == 1 ? ")" : ", 2)"));
    }
}

// nv12 and i420, from one array as OpenCV has them or from their planes as decoders do.
FrameView planar_yuv_view(const PreprocessArguments& arguments) {
    const bool interleaved = arguments.color == Color::nv12;
    const View& luma = arguments.planes[0];
    FrameView frame;
    frame.format = RowFormat::yuv;
    frame.chroma_row_shift = 1;
    frame.plane[0] = bytes(luma);
    frame.row_stride[0] = luma.strides[0];
    frame.pixel_stride = luma.strides[1];
    if (arguments.plane_count == 1) {
        if (luma.ndim != 2 || luma.shape[0] % 3 || luma.shape[1] % 2 || luma.shape[0] < 3) {
            wrong_shape(luma,
                        "(H * 3 / 2, W) with even H and W for color 'nv12' or 'i420', or a tuple of planes");
        }
        const int64_t height = luma.shape[0] / 3 * 2, width = luma.shape[1];
        check_sides("image", height, width);
        frame.size = {static_cast<int32_t>(height), static_cast<int32_t>(width)};
        const int64_t row = luma.strides[0], pixel = luma.strides[1];
        const uint8_t* chroma = bytes(luma) + height * row;
        if (interleaved) {
            frame.plane[1] = chroma;
            frame.plane[2] = chroma + pixel;
            frame.chroma_stride = 2 * pixel;
            frame.row_stride[1] = frame.row_stride[2] = row;
        } else {
            frame.plane[1] = frame.plane[2] = chroma;
            frame.row_stride[1] = frame.row_stride[2] = row;
            frame.chroma_stride = pixel;
            frame.folded = true;
            frame.first_row[2] = frame.size.height / 2;
            frame.half_row = width / 2 * pixel;
        }
        return frame;
    }
    const int planes = interleaved ? 2 : 3;
    if (arguments.plane_count != planes) {
        throw ValueError(
            message("image: got ", arguments.plane_count, " planes, expected ",
                    interleaved ? "2 (Y, UV) for color 'nv12'" : "3 (Y, U, V) for color 'i420'"));
    }
    if (luma.ndim != 2 && !(luma.ndim == 3 && luma.shape[2] == 1)) wrong_shape(luma, "(H, W) for plane Y");
    check_sides("image", luma.shape[0], luma.shape[1]);
    frame.size = {static_cast<int32_t>(luma.shape[0]), static_cast<int32_t>(luma.shape[1])};
    const int64_t rows = (luma.shape[0] + 1) / 2, columns = (luma.shape[1] + 1) / 2;
    if (interleaved) {
        const View& chroma = arguments.planes[1];
        check_plane(chroma, "UV", rows, columns, 2);
        frame.plane[1] = bytes(chroma);
        frame.plane[2] = bytes(chroma) + chroma.strides[2];
        frame.chroma_stride = chroma.strides[1];
        frame.row_stride[1] = frame.row_stride[2] = chroma.strides[0];
    } else {
        check_plane(arguments.planes[1], "U", rows, columns, 1);
        check_plane(arguments.planes[2], "V", rows, columns, 1);
        for (int c = 1; c < 3; ++c) {
            frame.plane[c] = bytes(arguments.planes[c]);
            frame.row_stride[c] = arguments.planes[c].strides[0];
        }
        frame.chroma_stride = arguments.planes[1].strides[1];
        if (arguments.planes[2].strides[1] != frame.chroma_stride) {
            throw ValueError(message("image: got planes U and V with pixel strides of ", frame.chroma_stride,
                                     " and ", arguments.planes[2].strides[1], " bytes, expected equal ones"));
        }
    }
    return frame;
}

Pixels pixels_of(RowFormat format) {
    return format == RowFormat::gray ? Pixels::gray : format == RowFormat::yuv ? Pixels::yuv : Pixels::rgb;
}

}  // namespace

FrameView frame_view_of(const PreprocessArguments& arguments) {
    for (int i = 0; i < arguments.plane_count; ++i) {
        if (arguments.planes[i].dtype != DType::u8) {
            throw TypeError(
                message("image: got dtype ", name_of(arguments.planes[i].dtype), ", expected uint8"));
        }
    }
    const bool planar_yuv = arguments.color == Color::nv12 || arguments.color == Color::i420;
    if (arguments.plane_count != 1 && !planar_yuv) {
        throw ValueError(message("image: got a tuple of ", arguments.plane_count,
                                 " planes, expected one array (planes are for color 'nv12' and 'i420')"));
    }
    FrameView frame = planar_yuv                       ? planar_yuv_view(arguments)
                      : arguments.color == Color::gray ? gray_view(arguments.planes[0])
                                                       : packed_view(arguments.planes[0], arguments.color);
    frame.pixels = pixels_of(frame.format);
    if (frame.format == RowFormat::yuv) {
        const int64_t apart = frame.plane[2] - frame.plane[1];
        const bool same_rows = frame.row_stride[1] == frame.row_stride[2];
        if (same_rows && apart > 0 && apart <= 3) {
            frame.v_shift = static_cast<int>(8 * apart);
            frame.chroma_window = static_cast<int>(apart) + 1;
        }
    }
    const int64_t reach = std::max(std::abs(frame.pixel_stride), std::abs(frame.chroma_stride));
    if (reach > (int64_t{1} << 30) / frame.size.width) {
        throw ValueError(message("image: got a pixel stride of ", reach, " bytes, expected at most ",
                                 (int64_t{1} << 30) / frame.size.width));
    }
    return frame;
}

math::YuvCoefficients yuv_coefficients(const PreprocessArguments& arguments) {
    return arguments.matrix == YuvMatrix::bt601
               ? math::YuvCoefficients::make(0.299, 0.114, arguments.limited_range)
               : math::YuvCoefficients::make(0.2126, 0.0722, arguments.limited_range);
}

void check_normalization(const float (&mean)[3], const float (&stddev)[3]) {
    for (int c = 0; c < 3; ++c) {
        if (!std::isfinite(mean[c])) {
            throw ValueError(message("mean: got ", mean[c], ", expected finite numbers"));
        }
        if (!std::isfinite(stddev[c]) || !std::isfinite(1.0f / stddev[c])) {
            throw ValueError(message("std: got ", stddev[c], ", expected finite numbers other than 0"));
        }
    }
}

}  // namespace fai::ops
