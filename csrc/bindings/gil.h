// Computing without the GIL.
#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

#include <exception>
#include <utility>

namespace fai {

// Where the interpreter ends while a daemon thread still runs, Python before 3.14 ends that thread by
// unwinding it from within any call that takes the GIL, through destructors that would then touch freed
// Python objects. This makes the call and, where that happens, sleeps until the process is gone, as
// Python 3.14 does itself. `call` is one call of Python's C API, which throws nothing else, and owns nothing.
template <class Call>
auto survive_exit(Call&& call) {
    try {
        return call();
    } catch (...) {
        for (;;) pause();
    }
}

// Runs body() without the GIL.
template <class Body>
void without_gil(Body&& body) {
    // While the interpreter ends, its thread is the only one that Python still runs: it destroys what modules
    // held, and there is nobody to make room for.
    if (!Py_IsInitialized()) return std::forward<Body>(body)();
    std::exception_ptr error;
    PyThreadState* state = PyEval_SaveThread();
    try {
        std::forward<Body>(body)();
    } catch (...) {
        error = std::current_exception();
    }
    // Once the interpreter has ended, `state` is freed memory.
    while (!Py_IsInitialized()) pause();
    survive_exit([state] { PyEval_RestoreThread(state); });
    if (error) std::rethrow_exception(error);
}

}  // namespace fai
