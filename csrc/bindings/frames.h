// A frame as Python hands it over: an array or a tuple of planes, and how to read them.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>
#include <string>
#include <vector>

#include "csrc/bindings/arrays.h"
#include "csrc/ops/preprocess.h"

namespace fai {

// Sets how a frame is read. Throws ValueError naming the argument.
void set_options(ops::PreprocessArguments& frame, const std::string& color, const std::string& resize,
                 const std::string& yuv_matrix, const std::string& yuv_range);

// Views the planes of `image`, an array or a tuple of up to 3, each with `borrow_plane`, and points `frame`
// at them. What keeps them alive. Throws TypeError, ValueError naming `image`.
std::vector<Borrowed> set_planes(ops::PreprocessArguments& frame, pybind11::handle image,
                                 const std::function<Borrowed(pybind11::handle)>& borrow_plane);

}  // namespace fai
