// Computing without the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>
#include <utility>

#if defined(__GLIBCXX__)
#include <cxxabi.h>
#include <unistd.h>
#endif

namespace fai {

// Runs body() without the GIL. Where the interpreter ends meanwhile (a daemon thread at exit), Python
// before 3.14 ends this thread inside PyEval_RestoreThread by unwinding it, through destructors that would
// touch freed Python objects: the thread sleeps instead until the process is gone, as Python 3.14 does
// itself.
template <class Body>
void without_gil(Body&& body) {
    std::exception_ptr error;
    PyThreadState* state = PyEval_SaveThread();
    try {
        std::forward<Body>(body)();
    } catch (...) {
        error = std::current_exception();
    }
#if defined(__GLIBCXX__)
    try {
        PyEval_RestoreThread(state);
    } catch (abi::__forced_unwind&) {
        for (;;) pause();
    }
#else
    PyEval_RestoreThread(state);
#endif
    if (error) std::rethrow_exception(error);
}

}  // namespace fai
