// Owners of what the CUDA runtime hands out. Their destructors ignore errors: at the end of a process the
// driver may be gone before them, and everything with it.
#pragma once

#include <cuda_runtime.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

#include "cuda/check.cuh"

namespace fai::cuda {

// Of everything that is laid out in one piece of memory.
inline constexpr size_t kAlignment = 256;
inline size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Puts a device's primary context on the calling thread's stack of contexts, and takes the topmost off it.
// push_context() throws CudaError.
void push_context(int device);
void pop_context() noexcept;

// Makes a device the calling thread's own for a scope, and leaves no trace: cudaSetDevice(), with which one
// would go back, makes a context on the device of before where there was none, which costs hundreds of
// megabytes there.
class DeviceScope {
  public:
    explicit DeviceScope(int device) {
        int before = 0;
        check(cudaGetDevice(&before), "cudaGetDevice");
        entered_ = true;
        if (before == device) return;
        push_context(device);
        pushed_ = true;
    }
    // For destructors: false where it cannot be done, as when the driver has ended before the process.
    DeviceScope(int device, std::nothrow_t) noexcept {
        int before = 0;
        if (cudaGetDevice(&before) != cudaSuccess) return;
        if (before != device) {
            try {
                push_context(device);
            } catch (const CudaError&) {
                return;
            }
            pushed_ = true;
        }
        entered_ = true;
    }
    ~DeviceScope() {
        if (pushed_) pop_context();
    }
    DeviceScope(const DeviceScope&) = delete;
    DeviceScope& operator=(const DeviceScope&) = delete;
    explicit operator bool() const { return entered_; }

  private:
    bool entered_ = false, pushed_ = false;
};

// The process that an owner belongs to. A child that was forked from it has the owner's addresses, but no
// CUDA to free them with: there, owners let go of what they hold without destroying it.
class Process {
  public:
    bool forked() const noexcept { return getpid() != id_; }

  private:
    pid_t id_ = getpid();
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
using CudaGraph = Owner<cudaGraph_t, cudaGraphDestroy>;
using CudaGraphExec = Owner<cudaGraphExec_t, cudaGraphExecDestroy>;

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
