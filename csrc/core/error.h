// The exceptions of the library. bindings/module.cpp alone turns them into Python's.
#pragma once

#include <charconv>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

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

namespace detail {

inline void append(std::string& text, std::string_view part) { text += part; }
inline void append(std::string& text, char part) { text += part; }

// No iostreams and no std::to_string: both ask the process's locale, and a stream's facets are found by
// numbers that two copies of libstdc++ in one process count apart, which crashes.
template <class Number>
    requires std::is_arithmetic_v<Number>
void append(std::string& text, Number part) {
    char digits[32];
    std::to_chars_result end;
    if constexpr (std::is_floating_point_v<Number>) {
        // Six significant digits, as printf's %g has them.
        end = std::to_chars(digits, digits + sizeof digits, part, std::chars_format::general, 6);
    } else if constexpr (std::is_same_v<Number, bool>) {
        end = std::to_chars(digits, digits + sizeof digits, static_cast<int>(part));
    } else {
        end = std::to_chars(digits, digits + sizeof digits, part);
    }
    text.append(digits, end.ptr);
}

}  // namespace detail

// Joins its arguments into one text: message("size: ", 3, " is too small"). The same in every locale.
template <class... Parts>
std::string message(const Parts&... parts) {
    std::string text;
    (detail::append(text, parts), ...);
    return text;
}

}  // namespace fai
