#include "csrc/bindings/arrays.h"

#include <pybind11/numpy.h>

#include <cstring>

#include "csrc/bindings/dlpack.h"
#include "csrc/bindings/gil.h"
#include "csrc/core/error.h"
#include "csrc/ops/checks.h"

namespace py = pybind11;

namespace fai {
namespace {

[[noreturn]] void wrong_dtype(const char* argument, const std::string& dtype, const char* expected) {
    throw TypeError(message(argument, ": got dtype ", dtype, ", expected ", expected));
}

void check_ndim(const char* argument, int64_t ndim, const char* expected) {
    if (ndim < 1 || ndim > 4) {
        throw ValueError(message(argument, ": got ", ndim, " dimensions, expected ", expected));
    }
}

// The text of an exception of the object's own, to be quoted in ours. Anything that is no plain Exception
// (KeyboardInterrupt, SystemExit) goes on unchanged.
std::string quote(py::error_already_set& error) {
    if (!error.matches(PyExc_Exception)) throw error;
    std::string text = error.what();
    return text.substr(0, text.find('\n'));
}

View numpy_view(const py::array& array, const char* argument, const char* expected) {
    const py::dtype dtype = array.dtype();
    const char kind = dtype.kind();
    const auto item = dtype.itemsize();
    const char order = dtype.byteorder();
    View view;
    if (kind == 'u' && item == 1) {
        view.dtype = DType::u8;
    } else if (kind == 'f' && item == 2 && (order == '=' || order == '<')) {
        view.dtype = DType::f16;
    } else if (kind == 'f' && item == 4 && (order == '=' || order == '<')) {
        view.dtype = DType::f32;
    } else {
        wrong_dtype(argument, py::str(dtype), expected);
    }
    check_ndim(argument, array.ndim(), expected);
    view.data = array.data();
    view.ndim = static_cast<int>(array.ndim());
    for (int i = 0; i < view.ndim; ++i) {
        view.shape[i] = array.shape(i);
        view.strides[i] = array.strides(i);
    }
    return view;
}

View tensor_view(const dlpack::Tensor& tensor, const char* argument, const char* expected) {
    View view;
    const auto [code, bits, lanes] = tensor.dtype;
    if (lanes == 1 && code == dlpack::kUnsigned && bits == 8) {
        view.dtype = DType::u8;
    } else if (lanes == 1 && code == dlpack::kFloat && bits == 16) {
        view.dtype = DType::f16;
    } else if (lanes == 1 && code == dlpack::kFloat && bits == 32) {
        view.dtype = DType::f32;
    } else {
        static constexpr const char* kKinds[] = {"int",    "uint",    "float", "opaque",
                                                 "bfloat", "complex", "bool"};
        const std::string kind =
            code < std::size(kKinds) ? kKinds[code] : message("DLPack type code ", int{code}, " of bits ");
        wrong_dtype(argument, message(kind, int{bits}, lanes == 1 ? "" : message(" x ", lanes)), expected);
    }
    check_ndim(argument, tensor.ndim, expected);
    view.data = static_cast<const char*>(tensor.data) + tensor.byte_offset;
    view.ndim = tensor.ndim;
    const auto item = static_cast<int64_t>(item_size(view.dtype));
    int64_t dense = item;
    for (int i = view.ndim - 1; i >= 0; --i) {
        view.shape[i] = tensor.shape[i];
        view.strides[i] = tensor.strides ? tensor.strides[i] * item : dense;
        dense *= std::max<int64_t>(tensor.shape[i], 1);
    }
    return view;
}

// Takes the tensor out of a capsule, which from then on may not free it.
template <class ManagedTensor>
ManagedTensor* take(const py::capsule& capsule, const char* name, const char* used_name) {
    auto* managed = static_cast<ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), name));
    if (!managed || PyCapsule_SetName(capsule.ptr(), used_name)) throw py::error_already_set();
    return managed;
}

// Calls that may run Python code of the object's, each as one call of the C API (see survive_exit).
py::object checked(PyObject* result) {
    if (!result) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(result);
}

bool has_attribute(py::handle object, const char* name) {
    return survive_exit([&] { return PyObject_HasAttrString(object.ptr(), name); }) == 1;
}

py::object attribute(py::handle object, const char* name) {
    return checked(survive_exit([&] { return PyObject_GetAttrString(object.ptr(), name); }));
}

py::object call(const py::object& function, const py::tuple& arguments, const py::dict& keywords = {}) {
    return checked(
        survive_exit([&] { return PyObject_Call(function.ptr(), arguments.ptr(), keywords.ptr()); }));
}

py::object call_dlpack(py::handle object) {
    const py::object method = attribute(object, "__dlpack__");
    try {
        py::dict keywords;
        keywords["max_version"] = py::make_tuple(1, 0);
        return call(method, py::tuple(), keywords);
    } catch (py::error_already_set& error) {
        // Producers from before version 1 do not know the keyword.
        if (!error.matches(PyExc_TypeError)) throw;
    }
    return call(method, py::tuple());
}

}  // namespace

std::string type_name(py::handle object) { return py::str(py::type::handle_of(object).attr("__name__")); }

Borrowed& Borrowed::operator=(Borrowed&& other) noexcept {
    if (this != &other) {
        release();
        view = other.view;
        writable = other.writable;
        owner_ = std::move(other.owner_);
        deleter_ = std::move(other.deleter_);
        other.deleter_ = nullptr;
    }
    return *this;
}

void Borrowed::release() {
    if (deleter_) deleter_();
    deleter_ = nullptr;
}

bool Borrowed::contiguous() const {
    const auto item = static_cast<int64_t>(item_size(view.dtype));
    if (reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(item)) return false;
    int64_t dense = item;
    for (int i = view.ndim - 1; i >= 0; --i) {
        if (view.shape[i] != 1 && view.strides[i] != dense) return false;
        dense *= view.shape[i];
    }
    return true;
}

void make_rows_contiguous(View& view, std::vector<char>& copy) {
    const auto item = static_cast<int64_t>(item_size(view.dtype));
    bool usable = reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(item) == 0;
    int64_t count = 1;
    for (int i = 0; i < view.ndim; ++i) {
        usable = usable && (view.strides[i] % item == 0 || view.shape[i] == 1);
        count *= view.shape[i];
    }
    const int last = view.ndim - 1;
    usable = usable && (view.strides[last] == item || view.shape[last] == 1);
    if (usable || count == 0) return;

    // Counting up an index, the last dimension fastest, writes the copy in C order.
    copy.resize(static_cast<size_t>(count * item));
    int64_t index[4] = {0, 0, 0, 0};
    const char* from = static_cast<const char*>(view.data);
    for (int64_t n = 0; n < count; ++n) {
        std::memcpy(copy.data() + n * item, from, static_cast<size_t>(item));
        for (int i = last; i >= 0; --i) {
            from += view.strides[i];
            if (++index[i] < view.shape[i]) break;
            from -= view.strides[i] * view.shape[i];
            index[i] = 0;
        }
    }
    view.data = copy.data();
    int64_t dense = item;
    for (int i = last; i >= 0; --i) {
        view.strides[i] = dense;
        dense *= view.shape[i];
    }
}

void Borrowed::squeeze_to(int ndim) {
    if (view.ndim != ndim + 1 || view.shape[0] != 1) return;
    for (int i = 0; i < ndim; ++i) {
        view.shape[i] = view.shape[i + 1];
        view.strides[i] = view.strides[i + 1];
    }
    view.ndim = ndim;
}

Borrowed::Span Borrowed::span() const {
    const char* begin = static_cast<const char*>(view.data);
    const char* end = begin + item_size(view.dtype);
    for (int i = 0; i < view.ndim; ++i) {
        if (view.shape[i] == 0) return {begin, begin};
        const int64_t reach = (view.shape[i] - 1) * view.strides[i];
        (reach < 0 ? begin : end) += reach;
    }
    return {begin, end};
}

Borrowed borrow(py::handle object, const char* argument, const char* expected) {
    Borrowed borrowed;
    if (!py::isinstance<py::array>(object) && has_attribute(object, "__dlpack__") &&
        has_attribute(object, "__dlpack_device__")) {
        py::object capsule;
        int32_t device = 0;
        try {
            device =
                py::cast<int32_t>(call(attribute(object, "__dlpack_device__"), py::tuple())[py::int_(0)]);
            if (device == dlpack::kCpu || device == dlpack::kCudaHost) capsule = call_dlpack(object);
        } catch (py::error_already_set& error) {
            throw TypeError(message(argument, ": got a ", type_name(object), " whose DLPack export fails (",
                                    quote(error), "), expected ", expected));
        } catch (const py::cast_error&) {
            throw TypeError(message(argument, ": got a ", type_name(object),
                                    " whose __dlpack_device__() is no device, expected ", expected));
        }
        if (!capsule) {
            throw ValueError(
                message(argument, ": got a ", type_name(object), " in the memory of ",
                        device == dlpack::kCuda ? "a CUDA device" : message("DLPack device type ", device),
                        ", expected the CPU's memory (for torch: .cpu())"));
        }
        const dlpack::Tensor* tensor = nullptr;
        if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
            auto* managed = take<dlpack::ManagedVersioned>(py::reinterpret_borrow<py::capsule>(capsule),
                                                           "dltensor_versioned", "used_dltensor_versioned");
            borrowed.deleter_ = [managed] {
                if (managed->deleter) managed->deleter(managed);
            };
            if (managed->version.major != 1) {
                throw TypeError(message(argument, ": got a tensor of DLPack version ", managed->version.major,
                                        ", expected version 1 or older"));
            }
            borrowed.writable = !(managed->flags & dlpack::kReadOnly);
            tensor = &managed->tensor;
        } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
            auto* managed = take<dlpack::Managed>(py::reinterpret_borrow<py::capsule>(capsule), "dltensor",
                                                  "used_dltensor");
            borrowed.deleter_ = [managed] {
                if (managed->deleter) managed->deleter(managed);
            };
            borrowed.writable = true;
            tensor = &managed->tensor;
        } else {
            throw TypeError(message(argument, ": got a ", type_name(object), " whose __dlpack__() gives a ",
                                    type_name(capsule), ", expected a DLPack capsule"));
        }
        borrowed.view = tensor_view(*tensor, argument, expected);
        return borrowed;
    }
    py::object array = py::reinterpret_borrow<py::object>(object);
    if (!py::isinstance<py::array>(object)) {
        if (!PyObject_CheckBuffer(object.ptr()) && !has_attribute(object, "__array_interface__")) {
            throw TypeError(message(argument, ": got ", type_name(object), ", expected ", expected));
        }
        try {
            array = call(attribute(py::module_::import("numpy"), "asarray"), py::make_tuple(object));
        } catch (py::error_already_set& error) {
            throw TypeError(message(argument, ": got a ", type_name(object), " that NumPy cannot view (",
                                    quote(error), "), expected ", expected));
        }
    }
    const auto numpy = py::reinterpret_borrow<py::array>(array);
    borrowed.view = numpy_view(numpy, argument, expected);
    borrowed.writable = numpy.writeable();
    borrowed.owner_ = array;
    return borrowed;
}

}  // namespace fai
