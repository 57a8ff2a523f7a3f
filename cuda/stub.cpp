// cuda/api.h for builds without CUDA.
#include "csrc/core/error.h"
#include "cuda/api.h"

namespace fai::cuda {
namespace {

[[noreturn]] void absent() {
    throw CudaError(
        "fai_fast was built without CUDA; to build it with, install a CUDA toolkit (or set "
        "FAI_FAST_CUDA_FROM_PYPI=1), then: FAI_FAST_CUDA=ON pip install --no-binary fai-fast fai-fast (why "
        "it was not: " FAI_FAST_CUDA_REASON ")");  // from cmake/cuda.cmake
}

}  // namespace

bool compiled() noexcept { return false; }
int toolkit_version() noexcept { return 0; }
int driver_version() noexcept { return 0; }
std::vector<Device> devices() { absent(); }
std::shared_ptr<const PinnedMemory> pinned_memory(int, size_t) { absent(); }

struct FrameGraph::Impl {};
FrameGraph::FrameGraph(const GraphSpec&) { absent(); }
FrameGraph::~FrameGraph() = default;
const GraphSpec& FrameGraph::spec() const { absent(); }
uintptr_t FrameGraph::stream() const { absent(); }
uintptr_t FrameGraph::images() const { absent(); }
uintptr_t FrameGraph::mask_logits() const { absent(); }
uintptr_t FrameGraph::class_logits() const { absent(); }
std::string FrameGraph::capture(Enqueue) { absent(); }
void FrameGraph::run_uncaptured(Enqueue) { absent(); }
void FrameGraph::enqueue_before() { absent(); }
void FrameGraph::enqueue_after() { absent(); }
void FrameGraph::adopt(uintptr_t) { absent(); }
void FrameGraph::forget_engine() noexcept {}
void FrameGraph::check_idle() const { absent(); }
bool FrameGraph::reads_pinned() const { absent(); }
bool FrameGraph::reads_pageable() const { absent(); }
uint8_t* FrameGraph::staging(int, size_t) { absent(); }
const uint8_t* FrameGraph::frame_memory(int) const { absent(); }
void FrameGraph::upload(int, size_t, size_t) { absent(); }
const uint8_t* FrameGraph::upload_pinned(int, const void*, size_t) { absent(); }
bool FrameGraph::forked() const noexcept { return false; }
bool FrameGraph::is_pinned(const void*) const { absent(); }
int FrameGraph::device_of(const void*) const { absent(); }
void FrameGraph::wait_for_stream(uintptr_t) { absent(); }
void FrameGraph::make_stream_wait(uintptr_t) { absent(); }
void FrameGraph::prepare(const std::vector<Frame>&) { absent(); }
void FrameGraph::launch(const FrameGraph*) { absent(); }
void FrameGraph::abandon() noexcept {}
bool FrameGraph::wait(double) { absent(); }
std::vector<std::shared_ptr<const Result>> FrameGraph::results() { absent(); }
StageTimes FrameGraph::times() const { absent(); }
std::shared_ptr<const DeviceMemory> FrameGraph::expand(int, const std::vector<Row>&) { absent(); }
void FrameGraph::run_engine(const Enqueue&, const void*, void*, void*) { absent(); }
size_t FrameGraph::device_bytes() const { absent(); }
size_t FrameGraph::pinned_bytes() const { absent(); }
void launch_host_function(uintptr_t, void (*)(void*), void*) { absent(); }
bool enter_device(int) { absent(); }
void leave_device(bool) noexcept {}
int device_of(const void*) { absent(); }
void copy(void*, const void*, size_t) { absent(); }

}  // namespace fai::cuda
