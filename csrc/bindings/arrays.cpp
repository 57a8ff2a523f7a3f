#include "csrc/bindings/arrays.h"

#include <pybind11/numpy.h>

#include <cstring>
#include <memory>

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

// As Python's hasattr(): PyObject_HasAttrString() would swallow what a signal handler raises meanwhile.
bool has_attribute(py::handle object, const char* name) {
    PyObject* found = survive_exit([&] { return PyObject_GetAttrString(object.ptr(), name); });
    if (found) {
        Py_DECREF(found);
        return true;
    }
    if (!PyErr_ExceptionMatches(PyExc_AttributeError)) throw py::error_already_set();
    PyErr_Clear();
    return false;
}

py::object attribute(py::handle object, const char* name) {
    return checked(survive_exit([&] { return PyObject_GetAttrString(object.ptr(), name); }));
}

py::object call(const py::object& function, const py::tuple& arguments, const py::dict& keywords = {}) {
    return checked(
        survive_exit([&] { return PyObject_Call(function.ptr(), arguments.ptr(), keywords.ptr()); }));
}

// The text of an exception of the object's own, to be quoted in ours. What is not the object's
// (KeyboardInterrupt, MemoryError, what a signal handler raised meanwhile) goes on unchanged.
std::string quote(py::error_already_set& error, py::handle object) {
    if (!error.matches(PyExc_Exception)) throw error;
    // Before Python 3.12 an exception and its traceback are still apart here.
    if (error.trace()) PyException_SetTraceback(error.value().ptr(), error.trace().ptr());
    const py::object explained = attribute(py::module_::import("fai_fast._foreign"), "explained");
    const py::object module = attribute(py::type::handle_of(object), "__module__");
    if (!py::cast<bool>(call(explained, py::make_tuple(error.value(), py::str(module), "numpy"))))
        throw error;
    const std::string text = error.what();
    return text.substr(0, text.find('\n'));
}

// `stream`: of the consumer, which the producer lets wait for its own; none for the CPU's memory.
py::object call_dlpack(py::handle object, const py::object& stream = py::none()) {
    const py::object method = attribute(object, "__dlpack__");
    py::dict keywords;
    if (!stream.is_none()) keywords["stream"] = stream;
    try {
        // py::dict(keywords) would be the same dict.
        auto newer = py::reinterpret_steal<py::dict>(PyDict_Copy(keywords.ptr()));
        newer["max_version"] = py::make_tuple(1, 0);
        return call(method, py::tuple(), newer);
    } catch (py::error_already_set& error) {
        // Producers from before version 1 do not know the keyword.
        if (!error.matches(PyExc_TypeError)) throw;
    }
    return call(method, py::tuple(), keywords);
}

// A version 2 or 3 __cuda_array_interface__ of bytes.
// https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html
View interface_view(const py::dict& interface, const char* argument, const char* expected) {
    const auto dtype = py::cast<std::string>(interface["typestr"]);
    if (dtype != "|u1") wrong_dtype(argument, dtype, expected);
    const py::tuple shape = interface["shape"];
    check_ndim(argument, static_cast<int64_t>(shape.size()), expected);
    View view;
    view.dtype = DType::u8;
    view.ndim = static_cast<int>(shape.size());
    const auto address = py::cast<uintptr_t>(interface["data"].cast<py::tuple>()[0]);
    view.data = reinterpret_cast<const void*>(address);
    const py::object strides =
        interface.contains("strides") ? py::object(interface["strides"]) : py::object(py::none());
    int64_t dense = 1;
    for (int i = view.ndim - 1; i >= 0; --i) {
        view.shape[i] = py::cast<int64_t>(shape[i]);
        view.strides[i] = strides.is_none() ? dense : py::cast<int64_t>(strides.cast<py::tuple>()[i]);
        dense *= std::max<int64_t>(view.shape[i], 1);
    }
    if (interface.contains("mask") && !interface["mask"].is_none()) {
        throw ValueError(message(argument, ": got a masked array, expected ", expected));
    }
    return view;
}

// The tensor of a DLPack capsule, taken over from it; `deleter` gives it back.
const dlpack::Tensor& tensor_of(const py::object& capsule, py::handle object, const char* argument,
                                std::function<void()>& deleter, bool& writable) {
    const dlpack::Tensor* tensor = nullptr;
    if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
        auto* managed = take<dlpack::ManagedVersioned>(py::reinterpret_borrow<py::capsule>(capsule),
                                                       "dltensor_versioned", "used_dltensor_versioned");
        deleter = [managed] {
            if (managed->deleter) managed->deleter(managed);
        };
        if (managed->version.major != 1) {
            throw TypeError(message(argument, ": got a tensor of DLPack version ", managed->version.major,
                                    ", expected version 1 or older"));
        }
        writable = !(managed->flags & dlpack::kReadOnly);
        tensor = &managed->tensor;
    } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
        auto* managed =
            take<dlpack::Managed>(py::reinterpret_borrow<py::capsule>(capsule), "dltensor", "used_dltensor");
        deleter = [managed] {
            if (managed->deleter) managed->deleter(managed);
        };
        writable = true;
        tensor = &managed->tensor;
    } else {
        throw TypeError(message(argument, ": got a ", type_name(object), " whose __dlpack__() gives a ",
                                type_name(capsule), ", expected a DLPack capsule"));
    }
    return *tensor;
}

}  // namespace

py::array recycled_array(Recycler& recycler, const py::dtype& dtype, std::vector<py::ssize_t> shape) {
    // Below this the C library keeps what is freed, and no pages are fetched anew.
    constexpr size_t kLarge = size_t{64} << 10;
    size_t bytes = static_cast<size_t>(dtype.itemsize());
    for (const py::ssize_t side : shape) bytes *= static_cast<size_t>(side);
    if (bytes < kLarge) return py::array(dtype, std::move(shape));
    std::unique_ptr<void, void (*)(void*)> memory(recycler.take(bytes), Recycler::give_back);
    const void* const data = memory.get();
    return array_over(dtype, std::move(shape), data, std::move(memory));
}

std::string type_name(py::handle object) { return py::str(py::type::handle_of(object).attr("__name__")); }

Borrowed& Borrowed::operator=(Borrowed&& other) noexcept {
    if (this != &other) {
        release();
        view = other.view;
        writable = other.writable;
        on_device = other.on_device;
        stream = other.stream;
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
                                    quote(error, object), "), expected ", expected));
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
        borrowed.view = tensor_view(
            tensor_of(capsule, object, argument, borrowed.deleter_, borrowed.writable), argument, expected);
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
                                    quote(error, object), "), expected ", expected));
        }
    }
    const auto numpy = py::reinterpret_borrow<py::array>(array);
    borrowed.view = numpy_view(numpy, argument, expected);
    borrowed.writable = numpy.writeable();
    borrowed.owner_ = array;
    return borrowed;
}

Borrowed borrow_anywhere(py::handle object, const char* argument, const char* expected, int device,
                         uint64_t stream) {
    const auto check_device = [&](int64_t where) {
        if (where == device) return;
        throw ValueError(message(argument, ": got memory of CUDA device ", where,
                                 ", expected that of the model's device ", device, " or the CPU's"));
    };
    if (py::isinstance<py::array>(object)) return borrow(object, argument, expected);
    Borrowed borrowed;
    if (has_attribute(object, "__dlpack__") && has_attribute(object, "__dlpack_device__")) {
        py::object capsule;
        try {
            const py::object where = call(attribute(object, "__dlpack_device__"), py::tuple());
            if (py::cast<int32_t>(where[py::int_(0)]) != dlpack::kCuda)
                return borrow(object, argument, expected);
            check_device(py::cast<int64_t>(where[py::int_(1)]));
            capsule = call_dlpack(object, py::int_(stream));
        } catch (py::error_already_set& error) {
            throw TypeError(message(argument, ": got a ", type_name(object), " whose DLPack export fails (",
                                    quote(error, object), "), expected ", expected));
        } catch (const py::cast_error&) {
            throw TypeError(message(argument, ": got a ", type_name(object),
                                    " whose __dlpack_device__() is no device, expected ", expected));
        }
        borrowed.on_device = true;
        borrowed.view = tensor_view(
            tensor_of(capsule, object, argument, borrowed.deleter_, borrowed.writable), argument, expected);
        return borrowed;
    }
    if (!has_attribute(object, "__cuda_array_interface__")) return borrow(object, argument, expected);
    try {
        const py::dict interface = attribute(object, "__cuda_array_interface__");
        borrowed.view = interface_view(interface, argument, expected);
        if (interface.contains("stream") && !interface["stream"].is_none()) {
            borrowed.stream = py::cast<uint64_t>(interface["stream"]);
        }
    } catch (const py::cast_error&) {
        throw TypeError(message(argument, ": got a ", type_name(object),
                                " whose __cuda_array_interface__ is malformed, expected ", expected));
    } catch (py::error_already_set& error) {
        throw TypeError(message(argument, ": got a ", type_name(object),
                                " whose __cuda_array_interface__ fails (", quote(error, object),
                                "), expected ", expected));
    }
    borrowed.on_device = true;
    borrowed.owner_ = py::reinterpret_borrow<py::object>(object);
    return borrowed;
}

}  // namespace fai
