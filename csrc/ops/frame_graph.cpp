#include "csrc/ops/frame_graph.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>
#include <utility>

#include "csrc/core/error.h"
#include "csrc/math/rows.h"
#include "csrc/math/sampling.h"
#include "csrc/ops/checks.h"
#include "csrc/ops/class_pairs.h"
#include "csrc/ops/frame_view.h"

namespace fai::ops {
namespace {

constexpr int64_t kMaxValues = int64_t{1} << 30;
constexpr int32_t kMaxInstanceQueries = 65534;
constexpr int32_t kMaxSemanticQueries = 1024;
constexpr int32_t kMaxSumClasses = 2048;

void check_spec(const cuda::GraphSpec& spec) {
    const auto check_count = [](const char* name, int64_t value, int64_t most) {
        if (value < 1 || value > most) {
            throw ValueError(message(name, ": got ", value, ", expected 1 to ", most));
        }
    };
    check_count("batch", spec.batch, 256);
    check_sides("size", spec.input_size.height, spec.input_size.width);
    check_sides("mask_logits", spec.rows, spec.columns);
    check_count("mask_logits' queries", spec.queries,
                cuda::writes_labels(spec) ? kMaxSemanticQueries : kMaxInstanceQueries);
    check_count("class_logits' columns", spec.class_columns - spec.softmax, int64_t{1} << 24);
    if (spec.rules.by_sum && spec.class_columns - spec.softmax > kMaxSumClasses) {
        throw ValueError(message("class_logits: got ", spec.class_columns - spec.softmax,
                                 " classes with combine='sum' on a GPU, expected at most ", kMaxSumClasses,
                                 "; device='cpu' takes more"));
    }
    check_count("mask_logits' values", int64_t{spec.queries} * spec.rows * spec.columns, kMaxValues);
    check_logits_size(spec.rules, spec.queries);
    check_count("class_logits' values", int64_t{spec.queries} * spec.class_columns, kMaxValues);
}

std::vector<Tap> taps(int32_t inputs, int32_t outputs) {
    const math::Axis axis = math::Axis::stretch(inputs, outputs);
    std::vector<Tap> taps(static_cast<size_t>(outputs));
    for (int32_t i = 0; i < outputs; ++i) taps[i] = math::tap_as_torch(axis, i);
    return taps;
}

void check_finite(const char* name, double value) {
    if (!std::isfinite(value)) throw ValueError(message(name, ": got ", value, ", expected a finite number"));
}

}  // namespace

FrameGraph::FrameGraph(const cuda::GraphSpec& spec, const float (&mean)[3], const float (&stddev)[3])
    : graph_((check_spec(spec), check_normalization(mean, stddev), spec)),
      geometry_(static_cast<size_t>(spec.batch)) {
    std::copy_n(mean, 3, mean_);
    std::copy_n(stddev, 3, stddev_);
}

void FrameGraph::check(FrameRequest& request) const {
    check_rules(graph_.spec().rules, request.use_mask_score);
    request.frame.size = graph_.spec().input_size;
    check_finite("threshold", request.threshold);
    check_finite("mask_threshold", request.mask_threshold);
    // Before anything is copied: what it points to may be no frame at all.
    frame_view_of(request.frame);
    for (int i = 0; request.on_device && i < request.frame.plane_count; ++i) {
        const int device = graph_.device_of(request.frame.planes[i].data);
        if (device != graph_.spec().device) {
            throw ValueError(message(
                "image: got an address ",
                device < 0 ? "outside any GPU's memory" : message("in the memory of CUDA device ", device),
                ", expected memory of device ", graph_.spec().device));
        }
    }
}

void FrameGraph::place_planes(int image, FrameRequest& request) {
    PreprocessArguments& frame = request.frame;
    if (request.on_device || graph_.reads_pageable()) return;
    View& first = frame.planes[0];
    if (frame.plane_count == 1 && is_dense(first) && graph_.is_pinned(first.data)) {
        make_dense(first, graph_.upload_pinned(image, first.data, static_cast<size_t>(dense_bytes(first))));
        return;
    }
    HostFrame& host = host_[static_cast<size_t>(image)];
    host.staging = Staging(frame, staging_);
    host.room = graph_.staging(image, static_cast<size_t>(host.staging.bytes()));
    for (int i = 0; i < frame.plane_count; ++i) {
        make_dense(frame.planes[i], graph_.frame_memory(image) + host.staging.plane_begin(i));
    }
}

cuda::DeviceFrame FrameGraph::describe(int image, const FrameRequest& request) {
    const cuda::GraphSpec& spec = graph_.spec();
    const FrameView view = frame_view_of(request.frame);
    const Placement placement = place(view.size, spec.input_size, request.frame.resize);
    Geometry& geometry = geometry_[image];
    const bool same =
        geometry.known && geometry.frame == view.size && geometry.resize == request.frame.resize;
    if (!same) {
        geometry.known = false;
        geometry.frame = view.size;
        geometry.resize = request.frame.resize;
        geometry.placement = placement;
        geometry.rows = taps(view.size.height, placement.content.height);
        geometry.columns = taps(view.size.width, placement.content.width);
        Size masks{spec.rows, spec.columns};
        const bool letterboxed = request.frame.resize != Resize::stretch;
        MaskAxes axes = letterboxed ? letterboxed_axes(masks, view.size, spec.input_size, placement)
                                    : stretched_axes(masks, view.size);
        geometry.nodes = {masks, 0, 0, masks};
        if (spec.rules.resizes_logits()) {
            geometry.nodes = nodes_of(spec.rules.logits_size, letterboxed, spec.input_size, placement);
            geometry.node_rows = row_taps(geometry.nodes, masks);
            geometry.node_columns = column_taps(geometry.nodes, masks);
            axes = stretched_axes(geometry.nodes.size, view.size);
            // The device has a whole grid, in which the last nodes of the frame are repeated.
            axes.x.inputs = geometry.nodes.grid.width;
            axes.y.inputs = geometry.nodes.grid.height;
        }
        geometry.x = geometry.x_table.build(axes.x, view.size.width, spec.rules.nearest);
        geometry.y = geometry.y_table.build(axes.y, view.size.height, spec.rules.nearest);
    }
    geometry.threshold = request.threshold;
    geometry.use_mask_score = request.use_mask_score;

    cuda::DeviceFrame frame;
    frame.layout = view;
    for (int c = 0; c < 3; ++c) {
        frame.plane[c] = view.plane[c];
        // The CPU reads a packed pixel from its lowest byte on.
        if (view.format == cpu::RowFormat::packed) frame.plane[c] = view.plane[0] + view.shift[c] / 8;
        frame.scale[c] = 1.0f / stddev_[c];
        frame.bias[c] = -mean_[c] * frame.scale[c];
        frame.padding[c] = padding_of(request.frame.resize, mean_[c], stddev_[c]);
    }
    const math::YuvCoefficients yuv = yuv_coefficients(request.frame);
    const float coefficients[6] = {yuv.y, yuv.y0, yuv.rv, yuv.gu, yuv.gv, yuv.bu};
    std::copy_n(coefficients, 6, frame.yuv);
    frame.top = placement.top;
    frame.left = placement.left;
    frame.content = placement.content;
    frame.rows = geometry.rows.data();
    frame.columns = geometry.columns.data();
    frame.nodes = geometry.nodes.size;
    if (spec.rules.resizes_logits()) {
        frame.node_rows = geometry.node_rows.data();
        frame.node_columns = geometry.node_columns.data();
    }
    frame.mask_logit = logit_of(request.mask_threshold);
    frame.size = view.size;
    frame.x = geometry.x;
    frame.y = geometry.y;
    frame.new_tables = !same;
    frame.threshold = request.threshold;
    frame.mask_threshold = request.mask_threshold;
    frame.use_mask_score = request.use_mask_score;
    return frame;
}

void FrameGraph::submit(const std::vector<FrameRequest>& requests, const FrameGraph* after) {
    if (requests.empty() || requests.size() > geometry_.size()) {
        throw ValueError(
            message("images: got ", requests.size(), ", expected 1 to the batch's ", geometry_.size()));
    }
    graph_.check_idle();
    requests_ = requests;
    for (FrameRequest& request : requests_) check(request);
    in_flight_ = 0;
    try {
        start(after);
    } catch (...) {
        graph_.abandon();
        throw;
    }
    for (size_t i = 0; i < requests_.size(); ++i) geometry_[i].known = true;
    in_flight_ = requests_.size();
}

void FrameGraph::start(const FrameGraph* after) {
    const int count = static_cast<int>(requests_.size());
    host_.assign(requests_.size(), HostFrame());
    for (int i = 0; i < count; ++i) place_planes(i, requests_[i]);
    // While those who help with the first frame wake.
    bool prepared = false;
    const auto prepare = [&] {
        if (std::exchange(prepared, true)) return;
        frames_.clear();
        for (int i = 0; i < count; ++i) frames_.push_back(describe(i, requests_[i]));
        graph_.prepare(frames_);
    };
    for (int i = 0; i < count; ++i) {
        const HostFrame& host = host_[i];
        if (!host.room) continue;
        const auto send = [&](int64_t begin, int64_t end) {
            graph_.upload(i, static_cast<size_t>(begin), static_cast<size_t>(end));
        };
        host.staging.copy(host.room, std::ref(prepare), std::ref(send));
    }
    prepare();
    graph_.launch(after ? &after->graph_ : nullptr);
}

View FrameGraph::class_logits(size_t image) const {
    const cuda::GraphSpec& spec = graph_.spec();
    const auto item = static_cast<int64_t>(item_size(spec.class_logits));
    const int64_t row = spec.class_columns * item;
    View view;
    view.data = static_cast<const char*>(graph_.host_class_logits()) +
                static_cast<int64_t>(image) * spec.queries * row;
    view.dtype = spec.class_logits;
    view.ndim = 2;
    view.shape[0] = spec.queries;
    view.shape[1] = spec.class_columns;
    view.strides[0] = row;
    view.strides[1] = item;
    return view;
}

std::vector<FrameResult> FrameGraph::results(int64_t top_k) {
    const cuda::GraphSpec& spec = graph_.spec();
    std::vector<std::shared_ptr<const cuda::Result>> taken = graph_.results();
    std::vector<FrameResult> results;
    for (size_t i = 0; i < taken.size() && i < in_flight_; ++i) {
        const Geometry& geometry = geometry_[i];
        struct Scored {
            float confidence;
            int64_t class_id;
            const cuda::Row* row;
        };
        std::vector<Scored> kept;
        const auto add = [&](const cuda::Row& row, int64_t class_id, double score) {
            if (geometry.use_mask_score) {
                score = math::fused_score(score, static_cast<double>(row.sum) * cuda::kSumUnit,
                                          spec.rules.nearest ? row.nodes : row.area,
                                          spec.rules.mask_score_epsilon());
            }
            if (!math::above(score, geometry.threshold)) return;
            kept.push_back({static_cast<float>(score), class_id, &row});
        };
        const auto rows = std::span(taken[i]->rows(), static_cast<size_t>(taken[i]->count()));
        if (spec.rules.multi_label && !spec.rules.exclusive) {
            // The device has drawn the masks of all queries that a pair may be of.
            row_of_query_.assign(static_cast<size_t>(spec.queries), nullptr);
            for (const cuda::Row& row : rows) row_of_query_[row.query] = &row;
            for (const ClassPair& pair :
                 best_class_pairs(class_logits(i), spec.softmax, geometry.threshold)) {
                const cuda::Row* const row = row_of_query_[pair.query];
                if (row) add(*row, pair.class_id, pair.score);
            }
        } else {
            for (const cuda::Row& row : rows) {
                add(row, row.class_id,
                    spec.rules.by_sum ? math::mean_sum(static_cast<double>(row.sum), row.area)
                    : spec.softmax    ? math::softmax_score(row.best, row.largest, row.total)
                                      : math::sigmoid_score(row.best));
            }
        }
        std::sort(kept.begin(), kept.end(), [](const Scored& a, const Scored& b) {
            if (a.confidence != b.confidence) return a.confidence > b.confidence;
            return a.row->query != b.row->query ? a.row->query < b.row->query : a.class_id < b.class_id;
        });
        if (static_cast<int64_t>(kept.size()) > top_k) kept.resize(static_cast<size_t>(top_k));
        FrameResult result;
        result.size = geometry.frame;
        result.placement = geometry.placement;
        for (const Scored& item : kept) {
            const cuda::Row& row = *item.row;
            result.confidence.push_back(item.confidence);
            result.class_id.push_back(item.class_id);
            result.query.push_back(row.query);
            result.area.push_back(row.area);
            result.boxes.insert(result.boxes.end(), {row.x1, row.y1, row.x2, row.y2});
            result.offsets.push_back(row.offset);
            result.rows.push_back(row);
        }
        result.memory = std::move(taken[i]);
        results.push_back(std::move(result));
    }
    in_flight_ = 0;
    return results;
}

}  // namespace fai::ops
