// The exceptions of the library. bindings/module.cpp alone turns them into Python's.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace fai {

// An argument has the right type and an unusable value.
struct ValueError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// An argument has the wrong type or dtype.
struct TypeError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The GPU cannot be used, or failed.
struct CudaError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Streams its arguments into one text: message("size: ", 3, " is too small").
template <class... Parts>
std::string message(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    return text.str();
}

}  // namespace fai
