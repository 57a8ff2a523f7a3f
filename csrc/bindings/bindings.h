// What each file of this folder adds to fai_fast._core.
#pragma once

#include <pybind11/pybind11.h>

namespace fai {

void register_info(pybind11::module_& m);
void register_preprocess(pybind11::module_& m);
void register_postprocess(pybind11::module_& m);
void register_masks(pybind11::module_& m);
void register_cuda(pybind11::module_& m);

}  // namespace fai
