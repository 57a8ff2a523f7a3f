#include "csrc/ops/postprocess.h"

#include <cmath>

#include "csrc/core/error.h"
#include "csrc/core/parallel.h"
#include "csrc/cpu/kernels.h"
#include "csrc/math/panoptic.h"
#include "csrc/ops/checks.h"
#include "csrc/ops/queries.h"

namespace fai::ops {
namespace {

void check_logits(const char* name, const View& view, int ndim, const char* expected) {
    if (view.dtype == DType::u8) {
        throw TypeError(message(name, ": got dtype uint8, expected float32 or float16"));
    }
    if (view.ndim != ndim) {
        throw ValueError(message(name, ": got shape ", shape_of(view), ", expected ", expected));
    }
}

void check_values(const char* name, const View& view, int64_t values) {
    constexpr int64_t kMaxValues = int64_t{1} << 30;
    if (values > kMaxValues) {
        throw ValueError(message(name, ": got ", values, " values in shape ", shape_of(view),
                                 ", expected at most ", kMaxValues));
    }
}

}  // namespace

void check_rows(const char* name, const View& view) {
    const auto item = static_cast<int64_t>(item_size(view.dtype));
    const int last = view.ndim - 1;
    bool usable = view.shape[last] == 1 || view.strides[last] == item;
    for (int i = 0; i < last; ++i) usable = usable && view.strides[i] % item == 0;
    if (!usable)
        throw ValueError(message(name, ": got rows that are not contiguous, expected contiguous ones"));
}

void write_rows(const std::vector<ScoredQuery>& rows, Postprocessed& result) {
    for (const ScoredQuery& row : rows) {
        result.confidence.push_back(static_cast<float>(row.score));
        result.class_id.push_back(row.class_id);
        result.query.push_back(row.index);
        result.area.push_back(row.region.area);
        result.boxes.insert(result.boxes.end(), {row.region.x1, row.region.y1, row.region.x2, row.region.y2});
    }
}

void check(const PostprocessArguments& arguments) {
    const View& masks = arguments.mask_logits;
    const View& classes = arguments.class_logits;
    check_logits("mask_logits", masks, 3, "(Q, h, w) or (1, Q, h, w)");
    check_logits("class_logits", classes, 2, "(Q, K) or (1, Q, K)");
    check_sides("size", arguments.size.height, arguments.size.width);
    check_sides("mask_logits", masks.shape[1], masks.shape[2]);
    constexpr int64_t kMaxQueries = 65534;
    if (masks.shape[0] < 1 || masks.shape[0] > kMaxQueries) {
        throw ValueError(message("mask_logits: got ", masks.shape[0], " queries in shape ", shape_of(masks),
                                 ", expected 1 to ", kMaxQueries));
    }
    if (classes.shape[0] != masks.shape[0]) {
        throw ValueError(message("class_logits: got ", classes.shape[0], " queries in shape ",
                                 shape_of(classes), ", expected ", masks.shape[0], " as in mask_logits ",
                                 shape_of(masks)));
    }
    const int64_t least = arguments.softmax ? 2 : 1;
    if (classes.shape[1] < least || classes.shape[1] > (1 << 24)) {
        throw ValueError(message("class_logits: got ", classes.shape[1], " columns in shape ",
                                 shape_of(classes), ", expected at least ", least,
                                 arguments.softmax ? " (classes and 'no object')" : " (classes)"));
    }
    check_values("mask_logits", masks, masks.shape[0] * masks.shape[1] * masks.shape[2]);
    check_values("class_logits", classes, classes.shape[0] * classes.shape[1]);
    if (!std::isfinite(arguments.threshold)) {
        throw ValueError(message("threshold: got ", arguments.threshold, ", expected a finite number"));
    }
    if (!std::isfinite(arguments.mask_threshold)) {
        throw ValueError(
            message("mask_threshold: got ", arguments.mask_threshold, ", expected a finite number"));
    }
    check_rules(arguments.rules, arguments.use_mask_score);
    check_logits_size(arguments.rules, arguments.mask_logits.shape[0]);
    if (arguments.letterboxed) {
        const Placement& at = arguments.placement;
        const bool inside = at.top >= 0 && at.left >= 0 && at.content.height >= 1 && at.content.width >= 1 &&
                            static_cast<int64_t>(at.top) + at.content.height <= arguments.tensor.height &&
                            static_cast<int64_t>(at.left) + at.content.width <= arguments.tensor.width;
        if (!inside) {
            throw ValueError(message("letterbox: got a content of ", at.content.height, " x ",
                                     at.content.width, " at (", at.top, ", ", at.left,
                                     "), expected it inside the input of ", arguments.tensor.height, " x ",
                                     arguments.tensor.width));
        }
    }
}

void check_rules(const Rules& rules, bool use_mask_score) {
    if (rules.panoptic && use_mask_score) {
        throw ValueError(
            "use_mask_score: got True with panoptic, expected False: a segment's confidence is its class "
            "score");
    }
    if (rules.exclusive && use_mask_score) {
        throw ValueError(
            "use_mask_score: got True with overlap_threshold, expected False: an instance that competes for "
            "its "
            "pixels has its class score as confidence");
    }
    if (rules.by_sum && use_mask_score) {
        throw ValueError(
            "use_mask_score: got True with combine='sum', expected False: a class's confidence is its mean "
            "sum");
    }
    if (rules.by_sum && rules.of_logits) {
        throw ValueError(
            "resampling.of: got 'logits' with combine='sum', expected 'probabilities': sums are resized, not "
            "masks");
    }
}

int segment_item_size(const PostprocessArguments& arguments) {
    const int64_t labels = arguments.rules.by_sum ? arguments.class_logits.shape[1] - arguments.softmax
                                                  : arguments.mask_logits.shape[0];
    return labels <= 255 ? 1 : 2;
}

void postprocess(const PostprocessArguments& arguments, void* segments, Postprocessed& result) {
    check(arguments);
    check_rows("mask_logits", arguments.mask_logits);
    check_rows("class_logits", arguments.class_logits);
    const MaskLogits logits = mask_logits_of(arguments.mask_logits);
    const cpu::Kernels& kernels = cpu::kernels();
    const int threads = resolve_threads(arguments.num_threads);
    std::vector<ScoredQuery> queries;
    if (!arguments.rules.by_sum) queries = score_queries(arguments, kernels);
    if (arguments.rules.by_sum) {
        draw_by_sum(arguments, logits, kernels, threads, queries, segments);
    } else if (arguments.rules.panoptic) {
        std::erase_if(queries, [&](const ScoredQuery& query) {
            return !math::competes(query.has_class, query.score, arguments.threshold);
        });
        draw_panoptic(arguments, logits, kernels, threads, queries, segments);
    } else if (arguments.rules.exclusive) {
        choose_instances(arguments, queries);
        draw_exclusive(arguments, logits, kernels, threads, queries, result);
    } else if (arguments.predict_all_pixels) {
        draw_semantic(arguments, logits, kernels, threads, queries, segments);
    } else {
        draw_instances(arguments, logits, kernels, threads, queries, result);
    }
    write_rows(queries, result);
}

}  // namespace fai::ops
