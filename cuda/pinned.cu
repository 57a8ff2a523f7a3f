// Memory of the host's that devices copy from directly, for whoever fills it.
#include <cstring>
#include <new>

#include "cuda/api.h"
#include "cuda/device.cuh"

namespace fai::cuda {
namespace {

class OwnedPinned final : public PinnedMemory {
  public:
    OwnedPinned(int device, size_t bytes) : device_(device) {
        memory_.reserve(bytes);
        // Not what another frame has left there.
        std::memset(memory_.get(), 0, bytes);
    }
    ~OwnedPinned() override {
        if (process_.forked()) {
            new PinnedBuffer(std::move(memory_));
            return;
        }
        const DeviceScope scope(device_, std::nothrow);
        if (scope) memory_ = PinnedBuffer();
    }
    void* address() const override { return memory_.get(); }

  private:
    PinnedBuffer memory_;
    int device_;
    Process process_;
};

}  // namespace

std::shared_ptr<const PinnedMemory> pinned_memory(int device, size_t bytes) {
    const DeviceScope scope(device);
    return std::make_shared<OwnedPinned>(device, bytes);
}

}  // namespace fai::cuda
