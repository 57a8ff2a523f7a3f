#include "csrc/ops/preprocess.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "csrc/core/error.h"
#include "csrc/core/scratch.h"
#include "csrc/cpu/kernels.h"
#include "csrc/math/sampling.h"
#include "csrc/ops/checks.h"

namespace fai::ops {
namespace {

using cpu::RowFormat;
using cpu::RowPlan;

// A frame as the kernels see it: up to three planes that share a row's pixel stride, chroma at half size.
struct Source {
    RowFormat format;
    Size size;
    const uint8_t* plane[3] = {nullptr, nullptr, nullptr};
    int64_t row_stride[3] = {0, 0, 0};
    int64_t pixel_stride = 0;   // bytes from a pixel to the next, in luma
    int64_t chroma_stride = 0;  // and from a chroma sample to the next
    int chroma_row_shift = 0;   // 1 where two rows share a chroma row
    // An i420 array holds two rows of U, then of V, in each of its rows: chroma row r of plane c is the half
    // (first_row[c] + r) % 2 of row (first_row[c] + r) / 2.
    bool folded = false;
    int32_t first_row[3] = {0, 0, 0};
    int64_t half_row = 0;
    int window = 1;  // bytes that a packed pixel, a luma or a chroma sample takes
    int chroma_window = 1;
    int shift[3] = {0, 0, 0};
    int v_shift = 0;
};

int channels_of(Colour colour) {
    switch (colour) {
        case Colour::rgb:
        case Colour::bgr:
            return 3;
        case Colour::rgba:
        case Colour::bgra:
            return 4;
        case Colour::yuyv:
        case Colour::uyvy:
            return 2;
        default:
            return 1;
    }
}

[[noreturn]] void wrong_shape(const View& view, const char* expected) {
    throw ValueError(message("image: got shape ", shape_of(view), ", expected ", expected));
}

const uint8_t* bytes(const View& view) { return static_cast<const uint8_t*>(view.data); }

Source packed_source(const View& view, Colour colour) {
    const int channels = channels_of(colour);
    if (view.ndim != 3 || view.shape[2] != channels) {
        wrong_shape(view, channels == 3   ? "(H, W, 3) for color 'rgb' or 'bgr'"
                          : channels == 4 ? "(H, W, 4) for color 'rgba' or 'bgra'"
                                          : "(H, W, 2) for color 'yuyv' or 'uyvy'");
    }
    Source source;
    check_sides("image", view.shape[0], view.shape[1]);
    source.size = {static_cast<int32_t>(view.shape[0]), static_cast<int32_t>(view.shape[1])};
    const int64_t pixel = view.strides[1], channel = view.strides[2];

    if (colour == Colour::yuyv || colour == Colour::uyvy) {
        if (source.size.width % 2) wrong_shape(view, "an even width for color 'yuyv' or 'uyvy'");
        const int luma = colour == Colour::yuyv ? 0 : 1;
        source.format = RowFormat::yuv;
        source.plane[0] = bytes(view) + luma * channel;
        source.plane[1] = bytes(view) + (1 - luma) * channel;
        source.plane[2] = source.plane[1] + pixel;
        source.pixel_stride = pixel;
        source.chroma_stride = 2 * pixel;
        for (int64_t& stride : source.row_stride) stride = view.strides[0];
    } else {
        const bool reversed = colour == Colour::bgr || colour == Colour::bgra;
        source.pixel_stride = pixel;
        for (int c = 0; c < 3; ++c) {
            source.plane[c] = bytes(view) + (reversed ? 2 - c : c) * channel;
            source.row_stride[c] = view.strides[0];
        }
        if (channel == 1 || channel == -1) {
            // The lowest byte of a pixel, from which every channel is a shift.
            const uint8_t* lowest = bytes(view) + (channel < 0 ? -(channels - 1) : 0);
            source.format = RowFormat::packed;
            source.window = channels;
            for (int c = 0; c < 3; ++c) source.shift[c] = 8 * static_cast<int>(source.plane[c] - lowest);
            source.plane[0] = lowest;
        } else {
            source.format = RowFormat::planar;
        }
    }
    return source;
}

Source grey_source(const View& view) {
    if (view.ndim != 2 && !(view.ndim == 3 && view.shape[2] == 1)) {
        wrong_shape(view, "(H, W) or (H, W, 1) for color 'gray'");
    }
    check_sides("image", view.shape[0], view.shape[1]);
    Source source;
    source.format = RowFormat::grey;
    source.size = {static_cast<int32_t>(view.shape[0]), static_cast<int32_t>(view.shape[1])};
    source.plane[0] = bytes(view);
    source.row_stride[0] = view.strides[0];
    source.pixel_stride = view.strides[1];
    return source;
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
Source planar_yuv_source(const PreprocessArguments& arguments) {
    const bool interleaved = arguments.colour == Colour::nv12;
    const View& luma = arguments.planes[0];
    Source source;
    source.format = RowFormat::yuv;
    source.chroma_row_shift = 1;
    source.plane[0] = bytes(luma);
    source.row_stride[0] = luma.strides[0];
    source.pixel_stride = luma.strides[1];
    if (arguments.plane_count == 1) {
        if (luma.ndim != 2 || luma.shape[0] % 3 || luma.shape[1] % 2 || luma.shape[0] < 3) {
            wrong_shape(luma,
                        "(H * 3 / 2, W) with even H and W for color 'nv12' or 'i420', or a tuple of planes");
        }
        const int64_t height = luma.shape[0] / 3 * 2, width = luma.shape[1];
        check_sides("image", height, width);
        source.size = {static_cast<int32_t>(height), static_cast<int32_t>(width)};
        const int64_t row = luma.strides[0], pixel = luma.strides[1];
        const uint8_t* chroma = bytes(luma) + height * row;
        if (interleaved) {
            source.plane[1] = chroma;
            source.plane[2] = chroma + pixel;
            source.chroma_stride = 2 * pixel;
            source.row_stride[1] = source.row_stride[2] = row;
        } else {
            source.plane[1] = source.plane[2] = chroma;
            source.row_stride[1] = source.row_stride[2] = row;
            source.chroma_stride = pixel;
            source.folded = true;
            source.first_row[2] = source.size.height / 2;
            source.half_row = width / 2 * pixel;
        }
        return source;
    }
    const int planes = interleaved ? 2 : 3;
    if (arguments.plane_count != planes) {
        throw ValueError(
            message("image: got ", arguments.plane_count, " planes, expected ",
                    interleaved ? "2 (Y, UV) for color 'nv12'" : "3 (Y, U, V) for color 'i420'"));
    }
    if (luma.ndim != 2 && !(luma.ndim == 3 && luma.shape[2] == 1)) wrong_shape(luma, "(H, W) for plane Y");
    check_sides("image", luma.shape[0], luma.shape[1]);
    source.size = {static_cast<int32_t>(luma.shape[0]), static_cast<int32_t>(luma.shape[1])};
    const int64_t rows = (luma.shape[0] + 1) / 2, columns = (luma.shape[1] + 1) / 2;
    if (interleaved) {
        const View& chroma = arguments.planes[1];
        check_plane(chroma, "UV", rows, columns, 2);
        source.plane[1] = bytes(chroma);
        source.plane[2] = bytes(chroma) + chroma.strides[2];
        source.chroma_stride = chroma.strides[1];
        source.row_stride[1] = source.row_stride[2] = chroma.strides[0];
    } else {
        check_plane(arguments.planes[1], "U", rows, columns, 1);
        check_plane(arguments.planes[2], "V", rows, columns, 1);
        for (int c = 1; c < 3; ++c) {
            source.plane[c] = bytes(arguments.planes[c]);
            source.row_stride[c] = arguments.planes[c].strides[0];
        }
        source.chroma_stride = arguments.planes[1].strides[1];
        if (arguments.planes[2].strides[1] != source.chroma_stride) {
            throw ValueError(message("image: got planes U and V with pixel strides of ", source.chroma_stride,
                                     " and ", arguments.planes[2].strides[1], " bytes, expected equal ones"));
        }
    }
    return source;
}

Source source_of(const PreprocessArguments& arguments) {
    for (int i = 0; i < arguments.plane_count; ++i) {
        if (arguments.planes[i].dtype != DType::u8) {
            throw TypeError(
                message("image: got dtype ", name_of(arguments.planes[i].dtype), ", expected uint8"));
        }
    }
    const bool planar_yuv = arguments.colour == Colour::nv12 || arguments.colour == Colour::i420;
    if (arguments.plane_count != 1 && !planar_yuv) {
        throw ValueError(message("image: got a tuple of ", arguments.plane_count,
                                 " planes, expected one array (planes are for color 'nv12' and 'i420')"));
    }
    Source source = planar_yuv                         ? planar_yuv_source(arguments)
                    : arguments.colour == Colour::gray ? grey_source(arguments.planes[0])
                                                       : packed_source(arguments.planes[0], arguments.colour);
    if (source.format == RowFormat::yuv) {
        const int64_t apart = source.plane[2] - source.plane[1];
        const bool same_rows = source.row_stride[1] == source.row_stride[2];
        if (same_rows && apart > 0 && apart <= 3) {
            source.v_shift = static_cast<int>(8 * apart);
            source.chroma_window = static_cast<int>(apart) + 1;
        }
    }
    const int64_t reach = std::max(std::abs(source.pixel_stride), std::abs(source.chroma_stride));
    if (reach > (int64_t{1} << 30) / source.size.width) {
        throw ValueError(message("image: got a pixel stride of ", reach, " bytes, expected at most ",
                                 (int64_t{1} << 30) / source.size.width));
    }
    return source;
}

cpu::SourceRow row_at(const Source& source, int32_t row) {
    cpu::SourceRow at;
    for (int c = 0; c < 3; ++c) {
        const int32_t y = c > 0 && source.format == RowFormat::yuv ? row >> source.chroma_row_shift : row;
        if (c > 0 && source.folded) {
            const int32_t half = source.first_row[c] + y;
            at.plane[c] = source.plane[c] + (half >> 1) * source.row_stride[c] + (half & 1) * source.half_row;
        } else {
            at.plane[c] = source.plane[c] + y * source.row_stride[c];
        }
    }
    return at;
}

struct PreprocessScratch {
    Scratch<int32_t> offsets;
    Scratch<float> floats;
};

// Byte offsets of the taps along a row, and the columns that may load four bytes there.
class ColumnTable {
  public:
    ColumnTable(const Source& source, int32_t columns, PreprocessScratch& scratch) {
        int32_t* left = scratch.offsets.get(4 * static_cast<size_t>(columns));
        int32_t* right = left + columns;
        int32_t* chroma_left = right + columns;
        int32_t* chroma_right = chroma_left + columns;
        const math::Axis axis = math::Axis::stretch(source.size.width, columns);
        const int32_t last = source.size.width - 1;
        const size_t row_values = static_cast<size_t>(3 * columns);
        float* fraction = scratch.floats.get(static_cast<size_t>(columns) + 2 * row_values);
        row_planes[0] = fraction + columns;
        row_planes[1] = row_planes[0] + row_values;
        bool two_taps = false;
        for (int32_t x = 0; x < columns; ++x) {
            const math::Tap tap = math::tap_as_torch(axis, x);
            const int32_t next = std::min(tap.index + 1, last);
            fraction[x] = tap.fraction;
            two_taps |= tap.fraction != 0.0f;
            left[x] = static_cast<int32_t>(tap.index * source.pixel_stride);
            right[x] = static_cast<int32_t>(next * source.pixel_stride);
            chroma_left[x] = static_cast<int32_t>((tap.index >> 1) * source.chroma_stride);
            chroma_right[x] = static_cast<int32_t>((next >> 1) * source.chroma_stride);
        }
        plan.format = source.format;
        plan.columns = columns;
        plan.two_taps = two_taps;
        plan.fraction = fraction;
        plan.left = left;
        plan.right = right;
        plan.chroma_left = chroma_left;
        plan.chroma_right = chroma_right;
        std::copy(std::begin(source.shift), std::end(source.shift), plan.shift);
        plan.v_shift = source.v_shift;
        if (source.format == RowFormat::packed && two_taps &&
            (source.pixel_stride == 3 || source.pixel_stride == 4)) {
            plan.pair_shift = static_cast<int32_t>(8 * source.pixel_stride);
        }
        const int32_t reach = plan.pair_shift ? 8 : 4;

        // The last readable byte of a row, and of a chroma row, seen from its first pixel.
        const int64_t end = std::max<int64_t>(0, last * source.pixel_stride) + source.window;
        const int64_t chroma_end =
            std::max<int64_t>(0, (last >> 1) * source.chroma_stride) + source.chroma_window;
        const bool chroma = source.format == RowFormat::yuv;
        const auto safe = [&](int32_t x) {
            return (plan.pair_shift ? left[x] : std::max(left[x], right[x])) + reach <= end &&
                   (!chroma || std::max(chroma_left[x], chroma_right[x]) + 4 <= chroma_end);
        };
        // Offsets rise or fall along the row, so the unsafe columns are at one end of it.
        plan.safe_begin = 0;
        plan.safe_end = columns;
        while (plan.safe_begin < columns && !safe(plan.safe_begin)) ++plan.safe_begin;
        while (plan.safe_end > plan.safe_begin && !safe(plan.safe_end - 1)) --plan.safe_end;
    }

    RowPlan plan{};
    float* row_planes[2];  // room for two resampled source rows
};

void fill_padding(const Placement& placement, Size size, size_t item, uint8_t* out) {
    const int64_t row = static_cast<int64_t>(size.width) * item;
    const int64_t left = placement.left * static_cast<int64_t>(item);
    const int64_t content = placement.content.width * static_cast<int64_t>(item);
    const int64_t right = row - left - content;
    for (int c = 0; c < 3; ++c, out += row * size.height) {
        std::memset(out, 0, static_cast<size_t>(row * placement.top));
        const int32_t bottom = placement.top + placement.content.height;
        std::memset(out + row * bottom, 0, static_cast<size_t>(row * (size.height - bottom)));
        if (left == 0 && right == 0) continue;
        for (int32_t y = placement.top; y < bottom; ++y) {
            std::memset(out + row * y, 0, static_cast<size_t>(left));
            std::memset(out + row * y + left + content, 0, static_cast<size_t>(right));
        }
    }
}

}  // namespace

Size frame_size(const PreprocessArguments& arguments) { return source_of(arguments).size; }

Placement place(Size frame, Size tensor, bool letterbox) {
    if (!letterbox) return {0, 0, tensor};
    const double ratio = std::min(static_cast<double>(tensor.height) / frame.height,
                                  static_cast<double>(tensor.width) / frame.width);
    const auto fit = [ratio](int32_t side, int32_t limit) {
        return std::clamp(static_cast<int32_t>(std::nearbyint(side * ratio)), 1, limit);
    };
    const Size content{fit(frame.height, tensor.height), fit(frame.width, tensor.width)};
    return {(tensor.height - content.height) / 2, (tensor.width - content.width) / 2, content};
}

Placement preprocess(const PreprocessArguments& arguments, DType out_dtype, void* out) {
    check_sides("size", arguments.size.height, arguments.size.width);
    const Source source = source_of(arguments);
    for (int c = 0; c < 3; ++c) {
        if (!std::isfinite(arguments.mean[c])) {
            throw ValueError(message("mean: got ", arguments.mean[c], ", expected finite numbers"));
        }
        if (!std::isfinite(arguments.std[c]) || !std::isfinite(1.0f / arguments.std[c])) {
            throw ValueError(
                message("std: got ", arguments.std[c], ", expected finite numbers other than 0"));
        }
    }
    const cpu::Kernels& kernels = cpu::kernels();
    const Placement placement = place(source.size, arguments.size, arguments.letterbox);
    const Size content = placement.content;
    const size_t item = item_size(out_dtype);
    uint8_t* const out_bytes = static_cast<uint8_t*>(out);
    if (content != arguments.size) fill_padding(placement, arguments.size, item, out_bytes);

    thread_local PreprocessScratch scratch;
    ColumnTable table(source, content.width, scratch);
    table.plan.yuv = arguments.matrix == YuvMatrix::bt601
                         ? math::YuvCoefficients::make(0.299, 0.114, arguments.limited_range)
                         : math::YuvCoefficients::make(0.2126, 0.0722, arguments.limited_range);
    int32_t held[2] = {-1, -1};
    // Loads a source row into the slot that `other` does not occupy, unless one has it already.
    const auto row_of = [&](int32_t row, int32_t other) -> const float* {
        const int have = held[0] == row ? 0 : held[1] == row ? 1 : -1;
        if (have >= 0) return table.row_planes[have];
        const int slot = held[0] == other ? 1 : 0;
        const cpu::SourceRow at = row_at(source, row);
        kernels.load_row(table.plan, at, table.row_planes[slot]);
        held[slot] = row;
        return table.row_planes[slot];
    };

    const math::Axis axis = math::Axis::stretch(source.size.height, content.height);
    const bool grey = source.format == RowFormat::grey;
    const int64_t plane_values = static_cast<int64_t>(arguments.size.height) * arguments.size.width;
    for (int32_t y = 0; y < content.height; ++y) {
        const math::Tap tap = math::tap_as_torch(axis, y);
        const int32_t next = std::min(tap.index + 1, source.size.height - 1);
        const bool one_row = tap.fraction == 0.0f || next == tap.index;
        const float* top = row_of(tap.index, next);
        const float* bottom = one_row ? top : row_of(next, tap.index);
        const int64_t at = static_cast<int64_t>(y + placement.top) * arguments.size.width + placement.left;
        for (int c = 0; c < 3; ++c) {
            const int64_t plane = grey ? 0 : static_cast<int64_t>(c) * content.width;
            const float scale = 1.0f / arguments.std[c];
            kernels.blend_rows({top + plane, bottom + plane, one_row ? scale : (1.0f - tap.fraction) * scale,
                                tap.fraction * scale, -arguments.mean[c] * scale, content.width,
                                out_bytes + (c * plane_values + at) * static_cast<int64_t>(item),
                                out_dtype == DType::f16});
        }
    }
    return placement;
}

}  // namespace fai::ops
