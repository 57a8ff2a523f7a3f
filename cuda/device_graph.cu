// The owner of a frame's stream, memory and graph.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "cuda/api.h"
#include "cuda/device.cuh"
#include "cuda/device_pool.cuh"
#include "cuda/params.cuh"
#include "cuda/ranges.cuh"
#include "cuda/results.cuh"
#include "cuda/tables.cuh"

namespace fai::cuda {
namespace {

// The masks of most frames fit; a frame that needs more gets it, and every frame after it.
constexpr int64_t kFirstPayload = int64_t{1} << 20;

bool capturing(cudaStream_t stream) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
    return status != cudaStreamCaptureStatusNone;
}

// Where the device finds pinned memory.
const uint8_t* device_pointer(const void* pinned) {
    cudaPointerAttributes attributes = {};
    check(cudaPointerGetAttributes(&attributes, pinned), "cudaPointerGetAttributes");
    return static_cast<const uint8_t*>(attributes.devicePointer);
}

int attribute(cudaDeviceAttr which, int device) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
    return value;
}

cudaStream_t stream_of(uintptr_t stream) { return reinterpret_cast<cudaStream_t>(stream); }

}  // namespace

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

DeviceGraph::DeviceGraph(const GraphSpec& spec) : impl_(new Impl) {
    const std::vector<Device> present = devices();
    if (spec.device < 0 || spec.device >= static_cast<int>(present.size())) {
        throw CudaError(message("device: got ", spec.device, ", expected 0 to ", present.size() - 1,
                                ", as this process sees ", present.size(),
                                present.size() == 1 ? " GPU" : " GPUs"));
    }
    const DeviceScope scope(spec.device);
    Impl& m = *impl_;
    m.spec = m.drawn = spec;
    if (spec.rules.resizes_logits()) {
        m.drawn.rows = spec.rules.logits_size.height;
        m.drawn.columns = spec.rules.logits_size.width;
        m.drawn.mask_logits = DType::f32;
    }
    m.masks = std::make_shared<DevicePool>(spec.device);
    m.multiprocessors = present[spec.device].multiprocessors;
    m.reads_pageable = attribute(cudaDevAttrPageableMemoryAccessUsesHostPageTables, spec.device) != 0;
    m.reads_pinned = m.reads_pageable || attribute(cudaDevAttrIntegrated, spec.device) != 0;
    m.stream = make_stream();
    for (Event* event : {&m.began, &m.uploaded, &m.preprocessed, &m.engine_ended, &m.ended}) {
        *event = make_event(true);
    }
    m.other = make_event(false);

    const auto batch = static_cast<size_t>(spec.batch);
    const size_t pixels = static_cast<size_t>(spec.input_size.height) * spec.input_size.width;
    const size_t nodes = static_cast<size_t>(spec.queries) * spec.rows * spec.columns;
    const size_t classes = static_cast<size_t>(spec.queries) * spec.class_columns;
    m.images.reserve(batch * 3 * pixels * item_size(spec.images));
    m.mask_logits.reserve(batch * nodes * item_size(spec.mask_logits));
    m.class_logits.reserve(batch * classes * item_size(spec.class_logits));
    m.params.reserve(batch * sizeof(ImageParams));
    m.device_params.reserve(batch * sizeof(ImageParams));
    m.counters.reserve(aligned(batch * counters_per_image(m.drawn) * sizeof(int32_t)));
    if (spec.rules.resizes_logits() && writes_labels(spec)) {
        const Size size = spec.rules.logits_size;
        m.resampled.reserve(batch * spec.queries * size.height * size.width * sizeof(float));
    }
    // Rows that compete are chosen on the device.
    if (spec.rules.multi_label && !spec.rules.exclusive) {
        m.host_class_logits.reserve(batch * classes * item_size(spec.class_logits));
    }
    m.image.resize(batch);
    for (Impl::Image& image : m.image) {
        image.scratch.reserve(m.scratch_bytes());
    }
    if (!spec.rules.stuff.empty()) {
        m.stuff.reserve(aligned(spec.rules.stuff.size()));
        check(cudaMemcpyAsync(m.stuff.get(), m.spec.rules.stuff.data(), spec.rules.stuff.size(),
                              cudaMemcpyHostToDevice, m.stream.get()),
              "uploading classes");
    }
    std::memset(m.params.get(), 0, batch * sizeof(ImageParams));
    // What an engine reads before the first frame must be numbers.
    check(cudaMemsetAsync(m.images.get(), 0, m.images.bytes(), m.stream.get()), "cudaMemsetAsync");
    // A frame of nobody's: loads the kernels, which not every way to capture allows.
    m.enqueue_preprocess();
    m.enqueue_postprocess();
    check(cudaStreamSynchronize(m.stream.get()), "starting");
}

DeviceGraph::~DeviceGraph() {
    if (!impl_) return;
    if (impl_->process.forked()) {
        impl_.release();
        return;
    }
    const DeviceScope scope(impl_->spec.device, std::nothrow);
    cudaStreamSynchronize(impl_->stream.get());
    for (Impl::Image& image : impl_->image) {
        if (image.block) impl_->pool->give_back(std::move(image.block));
    }
    impl_.reset();
}

const GraphSpec& DeviceGraph::spec() const { return impl_->spec; }
uintptr_t DeviceGraph::stream() const { return reinterpret_cast<uintptr_t>(impl_->stream.get()); }
uintptr_t DeviceGraph::images() const { return reinterpret_cast<uintptr_t>(impl_->images.get()); }
uintptr_t DeviceGraph::mask_logits() const { return reinterpret_cast<uintptr_t>(impl_->mask_logits.get()); }
uintptr_t DeviceGraph::class_logits() const { return reinterpret_cast<uintptr_t>(impl_->class_logits.get()); }

std::string DeviceGraph::capture(Enqueue enqueue) {
    Impl& m = *impl_;
    m.check_process();
    m.check_idle();
    const DeviceScope scope(m.spec.device);
    // Engines allocate and load kernels at their first run, which a capture does not allow.
    enqueue(stream());
    check(cudaStreamSynchronize(m.stream.get()), "the engine's first run");

    std::string reason;
    check(cudaStreamBeginCapture(m.stream.get(), cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
    try {
        m.enqueue_preprocess();
        enqueue(stream());
        m.enqueue_postprocess();
    } catch (const std::exception& error) {
        reason = error.what();
    }
    cudaGraph_t made = nullptr;
    const cudaError_t status = cudaStreamEndCapture(m.stream.get(), &made);
    CudaGraph graph(made);
    if (status != cudaSuccess) {
        cudaGetLastError();
        if (reason.empty()) reason = explain(status, "capturing the engine");
    }
    if (reason.empty()) {
        try {
            m.instantiate(graph.get());
            m.graph = std::move(graph);
            m.engine = nullptr;
            return "";
        } catch (const CudaError& error) {
            reason = error.what();
        }
    }
    run_uncaptured(std::move(enqueue));
    return reason;
}

void DeviceGraph::run_uncaptured(Enqueue enqueue) {
    Impl& m = *impl_;
    m.check_process();
    m.check_idle();
    m.exec = CudaGraphExec();
    m.graph = CudaGraph();
    m.engine = std::move(enqueue);
}

void DeviceGraph::enqueue_preprocess() {
    impl_->check_process();
    const DeviceScope scope(impl_->spec.device);
    impl_->enqueue_preprocess();
}

void DeviceGraph::enqueue_postprocess() {
    impl_->check_process();
    const DeviceScope scope(impl_->spec.device);
    impl_->enqueue_postprocess();
}

void DeviceGraph::adopt(uintptr_t graph) {
    impl_->check_process();
    impl_->check_idle();
    const DeviceScope scope(impl_->spec.device);
    impl_->instantiate(reinterpret_cast<cudaGraph_t>(graph));
    impl_->graph = CudaGraph();
    impl_->engine = nullptr;
}

void DeviceGraph::forget_engine() noexcept {
    if (impl_->process.forked()) return;
    const DeviceScope scope(impl_->spec.device, std::nothrow);
    impl_->exec = CudaGraphExec();
    impl_->graph = CudaGraph();
    impl_->engine = nullptr;
}

bool DeviceGraph::forked() const noexcept { return impl_->process.forked(); }

void DeviceGraph::check_idle() const {
    impl_->check_process();
    impl_->check_idle();
}

bool DeviceGraph::reads_pinned() const { return impl_->reads_pinned; }
bool DeviceGraph::reads_pageable() const { return impl_->reads_pageable; }

uint8_t* DeviceGraph::staging(int index, size_t bytes) {
    Impl& m = *impl_;
    m.check_process();
    m.check_idle();
    m.check_image(index);
    const DeviceScope scope(m.spec.device);
    Impl::Image& own = m.image[index];
    own.staging.reserve(bytes);
    if (m.reads_pinned) {
        own.frame_memory = device_pointer(own.staging.get());
    } else {
        own.frame.reserve(bytes);
        own.frame_memory = own.frame.get();
    }
    return own.staging.get();
}

const uint8_t* DeviceGraph::frame_memory(int index) const {
    impl_->check_image(index);
    return impl_->image[index].frame_memory;
}

void DeviceGraph::upload(int index, size_t begin, size_t end) {
    Impl& m = *impl_;
    m.check_image(index);
    const DeviceScope scope(m.spec.device);
    m.begin();
    if (m.reads_pinned) return;
    const Range range("fai_fast upload");
    const Impl::Image& own = m.image[index];
    check(cudaMemcpyAsync(own.frame.get() + begin, own.staging.get() + begin, end - begin,
                          cudaMemcpyHostToDevice, m.stream.get()),
          "uploading a frame");
}

const uint8_t* DeviceGraph::upload_pinned(int index, const void* data, size_t bytes) {
    Impl& m = *impl_;
    m.check_process();
    m.check_idle();
    m.check_image(index);
    const DeviceScope scope(m.spec.device);
    m.begin();
    if (m.reads_pinned) return device_pointer(data);
    const Range range("fai_fast upload");
    Impl::Image& own = m.image[index];
    own.frame.reserve(bytes);
    check(cudaMemcpyAsync(own.frame.get(), data, bytes, cudaMemcpyHostToDevice, m.stream.get()),
          "uploading a frame");
    return own.frame.get();
}

bool DeviceGraph::is_pinned(const void* data) const {
    const DeviceScope scope(impl_->spec.device);
    cudaPointerAttributes attributes = {};
    if (cudaPointerGetAttributes(&attributes, data) != cudaSuccess) {
        cudaGetLastError();
        return false;
    }
    return attributes.type == cudaMemoryTypeHost;
}

int DeviceGraph::device_of(const void* data) const {
    const DeviceScope scope(impl_->spec.device);
    return cuda::device_of(data);
}

int device_of(const void* data) {
    cudaPointerAttributes attributes = {};
    if (cudaPointerGetAttributes(&attributes, data) != cudaSuccess) {
        cudaGetLastError();
        return -1;
    }
    const bool device = attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
    return device ? attributes.device : -1;
}

void DeviceGraph::wait_for_stream(uintptr_t stream) {
    Impl& m = *impl_;
    m.check_process();
    const DeviceScope scope(m.spec.device);
    check(cudaEventRecord(m.other.get(), stream_of(stream)), "cudaEventRecord");
    check(cudaStreamWaitEvent(m.stream.get(), m.other.get(), 0), "cudaStreamWaitEvent");
}

void DeviceGraph::make_stream_wait(uintptr_t stream) {
    Impl& m = *impl_;
    m.check_process();
    const DeviceScope scope(m.spec.device);
    check(cudaStreamWaitEvent(stream_of(stream), m.ended.get(), 0), "cudaStreamWaitEvent");
}

void DeviceGraph::prepare(const std::vector<DeviceFrame>& frames) {
    Impl& m = *impl_;
    m.check_process();
    m.check_idle();
    if (frames.empty() || frames.size() > static_cast<size_t>(m.spec.batch)) {
        throw CudaError("more frames than the batch has images");
    }
    const DeviceScope scope(m.spec.device);
    const Range range("fai_fast prepare");
    m.begin();
    for (int index = 0; index < m.spec.batch; ++index) {
        if (index < static_cast<int>(frames.size())) {
            m.prepare(index, frames[index]);
        } else {
            m.host_params()[index].active = 0;
        }
    }
}

void DeviceGraph::launch(const DeviceGraph* after) {
    Impl& m = *impl_;
    m.check_process();
    if (m.state != Impl::State::begun) throw CudaError("no frame was prepared");
    const DeviceScope scope(m.spec.device);
    const Range range("fai_fast launch");
    if (after) {
        // Behind the uploads, which wait for nobody. The event is recorded within the other's graph.
        check(cudaStreamWaitEvent(m.stream.get(), after->impl_->engine_ended.get(), 0),
              "cudaStreamWaitEvent");
    }
    if (m.exec) {
        check(cudaGraphLaunch(m.exec.get(), m.stream.get()), "cudaGraphLaunch");
    } else {
        if (!m.engine) throw CudaError("no engine: call capture() first");
        m.enqueue_preprocess();
        {
            const Range engine("fai_fast engine");
            m.engine(stream());
        }
        m.enqueue_postprocess();
    }
    check(cudaEventRecord(m.ended.get(), m.stream.get()), "cudaEventRecord");
    m.state = Impl::State::in_flight;
}

void DeviceGraph::abandon() noexcept {
    if (impl_->process.forked() || impl_->state != Impl::State::begun) return;
    const DeviceScope scope(impl_->spec.device, std::nothrow);
    impl_->abandon();
}

bool DeviceGraph::wait(double seconds) {
    Impl& m = *impl_;
    m.check_process();
    if (m.state != Impl::State::in_flight) return true;
    const DeviceScope scope(m.spec.device);
    const Range range("fai_fast wait");
    try {
        if (seconds < 0) {
            check(cudaEventSynchronize(m.ended.get()), "running a frame");
        } else {
            using Clock = std::chrono::steady_clock;
            const auto end = Clock::now() + std::chrono::duration<double>(std::min(seconds, 1e6));
            for (;;) {
                const cudaError_t status = cudaEventQuery(m.ended.get());
                if (status == cudaSuccess) break;
                if (status != cudaErrorNotReady) check(status, "running a frame");
                cudaGetLastError();
                if (Clock::now() >= end) return false;
                std::this_thread::sleep_for(std::chrono::microseconds(50));
            }
        }
    } catch (...) {
        m.state = Impl::State::idle;
        throw;
    }
    m.state = Impl::State::ended;
    return true;
}

std::vector<std::shared_ptr<const Result>> DeviceGraph::results() {
    Impl& m = *impl_;
    m.check_process();
    m.check_idle();
    if (m.state != Impl::State::ended) return {};
    m.state = Impl::State::taken;
    const DeviceScope scope(m.spec.device);
    const Range range("fai_fast results");
    bool again = false;
    for (int index = 0; index < m.spec.batch; ++index) {
        if (!m.host_params()[index].active || m.spec.predict_all_pixels) continue;
        Impl::Image& own = m.image[index];
        own.payload_bytes = own.block->header()->words * 8;
        if (own.payload_bytes <= own.block->payload_bytes) continue;
        const int64_t wanted = own.payload_bytes + own.payload_bytes / 4;
        std::unique_ptr<Block> larger = m.pool->take(m.spec.queries, wanted);
        // Not before: what there is no memory for, no later frame should ask for.
        m.payload = std::max(m.payload, wanted);
        *larger->header() = *own.block->header();
        std::copy_n(own.block->rows(), own.block->header()->count, larger->rows());
        std::swap(own.block, larger);
        m.pool->give_back(std::move(larger));
        m.lend(index);
        again = true;
    }
    if (again) {
        check(cudaMemcpyAsync(m.device_params.get(), m.params.get(), sizeof(ImageParams) * m.spec.batch,
                              cudaMemcpyHostToDevice, m.stream.get()),
              "uploading parameters");
        launch_pack(m.stream.get(), m.postprocess());
        check(cudaStreamSynchronize(m.stream.get()), "packing masks");
    }
    std::vector<std::shared_ptr<const Result>> results;
    for (int index = 0; index < m.spec.batch; ++index) {
        if (!m.host_params()[index].active) continue;
        Impl::Image& own = m.image[index];
        if (m.pool->lent() > kPinnedResults) {
            results.push_back(std::make_shared<CopiedResult>(*own.block, own.payload_bytes));
        } else {
            results.push_back(
                std::make_shared<PinnedResult>(m.pool, std::move(own.block), own.payload_bytes));
        }
    }
    return results;
}

const void* DeviceGraph::host_class_logits() const { return impl_->host_class_logits.get(); }

StageTimes DeviceGraph::times() const {
    const Impl& m = *impl_;
    if (m.state != Impl::State::ended && m.state != Impl::State::taken) return {};
    const DeviceScope scope(m.spec.device);
    StageTimes times;
    const auto between = [](const Event& from, const Event& to, float& out) {
        check(cudaEventElapsedTime(&out, from.get(), to.get()), "cudaEventElapsedTime");
    };
    between(m.began, m.uploaded, times.upload);
    between(m.uploaded, m.preprocessed, times.preprocess);
    between(m.preprocessed, m.engine_ended, times.engine);
    between(m.engine_ended, m.ended, times.postprocess);
    return times;
}

std::shared_ptr<const DeviceMemory> DeviceGraph::expand(int index, const std::vector<Row>& rows) {
    Impl& m = *impl_;
    m.check_process();
    m.check_idle();
    m.check_image(index);
    const DeviceScope scope(m.spec.device);
    const Size size = m.host_params()[index].size;
    const size_t pixels = static_cast<size_t>(size.height) * size.width;
    auto memory =
        std::make_shared<PooledMemory>(m.masks, m.spec.device, std::max<size_t>(rows.size() * pixels, 1));
    if (!rows.empty()) {
        launch_expand(m.stream.get(), m.postprocess(), index, size, rows.data(),
                      static_cast<int>(rows.size()), reinterpret_cast<uint8_t*>(memory->address()));
    }
    check(cudaStreamSynchronize(m.stream.get()), "expanding masks");
    return memory;
}

void DeviceGraph::run_engine(const Enqueue& enqueue, const void* images, void* mask_logits,
                             void* class_logits) {
    Impl& m = *impl_;
    m.check_process();
    m.check_idle();
    const DeviceScope scope(m.spec.device);
    const cudaStream_t stream = m.stream.get();
    try {
        check(cudaMemcpyAsync(m.images.get(), images, m.images.bytes(), cudaMemcpyHostToDevice, stream),
              "uploading images");
        enqueue(this->stream());
        check(cudaMemcpyAsync(mask_logits, m.mask_logits.get(), m.mask_logits.bytes(), cudaMemcpyDeviceToHost,
                              stream),
              "downloading mask_logits");
        check(cudaMemcpyAsync(class_logits, m.class_logits.get(), m.class_logits.bytes(),
                              cudaMemcpyDeviceToHost, stream),
              "downloading class_logits");
        check(cudaStreamSynchronize(stream), "running the engine");
    } catch (...) {
        m.abandon();
        throw;
    }
}

size_t DeviceGraph::device_bytes() const {
    const Impl& m = *impl_;
    size_t bytes = m.images.bytes() + m.mask_logits.bytes() + m.class_logits.bytes() +
                   m.device_params.bytes() + m.counters.bytes() + m.resampled.bytes() + m.stuff.bytes() +
                   m.masks->bytes();
    for (const Impl::Image& image : m.image) {
        bytes += image.frame.bytes() + image.tables.bytes() + image.canvas.bytes() + image.segments.bytes() +
                 image.winning_sums.bytes() + image.scratch.bytes();
    }
    return bytes;
}

size_t DeviceGraph::pinned_bytes() const {
    const Impl& m = *impl_;
    size_t bytes = m.params.bytes() + m.host_class_logits.bytes() + m.pool->bytes();
    for (const Impl::Image& image : m.image) bytes += image.staging.bytes() + image.staged_tables.bytes();
    return bytes;
}

}  // namespace fai::cuda
