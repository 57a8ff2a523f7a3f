// What there is to run on, and what the runtime's errors mean.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string_view>

#include "cuda/api.h"
#include "cuda/device.cuh"

namespace fai::cuda {
namespace {

std::string version_text(int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string megabytes(size_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

// What of the driver the runtime does not offer, without linking to it, and without its header: contexts are
// pointers, devices and results are ints.
struct Driver {
    int (*device)(int* handle, int ordinal);
    int (*retain)(void** context, int handle);
    int (*push)(void* context);
    int (*pop)(void** context);
};

template <class Function>
void find(const char* name, Function& function) {
    void* found = nullptr;
#if CUDART_VERSION >= 12050
    // Of all that is asked for here, the version has not changed since long before.
    constexpr unsigned kVersion = 12000;
    check(cudaGetDriverEntryPointByVersion(name, &found, kVersion, cudaEnableDefault, nullptr), name);
#else
    check(cudaGetDriverEntryPoint(name, &found, cudaEnableDefault), name);
#endif
    if (!found) throw CudaError(message("the NVIDIA driver has no ", name, "; update the driver"));
    function = reinterpret_cast<Function>(found);
}

const Driver& driver() {
    static const Driver calls = [] {
        Driver found;
        find("cuDeviceGet", found.device);
        find("cuDevicePrimaryCtxRetain", found.retain);
        find("cuCtxPushCurrent", found.push);
        find("cuCtxPopCurrent", found.pop);
        return found;
    }();
    return calls;
}

void check_driver(int result, const char* what) {
    // The runtime's errors have the driver's numbers.
    if (result != 0) throw CudaError(explain(static_cast<cudaError_t>(result), what));
}

// Errors after which every call gives the same error again, until the process ends.
bool spoils_the_process(cudaError_t error) {
    switch (error) {
        case cudaErrorECCUncorrectable:
        case cudaErrorNvlinkUncorrectable:
        case cudaErrorIllegalAddress:
        case cudaErrorLaunchTimeout:
        case cudaErrorAssert:
        case cudaErrorHardwareStackError:
        case cudaErrorIllegalInstruction:
        case cudaErrorMisalignedAddress:
        case cudaErrorInvalidAddressSpace:
        case cudaErrorInvalidPc:
        case cudaErrorLaunchFailure:
            return true;
        default:
            return false;
    }
}

}  // namespace

bool compiled() noexcept { return true; }
int toolkit_version() noexcept { return CUDART_VERSION; }

int driver_version() noexcept {
    int version = 0;
    if (cudaDriverGetVersion(&version) != cudaSuccess) {
        cudaGetLastError();
        return 0;
    }
    return version;
}

std::string explain(cudaError_t error, const char* what, std::source_location where) {
    switch (error) {
        case cudaErrorInsufficientDriver:
        case cudaErrorCompatNotSupportedOnDevice:
        case cudaErrorStubLibrary: {
            const int driver = driver_version();
            if (driver == 0 || error == cudaErrorStubLibrary) {
                return "no NVIDIA driver is installed here, or this process cannot reach it (in a container: "
                       "start "
                       "it with --gpus all); fai_fast runs on the CPU without one";
            }
            return message("the NVIDIA driver is too old: it supports CUDA ", version_text(driver),
                           ", this build of fai_fast needs ", version_text(CUDART_VERSION),
                           "; update the driver");
        }
        case cudaErrorNoDevice: {
            const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
            return message("there is an NVIDIA driver, but no GPU that this process may use",
                           visible ? message(" (CUDA_VISIBLE_DEVICES is '", visible, "')") : "");
        }
        case cudaErrorInitializationError:
            return "CUDA cannot start in this process: it was forked from one that had used the GPU (start "
                   "it with "
                   "multiprocessing's method 'spawn'), or the driver does not work (what does nvidia-smi "
                   "say?)";
        case cudaErrorMemoryAllocation: {
            size_t free = 0, total = 0;
            std::string room;
            if (cudaMemGetInfo(&free, &total) == cudaSuccess) {
                room = message(" (", megabytes(free), " of ", megabytes(total), " are free)");
            } else {
                cudaGetLastError();
            }
            return message("out of memory on the GPU", room, " while ", what,
                           "; take a smaller im_size, batch_size or frame, or close what else runs there");
        }
        case cudaErrorNoKernelImageForDevice:
        case cudaErrorInvalidDeviceFunction:
        case cudaErrorUnsupportedPtxVersion:
            return message("this build of fai_fast has no code for this GPU (", cudaGetErrorString(error),
                           "); GPUs of compute capability 7.5 and later are supported");
        default: {
            // Not the folder, which is that of the machine that compiled it.
            std::string_view file = where.file_name();
            file.remove_prefix(file.rfind('/') + 1);
            const std::string said = message(what, " failed: ", cudaGetErrorName(error), ", ",
                                             cudaGetErrorString(error), " (", file, ":", where.line(), ")");
            if (!spoils_the_process(error)) return said;
            return message(said, "; nothing can run on the GPU in this process any more: restart it");
        }
    }
}

std::vector<Device> devices() {
    int count = 0;
    check(cudaGetDeviceCount(&count), "looking for GPUs");
    if (count == 0) check(cudaErrorNoDevice, "looking for GPUs");
    std::vector<Device> found;
    for (int index = 0; index < count; ++index) {
        cudaDeviceProp properties;
        check(cudaGetDeviceProperties(&properties, index), "asking for a GPU's properties");
        std::string uuid = "GPU-";
        for (int i = 0; i < 16; ++i) {
            char text[4];
            std::snprintf(text, sizeof text, "%02x", static_cast<unsigned char>(properties.uuid.bytes[i]));
            uuid += text;
            if (i == 3 || i == 5 || i == 7 || i == 9) uuid += '-';
        }
        found.push_back({index, properties.name, properties.major, properties.minor,
                         properties.multiProcessorCount, properties.totalGlobalMem, uuid});
    }
    return found;
}

void launch_host_function(uintptr_t stream, void (*function)(void*), void* context) {
    check(cudaLaunchHostFunc(reinterpret_cast<cudaStream_t>(stream), function, context),
          "cudaLaunchHostFunc");
}

bool enter_device(int device) {
    int before = 0;
    check(cudaGetDevice(&before), "cudaGetDevice");
    if (before == device) return false;
    push_context(device);
    return true;
}

void leave_device(bool entered) noexcept {
    if (entered) pop_context();
}

void push_context(int device) {
    const Driver& calls = driver();
    void* context = nullptr;
    int handle = 0;
    // Kept for the rest of the process, as the runtime keeps it.
    static std::mutex mutex;
    static std::map<int, void*> retained;
    {
        const std::lock_guard lock(mutex);
        const auto found = retained.find(device);
        if (found != retained.end()) {
            context = found->second;
        } else {
            check_driver(calls.device(&handle, device), "cuDeviceGet");
            check_driver(calls.retain(&context, handle), "cuDevicePrimaryCtxRetain");
            retained.emplace(device, context);
        }
    }
    check_driver(calls.push(context), "cuCtxPushCurrent");
}

void pop_context() noexcept {
    void* popped = nullptr;
    // A context was pushed, so that the calls are known.
    driver().pop(&popped);
}

void copy(void* to, const void* from, size_t bytes) {
    check(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "cudaMemcpy");
}

}  // namespace fai::cuda
