// A result as Python gets it, from the CPU or from a GPU.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <utility>

#include "csrc/bindings/arrays.h"
#include "csrc/ops/postprocess.h"

namespace fai {

// `masks`: for a semantic result its segments, (H, W) labels; else the packed masks' bits, (words,).
inline pybind11::dict result_dict(ops::ResultRows&& rows, bool semantic, const pybind11::array& masks) {
    const auto count = static_cast<pybind11::ssize_t>(rows.query.size());
    pybind11::dict dict;
    dict["confidence"] = to_array<float>(std::move(rows.confidence), {count});
    dict["class_id"] = to_array<int64_t>(std::move(rows.class_id), {count});
    dict["query"] = to_array<int64_t>(std::move(rows.query), {count});
    dict["area"] = to_array<int64_t>(std::move(rows.area), {count});
    dict["boxes"] = to_array<int32_t>(std::move(rows.boxes), {count, 4});
    if (!semantic) dict["offsets"] = to_array<int64_t>(std::move(rows.offsets), {count});
    dict[semantic ? "segments" : "bits"] = masks;
    return dict;
}

}  // namespace fai
