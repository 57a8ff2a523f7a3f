// preprocess: frames in, tensors out.
#include "csrc/ops/preprocess.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "csrc/bindings/arrays.h"
#include "csrc/bindings/bindings.h"
#include "csrc/bindings/frames.h"
#include "csrc/bindings/gil.h"
#include "csrc/bindings/options.h"
#include "csrc/core/error.h"
#include "csrc/ops/checks.h"

namespace py = pybind11;

namespace fai {
namespace {

constexpr const char* kExpectedImage = "a uint8 array (H, W, C) in the CPU's memory";

// A caller's `out` where it can take the tensor as it is.
Borrowed borrow_out(py::handle out, DType dtype, Size size) {
    constexpr const char* kExpected = "a writable C-contiguous array (1, 3, h, w) of float32 or float16";
    Borrowed borrowed = borrow(out, "out", kExpected);
    const View& view = borrowed.view;
    if (view.dtype != dtype) {
        throw ValueError(
            message("out: got dtype ", ops::name_of(view.dtype), ", expected ", ops::name_of(dtype)));
    }
    const int at = view.ndim - 3;
    const bool fits = (at == 0 || (at == 1 && view.shape[0] == 1)) && view.shape[at] == 3 &&
                      view.shape[at + 1] == size.height && view.shape[at + 2] == size.width;
    if (!fits) {
        throw ValueError(message("out: got shape ", ops::shape_of(view), ", expected (1, 3, ", size.height,
                                 ", ", size.width, ")"));
    }
    if (!borrowed.writable) throw ValueError("out: got a read-only array, expected a writable one");
    if (!borrowed.contiguous()) {
        throw ValueError("out: got an array that is not C-contiguous and aligned, expected one that is");
    }
    return borrowed;
}

py::tuple preprocess(py::object image, std::array<int64_t, 2> size, std::array<float, 3> mean,
                     std::array<float, 3> stddev, const std::string& color, const std::string& resize,
                     const std::string& dtype, py::object out, const std::string& yuv_matrix,
                     const std::string& yuv_range,
                     const std::optional<std::array<std::array<int64_t, 2>, 2>>& part) {
    ops::PreprocessArguments arguments;
    set_options(arguments, color, resize, yuv_matrix, yuv_range);
    const DType out_dtype = choose("dtype", dtype, kDtypes);
    ops::check_sides("size", size[0], size[1]);
    arguments.size = {static_cast<int32_t>(size[0]), static_cast<int32_t>(size[1])};
    if (part) {
        const auto [whole, at] = *part;
        ops::check_sides("whole", whole[0], whole[1]);
        arguments.whole = {static_cast<int32_t>(whole[0]), static_cast<int32_t>(whole[1])};
        ops::check_offset("whole", at[0], at[1]);
        arguments.top = static_cast<int32_t>(at[0]);
        arguments.left = static_cast<int32_t>(at[1]);
    }
    std::copy(mean.begin(), mean.end(), arguments.mean);
    std::copy(stddev.begin(), stddev.end(), arguments.stddev);

    const std::vector<Borrowed> planes =
        set_planes(arguments, image, [](py::handle plane) { return borrow(plane, "image", kExpectedImage); });
    const Size frame = ops::frame_size(arguments);

    Borrowed target;
    void* data = nullptr;
    if (out.is_none()) {
        static constinit Recycler tensors;
        py::array fresh = recycled_array(tensors, py::dtype(dtype), {1, 3, size[0], size[1]});
        data = fresh.mutable_data();
        out = std::move(fresh);
    } else {
        target = borrow_out(out, out_dtype, arguments.size);
        data = const_cast<void*>(target.view.data);
        for (const Borrowed& plane : planes) {
            const auto a = plane.span(), b = target.span();
            if (a.begin < b.end && b.begin < a.end) {
                throw ValueError("out: got memory that overlaps image, expected memory of its own");
            }
        }
    }
    ops::Placement placement;
    without_gil([&] { placement = ops::preprocess(arguments, out_dtype, data); });
    return py::make_tuple(out, py::make_tuple(frame.height, frame.width),
                          py::make_tuple(placement.content.height, placement.content.width),
                          py::make_tuple(placement.top, placement.left));
}

py::tuple letterbox(std::array<int64_t, 2> frame, std::array<int64_t, 2> input, const std::string& resize) {
    ops::check_sides("frame", frame[0], frame[1]);
    ops::check_sides("input", input[0], input[1]);
    const auto size_of = [](const std::array<int64_t, 2>& sides) {
        return Size{static_cast<int32_t>(sides[0]), static_cast<int32_t>(sides[1])};
    };
    const ops::Placement at = ops::place(size_of(frame), size_of(input), choose("resize", resize, kResizes));
    return py::make_tuple(py::make_tuple(at.content.height, at.content.width),
                          py::make_tuple(at.top, at.left));
}

}  // namespace

void register_preprocess(py::module_& m) {
    m.def("preprocess", preprocess, py::arg("image"), py::arg("size"), py::arg("mean"), py::arg("std"),
          py::arg("color"), py::arg("resize"), py::arg("dtype"), py::arg("out"), py::arg("yuv_matrix"),
          py::arg("yuv_range"), py::arg("part") = py::none());
    m.def("letterbox", letterbox, py::arg("frame"), py::arg("input"), py::arg("resize") = "letterbox");
}

}  // namespace fai
