// The module: exceptions, and one register_* a family.
#include <pybind11/pybind11.h>

#include "csrc/bindings/bindings.h"
#include "csrc/core/error.h"

namespace py = pybind11;

PYBIND11_MODULE(_core, m) {
    m.doc() = "Compiled part of fai_fast. Use fai_fast's own functions; these are not stable.";
    // Local: another module's exceptions are none of ours, nor are ours another's.
    py::register_local_exception_translator([](std::exception_ptr error) {
        try {
            if (error) std::rethrow_exception(error);
        } catch (const fai::ValueError& e) {
            py::set_error(PyExc_ValueError, e.what());
        } catch (const fai::TypeError& e) {
            py::set_error(PyExc_TypeError, e.what());
        } catch (const fai::CudaError& e) {
            py::set_error(py::module_::import("fai_fast.errors").attr("CudaError"), e.what());
        }
    });
    fai::register_info(m);
    fai::register_preprocess(m);
    fai::register_postprocess(m);
    fai::register_masks(m);
    fai::register_cuda(m);
}
