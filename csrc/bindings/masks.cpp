// Packed masks: the arguments of csrc/ops/masks.h as NumPy arrays.
#include "csrc/ops/masks.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <utility>

#include "csrc/bindings/arrays.h"
#include "csrc/bindings/bindings.h"
#include "csrc/bindings/gil.h"
#include "csrc/core/error.h"
#include "csrc/ops/checks.h"
#include "csrc/ops/drawing.h"
#include "csrc/ops/mask_regions.h"

namespace py = pybind11;

namespace fai {
namespace {

using ops::Box;
using ops::MaskView;
using ops::PackedMasks;
using PySize = std::pair<int64_t, int64_t>;

std::string shape_text(const py::array& array) { return py::str(array.attr("shape")); }

template <class T>
py::array any_strides(const py::handle& object, const char* name, const char* expected) {
    if (!py::isinstance<py::array>(object)) {
        throw TypeError(message(name, ": got ", type_name(object), ", expected a NumPy array, ", expected));
    }
    auto array = py::reinterpret_borrow<py::array>(object);
    if (!py::isinstance<py::array_t<T>>(array)) {
        throw TypeError(
            message(name, ": got dtype ", std::string(py::str(array.dtype())), ", expected ", expected));
    }
    return array;
}

// The array itself, never a converted copy: C-contiguous, aligned, of dtype T and ndim dimensions.
template <class T>
py::array contiguous(const py::handle& object, const char* name, int ndim, const char* expected) {
    py::array array = any_strides<T>(object, name, expected);
    if (array.ndim() != ndim) {
        throw ValueError(message(name, ": got shape ", shape_text(array), ", expected ", expected));
    }
    constexpr int needed = int{py::array::c_style} | int{py::detail::npy_api::NPY_ARRAY_ALIGNED_};
    if ((array.flags() & needed) != needed) {
        throw ValueError(message(name, ": got strides that are not C-contiguous or not aligned, expected ",
                                 expected, ", C-contiguous"));
    }
    return array;
}

template <class T>
std::span<const T> span_of(const py::array& array) {
    return {static_cast<const T*>(array.data()), static_cast<size_t>(array.size())};
}

template <class T>
std::span<const T> vector_arg(const py::handle& object, const char* name, const char* expected) {
    return span_of<T>(contiguous<T>(object, name, 1, expected));
}

Size size_arg(const char* name, int64_t height, int64_t width) {
    ops::check_sides(name, height, width);
    return {static_cast<int32_t>(height), static_cast<int32_t>(width)};
}

int threads_arg(int num_threads) {
    if (num_threads < 0)
        throw ValueError(message("num_threads: got ", num_threads, ", expected 0 (all) or more"));
    return num_threads;
}

template <class T>
py::array flat(std::vector<T> values) {
    const auto count = static_cast<py::ssize_t>(values.size());
    return to_array<T>(std::move(values), {count});
}

py::array edges(std::vector<Box> boxes) {
    const auto count = static_cast<py::ssize_t>(boxes.size());
    return to_array<int32_t>(std::move(boxes), {count, 4});
}

// Zeroed pages of the system cost nothing until they are touched, and most of a stack's never are.
py::array zeros(const std::vector<py::ssize_t>& shape) {
    size_t bytes = 1;
    for (const py::ssize_t side : shape) bytes *= static_cast<size_t>(side);
    void* data = std::calloc(std::max<size_t>(bytes, 1), 1);
    if (!data) throw std::bad_alloc();
    return array_over(py::dtype::of<bool>(), shape, data,
                      std::unique_ptr<void, void (*)(void*)>(data, std::free));
}

// Calls body(pointer to uint8_t or uint16_t, size, the array) for a segment map.
template <class Body>
auto with_segments(const py::handle& object, Body body) {
    constexpr const char* expected = "uint8 or uint16 (H, W)";
    const auto call = [&]<class T>(T) {
        const py::array array = contiguous<T>(object, "segments", 2, expected);
        return body(static_cast<const T*>(array.data()),
                    size_arg("segments", array.shape(0), array.shape(1)));
    };
    return py::isinstance<py::array_t<uint16_t>>(object) ? call(uint16_t{}) : call(uint8_t{});
}

std::vector<int64_t> copy_of(std::span<const int64_t> values) { return {values.begin(), values.end()}; }

// fai_fast._core.Masks: packed masks that were found to lie in their frame and in their bits, once. It keeps
// the caller's arrays; the view has its own copies of offsets and boxes.
class BoundMasks {
  public:
    BoundMasks(const py::handle& bits, const py::handle& offsets, const py::handle& boxes, const PySize& size)
        : bits_(contiguous<uint64_t>(bits, "bits", 1, "uint64 (words,)")),
          offsets_(contiguous<int64_t>(offsets, "offsets", 1, "int64 (N,)")),
          boxes_(contiguous<int32_t>(boxes, "boxes", 2, "int32 (N, 4)")),
          view_(view_of(size_arg("size", size.first, size.second))) {}

    BoundMasks(PackedMasks masks, Size size)
        : bits_(flat<uint64_t>(std::move(masks.bits))),
          offsets_(flat<int64_t>(std::move(masks.offsets))),
          boxes_(edges(std::move(masks.boxes))),
          view_(view_of(size)) {}

    py::array bits() const { return bits_; }
    py::array offsets() const { return offsets_; }
    py::array boxes() const { return boxes_; }
    py::tuple size() const { return py::make_tuple(view_.size().height, view_.size().width); }

    void check_form() const {
        const MaskView& masks = checked_view();
        without_gil([&] { masks.check_form(); });
    }

    py::array decode(const std::optional<py::object>& out, int num_threads) const {
        const MaskView& masks = checked_view();
        const int threads = threads_arg(num_threads);
        const int64_t height = masks.size().height, width = masks.size().width;
        py::array stack;
        if (out) {
            const py::tuple shape = py::make_tuple(masks.count(), height, width);
            stack = contiguous<bool>(*out, "out", 3, "bool (N, H, W)");
            if (!py::tuple(stack.attr("shape")).equal(shape)) {
                throw ValueError(message("out: got shape ", shape_text(stack), ", expected ",
                                         std::string(py::str(shape))));
            }
            if (!stack.writeable()) throw ValueError("out: got a read-only array, expected a writable one");
        } else {
            stack = zeros({masks.count(), height, width});
        }
        auto* data = static_cast<uint8_t*>(stack.mutable_data());
        without_gil([&] { ops::masks_decode(masks, data, !out, threads); });
        return stack;
    }

    py::list crops() const {
        const MaskView& masks = checked_view();
        py::list arrays;
        std::vector<uint8_t*> data;
        for (int64_t i = 0; i < masks.count(); ++i) {
            const Box& box = masks.box(i);
            py::array_t<bool> array({box.y2 - box.y1, box.x2 - box.x1});
            data.push_back(reinterpret_cast<uint8_t*>(array.mutable_data()));
            arrays.append(std::move(array));
        }
        without_gil([&] {
            for (int64_t i = 0; i < masks.count(); ++i) ops::mask_crop(masks, i, data[i]);
        });
        return arrays;
    }

    py::array area() const {
        const MaskView& masks = checked_view();
        std::vector<int64_t> pixels;
        without_gil([&] { pixels = ops::masks_area(masks); });
        return flat<int64_t>(std::move(pixels));
    }

    BoundMasks compact() const {
        const MaskView& masks = checked_view();
        PackedMasks dense;
        without_gil([&] { dense = ops::masks_compact(masks); });
        return BoundMasks(std::move(dense), masks.size());
    }

    py::list rle(int num_threads) const {
        const MaskView& masks = checked_view();
        const int threads = threads_arg(num_threads);
        std::vector<std::string> texts;
        without_gil([&] { texts = ops::masks_rle(masks, threads); });
        py::list counts;
        for (const std::string& text : texts) counts.append(py::bytes(text));
        return counts;
    }

    // The rows that non-maximum suppression keeps, bool (N,).
    py::array nms(const py::handle& order, const py::handle& groups, double iou) const {
        const MaskView& masks = checked_view();
        const auto ranks = copy_of(vector_arg<int64_t>(order, "order", "int64 (N,)"));
        const auto of = copy_of(vector_arg<int64_t>(groups, "groups", "int64 (N,)"));
        std::vector<uint8_t> kept;
        without_gil([&] { kept = ops::masks_nms(masks, ranks, of, iou); });
        const auto count = static_cast<py::ssize_t>(kept.size());
        return to_array<bool>(std::move(kept), {count});
    }

    BoundMasks clean(int64_t min_area, bool largest, int num_threads) const {
        const MaskView& masks = checked_view();
        const int threads = threads_arg(num_threads);
        PackedMasks cleaned;
        without_gil([&] { cleaned = ops::masks_clean(masks, min_area, largest, threads); });
        return BoundMasks(std::move(cleaned), masks.size());
    }

    // Of each mask, cropped to its box, the bytes that a PNG compresses.
    py::list scanlines() const {
        const MaskView& masks = checked_view();
        std::vector<std::vector<uint8_t>> lines(static_cast<size_t>(masks.count()));
        without_gil([&] {
            for (int64_t i = 0; i < masks.count(); ++i) lines[i] = ops::mask_scanlines(masks, i);
        });
        py::list texts;
        for (const auto& line : lines) {
            texts.append(py::bytes(reinterpret_cast<const char*>(line.data()), line.size()));
        }
        return texts;
    }

    void paint(const py::handle& image, const py::handle& colors, const py::handle& rows, int alpha, int line,
               int num_threads) const {
        const MaskView& masks = checked_view();
        const int threads = threads_arg(num_threads);
        const int64_t height = masks.size().height, width = masks.size().width;
        py::array frame = contiguous<uint8_t>(image, "image", 3, "uint8 (H, W, 3)");
        if (frame.shape(0) != height || frame.shape(1) != width || frame.shape(2) != 3) {
            throw ValueError(message("image: got shape ", shape_text(frame), ", expected (", height, ", ",
                                     width, ", 3) as the masks"));
        }
        if (!frame.writeable()) throw ValueError("image: got a read-only array, expected a writable one");
        const py::array palette = contiguous<uint8_t>(colors, "colors", 2, "uint8 (N, 3)");
        if (palette.shape(1) != 3) {
            throw ValueError(message("colors: got shape ", shape_text(palette), ", expected uint8 (N, 3)"));
        }
        const auto bytes = span_of<uint8_t>(palette);
        const std::vector<uint8_t> copied(bytes.begin(), bytes.end());
        const auto order = copy_of(vector_arg<int64_t>(rows, "rows", "int64 (N,)"));
        auto* data = static_cast<uint8_t*>(frame.mutable_data());
        without_gil([&] { ops::paint_masks(masks, order, copied, {alpha, line}, data, threads); });
    }

    static BoundMasks encode(const py::handle& mask, int num_threads) {
        const py::array array = any_strides<bool>(mask, "mask", "bool (N, H, W)");
        if (array.ndim() != 3) {
            throw ValueError(message("mask: got shape ", shape_text(array), ", expected bool (N, H, W)"));
        }
        const Size size = size_arg("mask", array.shape(1), array.shape(2));
        const int64_t strides[3] = {array.strides(0), array.strides(1), array.strides(2)};
        const int threads = threads_arg(num_threads);
        PackedMasks masks;
        const auto* data = static_cast<const uint8_t*>(array.data());
        const int64_t count = array.shape(0);
        without_gil([&] { masks = ops::masks_encode(data, count, size, strides, threads); });
        return BoundMasks(std::move(masks), size);
    }

    static BoundMasks from_segments(const py::handle& segments, const py::handle& queries, int num_threads) {
        const auto rows = copy_of(vector_arg<int64_t>(queries, "queries", "int64 (N,)"));
        const int threads = threads_arg(num_threads);
        return with_segments(segments, [&](const auto* map, Size size) {
            PackedMasks masks;
            without_gil([&] { masks = ops::masks_from_segments(map, size, rows, threads); });
            return BoundMasks(std::move(masks), size);
        });
    }

  private:
    MaskView view_of(Size size) const {
        const auto starts = span_of<int64_t>(offsets_);
        if (boxes_.shape(1) != 4) {
            throw ValueError(message("boxes: got shape ", shape_text(boxes_), ", expected int32 (N, 4)"));
        }
        static_assert(sizeof(Box) == 4 * sizeof(int32_t));
        std::vector<Box> copied(static_cast<size_t>(boxes_.shape(0)));
        if (!copied.empty()) std::memcpy(copied.data(), boxes_.data(), copied.size() * sizeof(Box));
        return MaskView(span_of<uint64_t>(bits_), {starts.begin(), starts.end()}, std::move(copied), size);
    }

    // ndarray.resize(refcheck=False) moves an array's memory under those who hold it.
    const MaskView& checked_view() const {
        const auto now = span_of<uint64_t>(bits_), then = view_.bits();
        if (now.data() != then.data() || now.size() != then.size()) {
            throw ValueError(message("bits: got an array that was resized, from ", then.size(), " to ",
                                     now.size(), " words, expected one that stays as it was checked"));
        }
        return view_;
    }

    py::array bits_, offsets_, boxes_;
    MaskView view_;
};

py::array labels(const py::handle& segments, const py::handle& queries, const py::handle& class_ids,
                 int num_threads) {
    const auto rows = copy_of(vector_arg<int64_t>(queries, "queries", "int64 (N,)"));
    const auto ids = copy_of(vector_arg<int64_t>(class_ids, "class_ids", "int64 (N,)"));
    const int threads = threads_arg(num_threads);
    return with_segments(segments, [&](const auto* map, Size size) {
        py::array_t<int16_t> out({size.height, size.width});
        int16_t* data = out.mutable_data();
        without_gil([&] { ops::label_map(map, size, rows, ids, data, threads); });
        return out;
    });
}

}  // namespace

void register_masks(py::module_& m) {
    using py::arg;
    const py::kw_only kw;
    py::class_<BoundMasks>(m, "Masks")
        .def(py::init<const py::handle&, const py::handle&, const py::handle&, const PySize&>(), arg("bits"),
             arg("offsets"), arg("boxes"), arg("size"))
        .def_property_readonly("bits", &BoundMasks::bits)
        .def_property_readonly("offsets", &BoundMasks::offsets)
        .def_property_readonly("boxes", &BoundMasks::boxes)
        .def_property_readonly("size", &BoundMasks::size)
        .def("check_form", &BoundMasks::check_form)
        .def("decode", &BoundMasks::decode, kw, arg("out") = py::none(), arg("num_threads") = 0)
        .def("crops", &BoundMasks::crops)
        .def("area", &BoundMasks::area)
        .def("compact", &BoundMasks::compact)
        .def("rle", &BoundMasks::rle, kw, arg("num_threads") = 0)
        .def("nms", &BoundMasks::nms, kw, arg("order"), arg("groups"), arg("iou"))
        .def("clean", &BoundMasks::clean, kw, arg("min_area"), arg("largest"), arg("num_threads") = 0)
        .def("scanlines", &BoundMasks::scanlines)
        .def("paint", &BoundMasks::paint, arg("image"), arg("colors"), arg("rows"), kw, arg("alpha"),
             arg("line"), arg("num_threads") = 0)
        .def_static("encode", &BoundMasks::encode, arg("mask"), kw, arg("num_threads") = 0)
        .def_static("from_segments", &BoundMasks::from_segments, arg("segments"), arg("queries"), kw,
                    arg("num_threads") = 0);
    m.def("label_map", &labels, arg("segments"), arg("queries"), arg("class_ids"), kw,
          arg("num_threads") = 0);
}

}  // namespace fai
