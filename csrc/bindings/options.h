// The strings that Python's arguments choose from.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <vector>

#include "csrc/core/error.h"
#include "csrc/core/rules.h"
#include "csrc/core/types.h"
#include "csrc/ops/checks.h"
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
inline constexpr Choice<ops::Resize> kResizes[] = {
    {"stretch", ops::Resize::stretch}, {"letterbox", ops::Resize::letterbox}, {"pad", ops::Resize::pad}};
inline constexpr Choice<DType> kDtypes[] = {{"float32", DType::f32}, {"float16", DType::f16}};

// From Rules.plain() of python/fai_fast/_rules.py. `classes` of the class logits.
inline Rules rules_of(const pybind11::dict& given, int64_t classes) {
    Rules rules;
    for (const auto& [key, value] : given) {
        const auto name = key.cast<std::string>();
        if (name == "by_sum") {
            rules.by_sum = value.cast<bool>();
        } else if (name == "panoptic") {
            rules.panoptic = value.cast<bool>();
        } else if (name == "overlap_threshold") {
            rules.overlap_threshold = value.cast<double>();
        } else if (name == "weighted") {
            rules.weighted = value.cast<bool>();
        } else if (name == "stuff") {
            for (const int64_t class_id : value.cast<std::vector<int64_t>>()) {
                if (class_id < 0 || class_id >= classes) {
                    throw ValueError(message("panoptic.stuff: got class ", class_id, ", expected 0 to ",
                                             classes - 1, ", as class_logits has ", classes, " classes"));
                }
                rules.stuff.resize(static_cast<size_t>(classes));
                rules.stuff[static_cast<size_t>(class_id)] = 1;
            }
        } else if (name == "multi_label") {
            rules.multi_label = value.cast<bool>();
        } else if (name == "exclusive") {
            rules.exclusive = value.cast<bool>();
        } else if (name == "logits_size") {
            const auto size = value.cast<std::array<int64_t, 2>>();
            ops::check_sides("resampling.logits_size", size[0], size[1]);
            rules.logits_size = {static_cast<int32_t>(size[0]), static_cast<int32_t>(size[1])};
        } else if (name == "of_logits") {
            rules.of_logits = value.cast<bool>();
        } else if (name == "nearest") {
            rules.nearest = value.cast<bool>();
        } else {
            throw ValueError(message("rules: got unknown '", name, "'"));
        }
    }
    return rules;
}

}  // namespace fai
