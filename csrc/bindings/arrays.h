// Python's arrays as borrowed views: NumPy, buffer protocol, __array_interface__, DLPack.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "csrc/core/recycler.h"
#include "csrc/core/types.h"

namespace fai {

// A view and what keeps its memory alive. Create and destroy with the GIL held.
class Borrowed {
  public:
    Borrowed() = default;
    Borrowed(Borrowed&& other) noexcept { *this = std::move(other); }
    Borrowed& operator=(Borrowed&& other) noexcept;
    ~Borrowed() { release(); }

    View view;
    bool writable = false;
    bool on_device = false;  // in a GPU's memory; only of borrow_anywhere()
    uint64_t stream = 0;     // on_device: the stream that the memory is written on, 0 where it is complete

    // C-contiguous, aligned to its items and dense?
    bool contiguous() const;
    // Drops a leading dimension of length 1 where there are `ndim` + 1.
    void squeeze_to(int ndim);

    // First and one past the last byte that the view reaches; equal where it is empty.
    struct Span {
        const char* begin;
        const char* end;
    };
    Span span() const;

  private:
    friend Borrowed borrow(pybind11::handle object, const char* argument, const char* expected);
    friend Borrowed borrow_anywhere(pybind11::handle object, const char* argument, const char* expected,
                                    int device, uint64_t stream);
    void release();

    pybind11::object owner_;
    std::function<void()> deleter_;
};

// Points `view` at a C-contiguous copy of its values, kept in `copy`, unless its rows (the last dimension)
// are contiguous and aligned already.
void make_rows_contiguous(View& view, std::vector<char>& copy);

// Views `object`, an array of up to 4 dimensions of uint8, float16 or float32 in the CPU's memory. `expected`
// completes the message "argument: got ..., expected ...". Throws TypeError, ValueError.
Borrowed borrow(pybind11::handle object, const char* argument, const char* expected);

// The same, or an array in the memory of CUDA device `device`, by DLPack or __cuda_array_interface__, that
// work on `stream` may read.
Borrowed borrow_anywhere(pybind11::handle object, const char* argument, const char* expected, int device,
                         uint64_t stream);

// An uninitialized array whose memory comes from `recycler` and goes back there. Small ones are NumPy's own.
pybind11::array recycled_array(Recycler& recycler, const pybind11::dtype& dtype,
                               std::vector<pybind11::ssize_t> shape);

// The one way in which memory of ours becomes an array: a view of `data`, which `owner` keeps. The owner is
// destroyed with the last view, with the GIL held.
template <class Owner>
pybind11::array array_over(const pybind11::dtype& dtype, std::vector<pybind11::ssize_t> shape,
                           const void* data, Owner owner) {
    auto held = std::make_unique<Owner>(std::move(owner));
    const pybind11::capsule capsule(held.get(), [](void* p) { delete static_cast<Owner*>(p); });
    held.release();
    return pybind11::array(dtype, std::move(shape), data, capsule);
}

// Gives a vector's memory to an array, as values of type Element.
template <class Element, class T>
pybind11::array to_array(std::vector<T>&& values, std::vector<pybind11::ssize_t> shape) {
    const void* const data = values.data();
    return array_over(pybind11::dtype::of<Element>(), std::move(shape), data, std::move(values));
}

// "ndarray", "Tensor": what to call an argument of the wrong type.
std::string type_name(pybind11::handle object);

}  // namespace fai
