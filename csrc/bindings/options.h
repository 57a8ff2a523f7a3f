// The strings that Python's arguments choose from.
#pragma once

#include <string>

#include "csrc/core/error.h"
#include "csrc/core/types.h"
#include "csrc/ops/preprocess.h"

namespace fai {

template <class T>
struct Choice {
    const char* name;
    T value;
};

template <class T, size_t n>
T choose(const char* argument, const std::string& name, const Choice<T> (&choices)[n]) {
    std::string names;
    for (const Choice<T>& choice : choices) {
        if (name == choice.name) return choice.value;
        names += message(names.empty() ? "'" : ", '", choice.name, "'");
    }
    throw ValueError(message(argument, ": got '", name, "', expected one of ", names));
}

inline constexpr Choice<ops::Color> kColors[] = {
    {"rgb", ops::Color::rgb},   {"bgr", ops::Color::bgr},   {"rgba", ops::Color::rgba},
    {"bgra", ops::Color::bgra}, {"gray", ops::Color::gray}, {"nv12", ops::Color::nv12},
    {"i420", ops::Color::i420}, {"yuyv", ops::Color::yuyv}, {"uyvy", ops::Color::uyvy},
};
inline constexpr Choice<ops::YuvMatrix> kMatrices[] = {{"bt601", ops::YuvMatrix::bt601},
                                                       {"bt709", ops::YuvMatrix::bt709}};
inline constexpr Choice<bool> kRanges[] = {{"limited", true}, {"full", false}};
inline constexpr Choice<bool> kResizes[] = {{"stretch", false}, {"letterbox", true}};
inline constexpr Choice<DType> kDtypes[] = {{"float32", DType::f32}, {"float16", DType::f16}};

}  // namespace fai
