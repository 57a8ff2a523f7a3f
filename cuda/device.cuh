// Owners of what the CUDA runtime hands out. Their destructors ignore errors: at the end of a process the
// driver may be gone before them, and everything with it.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "cuda/check.cuh"

namespace fai::cuda {

// Of everything that is laid out in one piece of memory.
inline constexpr size_t kAlignment = 256;
inline size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Makes a device the calling thread's own for a scope.
class DeviceScope {
  public:
    explicit DeviceScope(int device) {
        check(cudaGetDevice(&before_), "cudaGetDevice");
        if (before_ != device) {
            check(cudaSetDevice(device), "cudaSetDevice");
            changed_ = true;
        }
    }
    ~DeviceScope() {
        if (changed_) cudaSetDevice(before_);
    }
    DeviceScope(const DeviceScope&) = delete;
    DeviceScope& operator=(const DeviceScope&) = delete;

  private:
    int before_ = 0;
    bool changed_ = false;
};

template <class Handle, cudaError_t (*destroy)(Handle)>
class Owner {
  public:
    Owner() = default;
    explicit Owner(Handle handle) : handle_(handle) {}
    Owner(Owner&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    Owner& operator=(Owner&& other) noexcept {
        std::swap(handle_, other.handle_);
        return *this;
    }
    ~Owner() {
        if (handle_) destroy(handle_);
    }
    Handle get() const { return handle_; }
    explicit operator bool() const { return handle_ != nullptr; }

  private:
    Handle handle_ = nullptr;
};

using Stream = Owner<cudaStream_t, cudaStreamDestroy>;
using Event = Owner<cudaEvent_t, cudaEventDestroy>;
using Graph = Owner<cudaGraph_t, cudaGraphDestroy>;
using GraphExec = Owner<cudaGraphExec_t, cudaGraphExecDestroy>;

inline Stream make_stream() {
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    return Stream(stream);
}

inline Event make_event(bool timing) {
    cudaEvent_t event = nullptr;
    const unsigned flags = timing ? cudaEventDefault : cudaEventDisableTiming;
    check(cudaEventCreateWithFlags(&event, flags), "cudaEventCreateWithFlags");
    return Event(event);
}

inline cudaError_t free_device(void* p) { return cudaFree(p); }
inline cudaError_t free_pinned(void* p) { return cudaFreeHost(p); }

// Memory that only grows; what was in it is lost when it does.
template <cudaError_t (*allocate)(void**, size_t), cudaError_t (*release)(void*)>
class Buffer {
  public:
    // True where the memory is new. Nothing may be using the old one.
    bool reserve(size_t bytes) {
        if (bytes <= bytes_) return false;
        memory_ = Owner<void*, release>();
        bytes_ = 0;
        void* p = nullptr;
        check(allocate(&p, bytes), "allocating memory");
        memory_ = Owner<void*, release>(p);
        bytes_ = bytes;
        return true;
    }
    template <class T = uint8_t>
    T* get() const {
        return static_cast<T*>(memory_.get());
    }
    size_t bytes() const { return bytes_; }

  private:
    Owner<void*, release> memory_;
    size_t bytes_ = 0;
};

inline cudaError_t allocate_device(void** p, size_t bytes) { return cudaMalloc(p, bytes); }
inline cudaError_t allocate_pinned(void** p, size_t bytes) {
    const cudaError_t error = cudaHostAlloc(p, bytes, cudaHostAllocPortable | cudaHostAllocMapped);
    if (error != cudaErrorMemoryAllocation) return error;
    cudaGetLastError();
    // explain() would speak of the GPU's memory.
    throw CudaError(message("out of page-locked memory of the host: ", (bytes >> 20) + 1,
                            " MiB were asked for; take a smaller batch_size or frame, or close what else "
                            "uses a GPU"));
}

using DeviceBuffer = Buffer<allocate_device, free_device>;
using PinnedBuffer = Buffer<allocate_pinned, free_pinned>;

template <class... Parameters, class... Arguments>
void launch(cudaStream_t stream, dim3 grid, dim3 block, void (*kernel)(Parameters...),
            Arguments... arguments) {
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.stream = stream;
    check(cudaLaunchKernelEx(&config, kernel, arguments...), "launching a kernel");
}

}  // namespace fai::cuda
