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

MaskView masks_arg(const py::handle& bits, const py::handle& offsets, const py::handle& boxes,
                   const PySize& size) {
    const auto starts = vector_arg<int64_t>(offsets, "offsets", "int64 (N,)");
    const py::array edges = contiguous<int32_t>(boxes, "boxes", 2, "int32 (N, 4)");
    if (edges.shape(1) != 4) {
        throw ValueError(message("boxes: got shape ", shape_text(edges), ", expected int32 (N, 4)"));
    }
    static_assert(sizeof(Box) == 4 * sizeof(int32_t));
    std::vector<Box> copied(static_cast<size_t>(edges.shape(0)));
    if (!copied.empty()) std::memcpy(copied.data(), edges.data(), copied.size() * sizeof(Box));
    return MaskView(vector_arg<uint64_t>(bits, "bits", "uint64 (words,)"), {starts.begin(), starts.end()},
                    std::move(copied), size_arg("size", size.first, size.second));
}

int threads_arg(int num_threads) {
    if (num_threads < 0)
        throw ValueError(message("num_threads: got ", num_threads, ", expected 0 (all) or more"));
    return num_threads;
}

template <class T, class Element = T>
py::array_t<Element> own(std::vector<T> values, std::vector<py::ssize_t> shape) {
    auto owner = std::make_unique<std::vector<T>>(std::move(values));
    const auto* data = reinterpret_cast<const Element*>(owner->data());
    py::capsule capsule(owner.get(), [](void* vector) { delete static_cast<std::vector<T>*>(vector); });
    owner.release();
    return py::array_t<Element>(std::move(shape), data, capsule);
}

py::tuple to_python(PackedMasks masks) {
    const auto words = static_cast<py::ssize_t>(masks.bits.size());
    const auto count = static_cast<py::ssize_t>(masks.boxes.size());
    return py::make_tuple(own(std::move(masks.bits), {words}), own(std::move(masks.offsets), {count}),
                          own<Box, int32_t>(std::move(masks.boxes), {count, 4}));
}

// Zeroed pages of the system cost nothing until they are touched, and most of a stack's never are.
py::array zeros(const std::vector<py::ssize_t>& shape) {
    size_t bytes = 1;
    for (const py::ssize_t side : shape) bytes *= static_cast<size_t>(side);
    void* data = std::calloc(std::max<size_t>(bytes, 1), 1);
    if (!data) throw std::bad_alloc();
    const py::capsule owner(data, [](void* p) { std::free(p); });
    return py::array(py::dtype::of<bool>(), shape, data, owner);
}

void check(const py::handle& bits, const py::handle& offsets, const py::handle& boxes, const PySize& size) {
    const MaskView masks = masks_arg(bits, offsets, boxes, size);
    without_gil([&] { masks.check_form(); });
}

py::array decode(const py::handle& bits, const py::handle& offsets, const py::handle& boxes,
                 const PySize& size, const std::optional<py::object>& out, int num_threads) {
    const MaskView masks = masks_arg(bits, offsets, boxes, size);
    const int threads = threads_arg(num_threads);
    const py::tuple shape = py::make_tuple(masks.count(), size.first, size.second);
    py::array stack;
    if (out) {
        stack = contiguous<bool>(*out, "out", 3, "bool (N, H, W)");
        if (!py::tuple(stack.attr("shape")).equal(shape)) {
            throw ValueError(
                message("out: got shape ", shape_text(stack), ", expected ", std::string(py::str(shape))));
        }
        if (!stack.writeable()) throw ValueError("out: got a read-only array, expected a writable one");
    } else {
        stack = zeros({masks.count(), masks.size().height, masks.size().width});
    }
    auto* data = static_cast<uint8_t*>(stack.mutable_data());
    without_gil([&] { ops::masks_decode(masks, data, !out, threads); });
    return stack;
}

py::list crops(const py::handle& bits, const py::handle& offsets, const py::handle& boxes,
               const PySize& size) {
    const MaskView masks = masks_arg(bits, offsets, boxes, size);
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

py::array area(const py::handle& bits, const py::handle& offsets, const py::handle& boxes,
               const PySize& size) {
    const MaskView masks = masks_arg(bits, offsets, boxes, size);
    std::vector<int64_t> pixels;
    without_gil([&] { pixels = ops::masks_area(masks); });
    return own(std::move(pixels), {masks.count()});
}

py::tuple compact(const py::handle& bits, const py::handle& offsets, const py::handle& boxes,
                  const PySize& size) {
    const MaskView masks = masks_arg(bits, offsets, boxes, size);
    PackedMasks dense;
    without_gil([&] { dense = ops::masks_compact(masks); });
    return to_python(std::move(dense));
}

py::list rle(const py::handle& bits, const py::handle& offsets, const py::handle& boxes, const PySize& size,
             int num_threads) {
    const MaskView masks = masks_arg(bits, offsets, boxes, size);
    const int threads = threads_arg(num_threads);
    std::vector<std::string> texts;
    without_gil([&] { texts = ops::masks_rle(masks, threads); });
    py::list counts;
    for (const std::string& text : texts) counts.append(py::bytes(text));
    return counts;
}

py::tuple encode(const py::handle& mask, int num_threads) {
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
    return to_python(std::move(masks));
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

py::tuple from_segments(const py::handle& segments, const py::handle& queries, int num_threads) {
    const auto rows = copy_of(vector_arg<int64_t>(queries, "queries", "int64 (N,)"));
    const int threads = threads_arg(num_threads);
    return to_python(with_segments(segments, [&](const auto* map, Size size) {
        PackedMasks masks;
        without_gil([&] { masks = ops::masks_from_segments(map, size, rows, threads); });
        return masks;
    }));
}

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
    m.def("masks_check", &check, arg("bits"), arg("offsets"), arg("boxes"), arg("size"));
    m.def("masks_decode", &decode, arg("bits"), arg("offsets"), arg("boxes"), arg("size"), kw,
          arg("out") = py::none(), arg("num_threads") = 0);
    m.def("masks_crops", &crops, arg("bits"), arg("offsets"), arg("boxes"), arg("size"));
    m.def("masks_area", &area, arg("bits"), arg("offsets"), arg("boxes"), arg("size"));
    m.def("masks_compact", &compact, arg("bits"), arg("offsets"), arg("boxes"), arg("size"));
    m.def("masks_rle", &rle, arg("bits"), arg("offsets"), arg("boxes"), arg("size"), kw,
          arg("num_threads") = 0);
    m.def("masks_encode", &encode, arg("mask"), kw, arg("num_threads") = 0);
    m.def("masks_from_segments", &from_segments, arg("segments"), arg("queries"), kw, arg("num_threads") = 0);
    m.def("label_map", &labels, arg("segments"), arg("queries"), arg("class_ids"), kw,
          arg("num_threads") = 0);
}

}  // namespace fai
