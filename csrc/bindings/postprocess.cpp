// postprocess: logits in, rows and masks out.
#include "csrc/ops/postprocess.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csrc/bindings/arrays.h"
#include "csrc/bindings/bindings.h"
#include "csrc/bindings/gil.h"
#include "csrc/bindings/options.h"
#include "csrc/bindings/results.h"
#include "csrc/core/error.h"
#include "csrc/ops/checks.h"
#include "csrc/ops/crops.h"

namespace py = pybind11;

namespace fai {
namespace {

py::array words_to_array(std::unique_ptr<uint64_t[]>&& words, int64_t count) {
    const void* const data = words.get();
    return array_over(py::dtype::of<uint64_t>(), {count}, data, std::move(words));
}

// Entry i of the first dimension.
View item(View view, int64_t i) {
    view.data = static_cast<const char*>(view.data) + i * view.strides[0];
    for (int k = 0; k + 1 < view.ndim; ++k) {
        view.shape[k] = view.shape[k + 1];
        view.strides[k] = view.strides[k + 1];
    }
    --view.ndim;
    return view;
}

// `class_names` counts the caller's names, -1 where there are none.
void check_class_names(int64_t class_names, const ops::PostprocessArguments& arguments) {
    const int64_t expected = arguments.class_logits.shape[1] - arguments.softmax;
    if (class_names >= 0 && class_names != expected) {
        throw ValueError(message("class_names: got ", class_names, " names, expected ", expected,
                                 " for class_logits ", ops::shape_of(arguments.class_logits),
                                 arguments.softmax ? " (the last column is 'no object')" : ""));
    }
}

// content (height, width), offset (top, left), input (height, width)
using LetterboxTuple = std::array<std::array<int32_t, 2>, 3>;

// One dict per image. `class_names` counts the caller's names, -1 where there are none; `sizes` and
// `letterboxes` have one entry per image.
py::list postprocess(py::object mask_logits, py::object class_logits, bool batched,
                     const std::vector<std::array<int64_t, 2>>& sizes, double threshold,
                     double mask_threshold, bool use_mask_score, bool predict_all_pixels, bool softmax,
                     int64_t class_names, const std::vector<std::optional<LetterboxTuple>>& letterboxes,
                     int num_threads, int64_t min_area, const py::dict& rules) {
    constexpr const char* kMasks = "a float32 or float16 array (Q, h, w) in the CPU's memory";
    constexpr const char* kMaskBatch = "a float32 or float16 array (B, Q, h, w) in the CPU's memory";
    constexpr const char* kClasses = "a float32 or float16 array (Q, K) in the CPU's memory";
    constexpr const char* kClassBatch = "a float32 or float16 array (B, Q, K) in the CPU's memory";
    Borrowed masks = borrow(mask_logits, "mask_logits", batched ? kMaskBatch : kMasks);
    Borrowed classes = borrow(class_logits, "class_logits", batched ? kClassBatch : kClasses);
    int64_t images = 1;
    if (batched) {
        const auto check = [](const char* name, const View& view, int ndim, const char* expected) {
            if (view.ndim == ndim) return;
            throw ValueError(message(name, ": got shape ", ops::shape_of(view), ", expected ", expected));
        };
        check("mask_logits", masks.view, 4, "(B, Q, h, w)");
        check("class_logits", classes.view, 3, "(B, Q, K)");
        images = masks.view.shape[0];
        if (classes.view.shape[0] != images) {
            throw ValueError(message("class_logits: got ", classes.view.shape[0], " images in shape ",
                                     ops::shape_of(classes.view), ", expected ", images,
                                     " as in mask_logits ", ops::shape_of(masks.view)));
        }
    } else {
        masks.squeeze_to(3);
        classes.squeeze_to(2);
    }
    if (static_cast<int64_t>(sizes.size()) != images) {
        throw ValueError(
            message("size: got ", sizes.size(), " sizes, expected one for each of ", images, " images"));
    }
    if (static_cast<int64_t>(letterboxes.size()) != images) {
        throw ValueError(
            message("letterbox: got ", letterboxes.size(), ", expected one for each of ", images, " images"));
    }
    py::list results;
    for (int64_t i = 0; i < images; ++i) {
        // Checked before anything is copied: a broadcast array can be far larger than its memory.
        ops::PostprocessArguments arguments;
        arguments.mask_logits = batched ? item(masks.view, i) : masks.view;
        arguments.class_logits = batched ? item(classes.view, i) : classes.view;
        ops::check_sides("size", sizes[i][0], sizes[i][1]);
        arguments.size = {static_cast<int32_t>(sizes[i][0]), static_cast<int32_t>(sizes[i][1])};
        arguments.threshold = threshold;
        arguments.mask_threshold = mask_threshold;
        arguments.use_mask_score = use_mask_score;
        arguments.predict_all_pixels = predict_all_pixels;
        arguments.softmax = softmax;
        arguments.num_threads = num_threads;
        arguments.min_area = min_area;
        if (const auto& box = letterboxes[i]) {
            arguments.letterboxed = true;
            arguments.placement = {(*box)[1][0], (*box)[1][1], {(*box)[0][0], (*box)[0][1]}};
            arguments.tensor = {(*box)[2][0], (*box)[2][1]};
        }
        ops::check(arguments);
        const int64_t class_count = arguments.class_logits.shape[1] - softmax;
        arguments.rules = rules_of(rules, class_count);
        check_class_names(class_names, arguments);
        std::vector<char> mask_copy, class_copy;
        make_rows_contiguous(arguments.mask_logits, mask_copy);
        make_rows_contiguous(arguments.class_logits, class_copy);
        py::array segments;
        void* labels = nullptr;
        if (predict_all_pixels) {
            const bool wide = ops::segment_item_size(arguments) == 2;
            static constinit Recycler label_maps;
            segments = recycled_array(label_maps, wide ? py::dtype::of<uint16_t>() : py::dtype::of<uint8_t>(),
                                      {sizes[i][0], sizes[i][1]});
            labels = segments.mutable_data();
        }
        ops::Postprocessed result;
        without_gil([&] { ops::postprocess(arguments, labels, result); });
        const py::array masks =
            predict_all_pixels ? std::move(segments) : words_to_array(std::move(result.bits), result.words);
        results.append(result_dict(std::move(result), predict_all_pixels, masks));
    }
    return results;
}

// Of one image's crops, (N, Q, h, w) and (N, Q, K), what postprocess() gives of one; `whole`, `side` and
// `starts` as in ops::Crops.
py::dict postprocess_crops(py::object mask_logits, py::object class_logits, std::array<int64_t, 2> size,
                           std::array<int64_t, 2> whole, int32_t side, std::vector<int32_t> starts,
                           double threshold, bool softmax, int64_t class_names, int num_threads) {
    Borrowed masks = borrow(mask_logits, "mask_logits", "a float32 or float16 array (N, Q, h, w)");
    Borrowed classes = borrow(class_logits, "class_logits", "a float32 or float16 array (N, Q, K)");
    const auto check = [](const char* name, const View& view, int ndim, const char* expected) {
        if (view.ndim == ndim && view.shape[0] > 0) return;
        throw ValueError(message(name, ": got shape ", ops::shape_of(view), ", expected ", expected));
    };
    check("mask_logits", masks.view, 4, "(N, Q, h, w)");
    check("class_logits", classes.view, 3, "(N, Q, K)");
    const int64_t crops = masks.view.shape[0];
    if (classes.view.shape[0] != crops) {
        throw ValueError(message("class_logits: got ", classes.view.shape[0], " crops in shape ",
                                 ops::shape_of(classes.view), ", expected ", crops, " as in mask_logits ",
                                 ops::shape_of(masks.view)));
    }
    ops::check_sides("size", size[0], size[1]);
    ops::check_sides("whole", whole[0], whole[1]);
    std::vector<char> mask_copy, class_copy;
    make_rows_contiguous(masks.view, mask_copy);
    make_rows_contiguous(classes.view, class_copy);
    std::vector<ops::PostprocessArguments> images;
    for (int64_t i = 0; i < crops; ++i) {
        ops::PostprocessArguments arguments;
        arguments.mask_logits = item(masks.view, i);
        arguments.class_logits = item(classes.view, i);
        arguments.size = {static_cast<int32_t>(size[0]), static_cast<int32_t>(size[1])};
        arguments.threshold = threshold;
        arguments.predict_all_pixels = true;
        arguments.softmax = softmax;
        arguments.rules.by_sum = true;
        arguments.num_threads = num_threads;
        ops::check(arguments);
        check_class_names(class_names, arguments);
        images.push_back(arguments);
    }
    const bool wide = ops::segment_item_size(images[0]) == 2;
    static constinit Recycler label_maps;
    const py::array segments = recycled_array(
        label_maps, wide ? py::dtype::of<uint16_t>() : py::dtype::of<uint8_t>(), {size[0], size[1]});
    void* const labels = const_cast<void*>(segments.data());
    const ops::Crops placed{
        {static_cast<int32_t>(whole[0]), static_cast<int32_t>(whole[1])}, side, std::move(starts)};
    ops::Postprocessed result;
    without_gil([&] { ops::postprocess_crops(images, placed, labels, result); });
    return result_dict(std::move(result), true, segments);
}

py::tuple array_shape(py::object array, const std::string& argument) {
    const Borrowed borrowed =
        borrow(array, argument.c_str(), "a float32 or float16 array in the CPU's memory");
    py::tuple shape(borrowed.view.ndim);
    for (int i = 0; i < borrowed.view.ndim; ++i) shape[i] = borrowed.view.shape[i];
    return shape;
}

}  // namespace

void register_postprocess(py::module_& m) {
    m.def("shape_of", array_shape, py::arg("array"), py::arg("argument"));
    m.def("postprocess", postprocess, py::arg("mask_logits"), py::arg("class_logits"), py::arg("batched"),
          py::arg("sizes"), py::arg("threshold"), py::arg("mask_threshold"), py::arg("use_mask_score"),
          py::arg("predict_all_pixels"), py::arg("softmax"), py::arg("class_names"), py::arg("letterboxes"),
          py::arg("num_threads"), py::arg("min_area") = ops::PostprocessArguments{}.min_area,
          py::arg("rules") = py::dict());
    m.def("postprocess_crops", postprocess_crops, py::arg("mask_logits"), py::arg("class_logits"),
          py::arg("size"), py::arg("whole"), py::arg("side"), py::arg("starts"), py::arg("threshold"),
          py::arg("softmax"), py::arg("class_names"), py::arg("num_threads"));
}

}  // namespace fai
