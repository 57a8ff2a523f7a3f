// cuda/api.h for builds without CUDA.
#include "csrc/core/error.h"
#include "cuda/api.h"

namespace fai::cuda {
namespace {

[[noreturn]] void absent() {
    throw CudaError(
        "fai_fast was built without CUDA; to build it with, install a CUDA toolkit (or set "
        "FAI_FAST_CUDA_FROM_PYPI=1), then in its sources: FAI_FAST_CUDA=ON pip install --force-reinstall "
        "--no-deps . (why it was not: " FAI_FAST_CUDA_REASON ")");  // from cmake/cuda.cmake
}

}  // namespace

bool compiled() noexcept { return false; }
int toolkit_version() noexcept { return 0; }
int driver_version() noexcept { return 0; }
std::vector<Device> devices() { absent(); }
std::shared_ptr<const PinnedMemory> pinned_memory(int, size_t) { absent(); }

struct DeviceGraph::Impl {};
DeviceGraph::DeviceGraph(const GraphSpec&) { absent(); }
DeviceGraph::~DeviceGraph() = default;
const GraphSpec& DeviceGraph::spec() const { absent(); }
uintptr_t DeviceGraph::stream() const { absent(); }
uintptr_t DeviceGraph::images() const { absent(); }
uintptr_t DeviceGraph::mask_logits() const { absent(); }
uintptr_t DeviceGraph::class_logits() const { absent(); }
std::string DeviceGraph::capture(Enqueue) { absent(); }
void DeviceGraph::run_uncaptured(Enqueue) { absent(); }
void DeviceGraph::enqueue_preprocess() { absent(); }
void DeviceGraph::enqueue_postprocess() { absent(); }
void DeviceGraph::adopt(uintptr_t) { absent(); }
void DeviceGraph::forget_engine() noexcept {}
void DeviceGraph::check_idle() const { absent(); }
bool DeviceGraph::reads_pinned() const { absent(); }
bool DeviceGraph::reads_pageable() const { absent(); }
uint8_t* DeviceGraph::staging(int, size_t) { absent(); }
const uint8_t* DeviceGraph::frame_memory(int) const { absent(); }
void DeviceGraph::upload(int, size_t, size_t) { absent(); }
const uint8_t* DeviceGraph::upload_pinned(int, const void*, size_t) { absent(); }
bool DeviceGraph::forked() const noexcept { return false; }
bool DeviceGraph::is_pinned(const void*) const { absent(); }
int DeviceGraph::device_of(const void*) const { absent(); }
void DeviceGraph::wait_for_stream(uintptr_t) { absent(); }
void DeviceGraph::make_stream_wait(uintptr_t) { absent(); }
void DeviceGraph::prepare(const std::vector<DeviceFrame>&) { absent(); }
void DeviceGraph::launch(const DeviceGraph*) { absent(); }
void DeviceGraph::abandon() noexcept {}
bool DeviceGraph::wait(double) { absent(); }
std::vector<std::shared_ptr<const Result>> DeviceGraph::results() { absent(); }
StageTimes DeviceGraph::times() const { absent(); }
const void* DeviceGraph::host_class_logits() const { absent(); }
std::shared_ptr<const DeviceMemory> DeviceGraph::expand(int, const std::vector<Row>&) { absent(); }
void DeviceGraph::run_engine(const Enqueue&, const void*, void*, void*) { absent(); }
size_t DeviceGraph::device_bytes() const { absent(); }
size_t DeviceGraph::pinned_bytes() const { absent(); }
void launch_host_function(uintptr_t, void (*)(void*), void*) { absent(); }
bool enter_device(int) { absent(); }
void leave_device(bool) noexcept {}
int device_of(const void*) { absent(); }
void copy(void*, const void*, size_t) { absent(); }

}  // namespace fai::cuda
