// Device memory of boolean masks: lent, and used again when its owner lets go.
#pragma once

#include <algorithm>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "cuda/api.h"
#include "cuda/device.cuh"

namespace fai::cuda {

// Buffers that nobody holds. Outlives the graph while memory of it is lent.
class DevicePool {
  public:
    explicit DevicePool(int device) : device_(device) {}
    ~DevicePool() {
        const DeviceScope scope(device_, std::nothrow);
        if (scope) free_.clear();
        // Without the device there is nothing to free with.
        for (DeviceBuffer& buffer : free_) new DeviceBuffer(std::move(buffer));
    }
    DevicePool(const DevicePool&) = delete;
    DevicePool& operator=(const DevicePool&) = delete;

    // At least `bytes`; the device must be the calling thread's.
    DeviceBuffer take(size_t bytes) {
        DeviceBuffer buffer;
        {
            const std::lock_guard lock(mutex_);
            const auto fits = [&](const DeviceBuffer& free) { return free.bytes() >= bytes; };
            const auto found = std::find_if(free_.begin(), free_.end(), fits);
            if (found != free_.end()) {
                buffer = std::move(*found);
                free_.erase(found);
            } else {
                // Too small for what is asked for now, and so for what comes.
                free_.clear();
            }
        }
        // Who held it may have left work on a stream that nobody here knows, which still reads it: freeing
        // waits for that, and so must this. Not while some stream is captured; then it is freed like any
        // other.
        if (buffer.bytes() != 0 && cudaDeviceSynchronize() != cudaSuccess) {
            cudaGetLastError();
            buffer = DeviceBuffer();
        }
        // A few masks more in the next frame should not need another.
        if (buffer.bytes() == 0) buffer.reserve(bytes + bytes / 4);
        return buffer;
    }

    void give_back(DeviceBuffer buffer) noexcept {
        const std::lock_guard lock(mutex_);
        if (free_.size() < kKept) free_.push_back(std::move(buffer));
    }

    // Bytes that are held, but not lent.
    size_t bytes() const {
        const std::lock_guard lock(mutex_);
        size_t bytes = 0;
        for (const DeviceBuffer& buffer : free_) bytes += buffer.bytes();
        return bytes;
    }

  private:
    // One is looked at while the next frame's is made.
    static constexpr size_t kKept = 2;

    int device_;
    mutable std::mutex mutex_;
    std::vector<DeviceBuffer> free_;
};

class PooledMemory final : public DeviceMemory {
  public:
    PooledMemory(std::shared_ptr<DevicePool> pool, int device, size_t bytes)
        : pool_(std::move(pool)), memory_(pool_->take(bytes)), device_(device) {}
    ~PooledMemory() override {
        if (process_.forked()) {
            // The pool too: it may have no other owner left.
            new std::shared_ptr<DevicePool>(std::move(pool_));
            new DeviceBuffer(std::move(memory_));
            return;
        }
        const DeviceScope scope(device_, std::nothrow);
        if (scope) {
            pool_->give_back(std::move(memory_));
            memory_ = DeviceBuffer();
        }
    }
    uintptr_t address() const override { return reinterpret_cast<uintptr_t>(memory_.get()); }

  private:
    std::shared_ptr<DevicePool> pool_;
    DeviceBuffer memory_;
    int device_;
    Process process_;
};

}  // namespace fai::cuda
