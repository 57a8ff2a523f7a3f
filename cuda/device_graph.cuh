// What a DeviceGraph holds: a frame's stream, memory and graph.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "cuda/api.h"
#include "cuda/device.cuh"
#include "cuda/device_pool.cuh"
#include "cuda/params.cuh"
#include "cuda/ranges.cuh"
#include "cuda/results.cuh"
#include "cuda/tables.cuh"

namespace fai::cuda {

// The masks of most frames fit; a frame that needs more gets it, and every frame after it.
constexpr int64_t kFirstPayload = int64_t{1} << 20;

inline bool capturing(cudaStream_t stream) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
    return status != cudaStreamCaptureStatusNone;
}

struct DeviceGraph::Impl {
    // Of the frame.
    enum class State {
        idle,       // none, or it failed
        begun,      // its first upload is on the stream, or its parameters
        in_flight,  // launched
        ended,      // waited for
        taken,      // and its results are gone
    };

    GraphSpec spec;
    GraphSpec drawn;  // with the masks that are drawn, which may be resized ones
    Process process;
    int multiprocessors = 0;

    // What the device reads where it is.
    bool reads_pinned = false, reads_pageable = false;

    Stream stream;
    Event began, uploaded, preprocessed, engine_ended, ended, other;
    DeviceBuffer images, mask_logits, class_logits;
    DeviceBuffer resampled;          // semantic: mask logits that were resized
    PinnedBuffer host_class_logits;  // where the rules need them
    DeviceBuffer stuff;              // classes, panoptic

    // One entry per image.
    struct Image {
        DeviceBuffer frame, tables, canvas, segments, winning_sums;
        const uint8_t* frame_memory = nullptr;  // the staging room's, as the device knows it
        PinnedBuffer staging, staged_tables;
        DeviceBuffer scratch;  // counters' user: candidates, queries, kept rows, header, probabilities
        std::unique_ptr<Block> block;
        int64_t payload_bytes = 0;  // of the last frame
    };
    std::vector<Image> image;
    PinnedBuffer params;
    DeviceBuffer device_params, counters;
    std::shared_ptr<BlockPool> pool = std::make_shared<BlockPool>();
    std::shared_ptr<DevicePool> masks;  // of boolean ones on the device
    int64_t payload = kFirstPayload;    // bytes to have ready for masks

    CudaGraph graph;
    CudaGraphExec exec;
    Enqueue engine;  // where nothing was captured

    State state = State::idle;

    ImageParams* host_params() const { return params.get<ImageParams>(); }
    const ImageParams* kernel_params() const { return device_params.get<ImageParams>(); }
    PostprocessLaunch postprocess() const {
        const void* masks = mask_logits.get();
        if (spec.rules.resizes_logits()) masks = resampled.get();
        return {&drawn,
                kernel_params(),
                masks,
                class_logits.get(),
                spec.rules.stuff.empty() ? nullptr : stuff.get<uint8_t>(),
                multiprocessors,
                &spec,
                mask_logits.get(),
                resampled.get<float>()};
    }

    void check_process() const {
        if (process.forked()) {
            throw CudaError(
                "this process was forked after the model was loaded, and CUDA does not survive a fork; load "
                "the model "
                "in the child, or start children with multiprocessing's \"spawn\"");
        }
    }

    // What is laid out in `scratch`.
    size_t candidates_at() const { return 0; }
    size_t queries_at() const { return aligned(sizeof(int32_t) * spec.queries); }
    size_t kept_at() const { return queries_at() + aligned(sizeof(QueryState) * spec.queries); }
    size_t header_at() const { return kept_at() + aligned(sizeof(Row) * labels_of(spec)); }
    size_t probabilities_at() const { return header_at() + kAlignment; }
    // Of nodes for instances, of classes for sums.
    size_t probabilities_bytes() const {
        const auto queries = static_cast<size_t>(spec.queries);
        if (spec.rules.by_sum) return aligned(queries * classes_of(spec) * sizeof(float));
        return writes_labels(spec) ? 0 : aligned(queries * drawn.rows * drawn.columns * sizeof(float));
    }
    size_t classes_at() const { return probabilities_at() + probabilities_bytes(); }
    size_t scratch_bytes() const {
        const size_t more = spec.rules.by_sum ? classes_of(spec) : spec.rules.exclusive ? spec.queries : 0;
        return classes_at() + sizeof(QueryState) * more;
    }
    size_t label_bytes() const { return narrow(spec) ? 1 : 2; }

    void record(const Event& event) {
        const unsigned flags =
            capturing(stream.get()) ? cudaEventRecordExternal : static_cast<unsigned>(cudaEventRecordDefault);
        check(cudaEventRecordWithFlags(event.get(), stream.get(), flags), "cudaEventRecordWithFlags");
    }

    void begin() {
        if (state == State::begun) return;
        check_idle();
        state = State::begun;
        record(began);
    }

    void enqueue_preprocess() {
        const Range range("fai_fast preprocess");
        check(cudaMemcpyAsync(device_params.get(), params.get(), sizeof(ImageParams) * spec.batch,
                              cudaMemcpyHostToDevice, stream.get()),
              "uploading parameters");
        check(cudaMemsetAsync(counters.get(), 0, counters.bytes(), stream.get()), "cudaMemsetAsync");
        record(uploaded);
        launch_preprocess(stream.get(), spec, kernel_params(), images.get());
        record(preprocessed);
    }

    void enqueue_postprocess() {
        const Range range("fai_fast postprocess");
        record(engine_ended);
        launch_postprocess(stream.get(), postprocess());
        if (host_class_logits.bytes() == 0) return;
        check(cudaMemcpyAsync(host_class_logits.get(), class_logits.get(), class_logits.bytes(),
                              cudaMemcpyDeviceToHost, stream.get()),
              "downloading class_logits");
    }

    void instantiate(cudaGraph_t graph) {
        cudaGraphExec_t made = nullptr;
        check(cudaGraphInstantiate(&made, graph, 0), "cudaGraphInstantiate");
        exec = CudaGraphExec(made);
    }

    // Everything that is new about an image's frame.
    void prepare(int index, const DeviceFrame& frame) {
        Image& own = image[index];
        ImageParams& p = host_params()[index];
        p.active = 1;
        p.layout = frame.layout;
        std::copy_n(frame.plane, 3, p.plane);
        p.yuv = {frame.yuv[0], frame.yuv[1], frame.yuv[2], frame.yuv[3], frame.yuv[4], frame.yuv[5]};
        std::copy_n(frame.scale, 3, p.scale);
        std::copy_n(frame.bias, 3, p.bias);
        std::copy_n(frame.padding, 3, p.padding);
        p.top = frame.top;
        p.left = frame.left;
        p.content = frame.content;
        p.threshold = frame.threshold;
        p.mask_threshold = static_cast<float>(frame.mask_threshold);
        p.mask_threshold_reachable = frame.mask_threshold <= 1.0;
        p.mask_logit = frame.mask_logit;
        p.of_logits = spec.rules.of_logits;
        p.nearest = spec.rules.nearest;
        p.mask_score_epsilon = spec.rules.mask_score_epsilon();
        p.nodes = frame.nodes;
        p.use_mask_score = frame.use_mask_score;
        if (frame.new_tables) {
            Tables tables(frame);
            const size_t bytes = tables.bytes();
            own.staged_tables.reserve(bytes);
            own.tables.reserve(bytes);
            tables.write(own.staged_tables.get(), own.tables.get(), &p);
            check(cudaMemcpyAsync(own.tables.get(), own.staged_tables.get(), bytes, cudaMemcpyHostToDevice,
                                  stream.get()),
                  "uploading tables");
        }
        p.size = frame.size;
        uint8_t* const scratch = own.scratch.get();
        p.counters = counters.get<int32_t>() + index * counters_per_image(drawn);
        p.candidates = reinterpret_cast<int32_t*>(scratch + candidates_at());
        p.queries = reinterpret_cast<QueryState*>(scratch + queries_at());
        p.kept = reinterpret_cast<Row*>(scratch + kept_at());
        p.kept_header = reinterpret_cast<Header*>(scratch + header_at());
        p.probabilities = reinterpret_cast<float*>(scratch + probabilities_at());
        p.class_probabilities = p.probabilities;
        p.classes = p.scored = reinterpret_cast<QueryState*>(scratch + classes_at());

        const size_t pixels = static_cast<size_t>(frame.size.height) * frame.size.width;
        int64_t wanted = payload;
        if (spec.predict_all_pixels)
            wanted = own.payload_bytes = static_cast<int64_t>(pixels * label_bytes());
        if (writes_labels(spec)) {
            own.segments.reserve(aligned(pixels * label_bytes()));
            p.segments = own.segments.get();
            if (spec.rules.by_sum) {
                own.winning_sums.reserve(pixels * sizeof(float));
                p.winning_sums = own.winning_sums.get<float>();
            }
        } else {
            const size_t row = static_cast<size_t>(canvas_words(frame.size)) * sizeof(uint64_t);
            own.canvas.reserve(row * frame.size.height * spec.queries);
            p.canvas = own.canvas.get<uint64_t>();
        }
        if (own.block && own.block->payload_bytes < wanted) pool->give_back(std::move(own.block));
        if (!own.block) own.block = pool->take(labels_of(spec), wanted);
        lend(index);
    }

    // Tells the kernels where an image's results go.
    void lend(int index) {
        ImageParams& p = host_params()[index];
        const Block& block = *image[index].block;
        p.header = block.header();
        p.results = block.rows();
        p.payload = block.payload();
        p.payload_words = block.payload_bytes / 8;
    }

    // After an error in the middle of a frame: nothing may be left on the stream that uses what comes next.
    void abandon() {
        cudaStreamSynchronize(stream.get());
        cudaGetLastError();
        state = State::idle;
    }

    void check_image(int index) const {
        if (index < 0 || index >= spec.batch) throw CudaError("an image outside the batch");
    }
    void check_idle() const {
        if (state == State::in_flight) throw CudaError("a frame is in flight; take its result first");
    }
};

}  // namespace fai::cuda
