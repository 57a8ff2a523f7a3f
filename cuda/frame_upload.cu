// How a frame comes into the device's reach.
#include "cuda/device_graph.cuh"

namespace fai::cuda {
namespace {

// Where the device finds pinned memory.
const uint8_t* device_pointer(const void* pinned) {
    cudaPointerAttributes attributes = {};
    check(cudaPointerGetAttributes(&attributes, pinned), "cudaPointerGetAttributes");
    return static_cast<const uint8_t*>(attributes.devicePointer);
}

}  // namespace

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

}  // namespace fai::cuda
