// A frame on its way: captured with the engine's work, launched, waited for.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "cuda/device_graph.cuh"

namespace fai::cuda {
namespace {

int attribute(cudaDeviceAttr which, int device) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
    return value;
}

cudaStream_t stream_of(uintptr_t stream) { return reinterpret_cast<cudaStream_t>(stream); }

}  // namespace

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
