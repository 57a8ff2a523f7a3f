#include "csrc/bindings/frames.h"

#include "csrc/bindings/options.h"
#include "csrc/core/error.h"

namespace py = pybind11;

namespace fai {

void set_options(ops::PreprocessArguments& frame, const std::string& color, const std::string& resize,
                 const std::string& yuv_matrix, const std::string& yuv_range) {
    frame.color = choose("color", color, kColors);
    frame.matrix = choose("yuv_matrix", yuv_matrix, kMatrices);
    frame.limited_range = choose("yuv_range", yuv_range, kRanges);
    frame.resize = choose("resize", resize, kResizes);
}

std::vector<Borrowed> set_planes(ops::PreprocessArguments& frame, py::handle image,
                                 const std::function<Borrowed(py::handle)>& borrow_plane) {
    std::vector<Borrowed> planes;
    if (py::isinstance<py::tuple>(image)) {
        const auto tuple = py::reinterpret_borrow<py::tuple>(image);
        if (tuple.empty() || tuple.size() > 3) {
            throw ValueError(message("image: got a tuple of ", tuple.size(), " planes, expected 2 or 3"));
        }
        for (const py::handle plane : tuple) planes.push_back(borrow_plane(plane));
    } else {
        planes.push_back(borrow_plane(image));
    }
    frame.plane_count = static_cast<int>(planes.size());
    for (size_t i = 0; i < planes.size(); ++i) frame.planes[i] = planes[i].view;
    return planes;
}

}  // namespace fai
