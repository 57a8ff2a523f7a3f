// What only the emulator has: faults to inject, orders to choose, counters to read. C++ tests call namespace
// cuda_emulator, Python tests the two C functions (control.py).
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

namespace cuda_emulator {

enum class Driver { present, missing, too_old, without_device };

// When the operations of a stream run, all of it legal on a GPU: lazy, when somebody waits for them; eager,
// when they are enqueued; random, as lazy, but while one stream is waited for the others go on by chance.
enum class Order { lazy, eager, random };

struct Counters {
    std::size_t device_bytes, pinned_bytes;  // live
    std::size_t contexts;                    // ever made, a bit for each device
    std::size_t mallocs;                     // of device and pinned memory, ever
    std::size_t kernels;                     // executed, in graphs or alone
    std::size_t graph_launches, synchronizations;
    std::size_t waits;             // of a stream for an event, outside of captures
    std::size_t copies_to_device;  // executed, in graphs or alone
    std::size_t bytes_to_device, bytes_to_host;
};

void set_driver(Driver driver);
void set_order(Order order);
void set_seed(std::uint64_t seed);
// More live bytes than these: cudaErrorMemoryAllocation.
void set_device_memory(std::size_t bytes);
void set_pinned_memory(std::size_t bytes);
// The next launch of a kernel or graph returns the error; nothing else comes of it.
void fail_next_launch(cudaError_t error);
// The next kernel that runs spoils the context: whoever waits for it, and every call after, gets the error.
void fail_next_kernel(cudaError_t error);
// Clears errors and faults and takes the settings from the environment again; memory and streams stay.
void reset();
Counters counters();

}  // namespace cuda_emulator

extern "C" {
// name is "driver" (values "present", "missing", "too_old", "without_device"), "order" ("lazy", "eager",
// "random"), "seed", "device_memory", "pinned_memory", "fail_next_launch", "fail_next_kernel" (whole
// numbers), "devices" (1 to 8), "integrated", "host_page_tables" (0 or 1: what the device says of itself) or
// "reset" (""). At the first use, and on "reset", the same are read from the environment, as
// FAI_FAST_EMULATOR_DRIVER and so on. Returns 0, or -1 for an unknown name or value.
__attribute__((visibility("default"))) int cuda_emulator_set(const char* name, const char* value);
// A member of Counters by its name; -1 for an unknown name.
__attribute__((visibility("default"))) long long cuda_emulator_get(const char* name);
}
