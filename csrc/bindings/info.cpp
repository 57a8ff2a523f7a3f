#include "csrc/ops/info.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "csrc/bindings/bindings.h"
#include "csrc/core/cpus.h"

namespace py = pybind11;

namespace fai {
namespace {

py::dict build_info() {
    const ops::BuildInfo info = ops::build_info();
    const auto or_none = [](const std::string& text) {
        return text.empty() ? py::object(py::none()) : py::object(py::str(text));
    };
    py::dict cuda;
    cuda["compiled"] = info.cuda;
    cuda["reason"] = or_none(FAI_FAST_CUDA_REASON);  // this and what is alike from cmake/cuda.cmake
    cuda["toolkit"] = or_none(info.cuda_toolkit);
    cuda["architectures"] = or_none(FAI_FAST_CUDA_TARGETS);
    cuda["driver"] = or_none(FAI_FAST_CUDA_DRIVER);
    py::dict dict;
    dict["compiler"] = __VERSION__;
    dict["isa"] = info.isa;
    dict["isas_compiled"] = info.isas_compiled;
    dict["isas_available"] = info.isas_available;
    dict["cuda"] = cuda;
    dict["threads"] = info.threads;
    dict["sanitizers"] = FAI_FAST_SANITIZERS;  // from CMakeLists.txt
    return dict;
}

}  // namespace

void register_info(py::module_& m) {
    m.attr("__version__") = FAI_FAST_VERSION;  // from pyproject.toml through CMakeLists.txt
    m.def("build_info", build_info);
    m.def("cpu_quota", &quota_cpus, py::arg("root") = "");
}

}  // namespace fai
