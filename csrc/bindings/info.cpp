// What was compiled in and what is in use.
#include <pybind11/pybind11.h>

#include "csrc/bindings/bindings.h"
#include "csrc/core/parallel.h"
#include "csrc/cpu/kernels.h"
#include "cuda/api.h"

#ifndef FAI_FAST_SANITIZERS
#define FAI_FAST_SANITIZERS ""
#endif

namespace py = pybind11;

namespace fai {
namespace {

py::object toolkit() {
    const int version = cuda::toolkit_version();
    if (version == 0) return py::none();
    return py::str(std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10));
}

py::dict build_info() {
    py::list compiled, available;
    for (const cpu::IsaInfo& isa : cpu::isas()) {
        compiled.append(isa.name);
        if (isa.available) available.append(isa.name);
    }
    py::dict cuda;
    cuda["compiled"] = cuda::compiled();
    cuda["toolkit"] = toolkit();
    py::dict info;
    info["compiler"] = __VERSION__;
    info["isa"] = cpu::kernels().isa;
    info["isas_compiled"] = compiled;
    info["isas_available"] = available;
    info["cuda"] = cuda;
    info["threads"] = available_threads();
    info["sanitizers"] = FAI_FAST_SANITIZERS;
    return info;
}

}  // namespace

void register_info(py::module_& m) { m.def("build_info", build_info); }

}  // namespace fai
