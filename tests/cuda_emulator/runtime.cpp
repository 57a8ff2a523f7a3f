// Memory, streams, events and graphs of the emulated devices. Everything happens under one lock, in the
// thread that waits for it.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "cuda_runtime.h"
#include "emulator.h"
#include "execution.h"

#if defined(__SANITIZE_ADDRESS__)
#define CUDA_EMULATOR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUDA_EMULATOR_ASAN 1
#endif
#endif
#ifdef CUDA_EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#endif

using cuda_emulator::Counters;
using cuda_emulator::Driver;
using cuda_emulator::Kernel;
using cuda_emulator::Order;
using Clock = std::chrono::steady_clock;

namespace {

constexpr std::size_t guard_bytes = 256, alignment = 256;
constexpr unsigned char fresh = 0xa5, guard = 0xbd, freed = 0xdd;
constexpr int runtime_version = CUDART_VERSION, old_version = 11040;
constexpr std::size_t total_memory = std::size_t{16} << 30;
constexpr int shared_bytes = 48 * 1024, multiprocessors = 8;

// One recording of an event.
struct Mark {
    CUstream_st* stream;
    bool done = false;
    Clock::time_point time{};
};

struct Copy {
    void* dst;
    std::size_t dpitch;
    const void* src;
    std::size_t spitch, width, height;
    cudaMemcpyKind kind;

    std::size_t span(std::size_t pitch) const { return pitch * (height - 1) + width; }
    std::size_t dst_bytes() const { return span(dpitch); }
    std::size_t src_bytes() const { return span(spitch); }
};

struct Capture {
    CUstream_st* origin;
    cudaStreamCaptureMode mode;
    std::thread::id thread;
    unsigned long long id;
    CUgraph_st* graph;
    bool invalid = false;
};

using Event = std::shared_ptr<CUevent_st>;

enum class Place { device, pinned, registered, pageable };

// What an instantiated graph does in place of one node; copied when it changes, since launches may be
// pending.
struct Step {
    cudaGraphNodeType type;
    std::vector<std::size_t> after;
    std::function<void()> run;
    Copy copy;
    Event event;
    bool enabled = true;
    Place to = Place::pageable, from = Place::pageable;  // of the copy, when the graph was instantiated
};

}  // namespace

struct CUstream_st {
    int device = 0;
    unsigned flags = 0;
    int priority = 0;
    std::deque<std::function<void()>> pending;
    std::shared_ptr<Capture> capture;
    std::vector<cudaGraphNode_t> frontier;  // what the next captured operation comes after
};

struct CUevent_st {
    int device;
    unsigned flags;
    std::shared_ptr<Mark> mark;
    std::shared_ptr<Capture> capture;  // where it was last recorded, if that was a capture
    std::vector<cudaGraphNode_t> frontier;
};

struct CUgraphNode_st {
    cudaGraphNodeType type;
    std::vector<cudaGraphNode_t> after;
    std::function<void()> run;
    Copy copy;
    Event event;
};

struct CUgraph_st {
    std::vector<std::unique_ptr<CUgraphNode_st>> nodes;
};

struct CUgraphExec_st {
    std::unordered_map<cudaGraphNode_t, std::size_t> index;
    std::shared_ptr<const std::vector<Step>> steps;
    std::shared_ptr<Mark> last;  // launches of one graph follow each other
};

namespace {

struct Allocation {
    std::size_t size;
    Place place;
    int device;
};

template <typename T>
using Owned = std::unordered_map<const T*, std::shared_ptr<T>>;

template <typename T>
std::shared_ptr<T> owned(const Owned<T>& all, const T* handle) {
    const auto found = all.find(handle);
    return found == all.end() ? nullptr : found->second;
}

// The device that cudaSetDevice chose, and the primary contexts that the thread has pushed, each as its
// device.
thread_local int chosen_device = 0;
thread_local std::vector<int> pushed_contexts;

int current_device() { return pushed_contexts.empty() ? chosen_device : pushed_contexts.back(); }

struct Runtime {
    std::mutex mutex;
    Driver driver = Driver::present;
    Order order = Order::lazy;
    std::size_t device_limit = total_memory, pinned_limit = total_memory;
    bool integrated = false, host_page_tables = false;
    int devices = 1;
    cudaError_t next_launch = cudaSuccess, next_kernel = cudaSuccess;
    cudaError_t sticky = cudaSuccess;  // the context is spoilt
    Counters counters{};
    std::map<std::uintptr_t, Allocation> allocations;
    CUstream_st legacy;
    Owned<CUstream_st> streams;
    Owned<CUevent_st> events;
    Owned<CUgraph_st> graphs;
    Owned<CUgraphExec_st> execs;
    std::vector<std::shared_ptr<Capture>> captures;
    unsigned long long next_capture = 1;

    Runtime() { read_environment(); }

    void read_environment();
    int set(const std::string& name, const std::string& value);

    // What needs a context makes the current device's.
    int use_device() {
        counters.contexts |= std::size_t{1} << current_device();
        return current_device();
    }

    cudaError_t available() const {
        if (driver == Driver::missing || driver == Driver::too_old) return cudaErrorInsufficientDriver;
        if (driver == Driver::without_device) return cudaErrorNoDevice;
        return sticky;
    }
    void spoil(cudaError_t error) {
        if (sticky == cudaSuccess) sticky = error;
    }

    // Memory
    cudaError_t allocate(void** pointer, std::size_t size, Place place);
    cudaError_t release(void* pointer, bool device);
    void check_guards(std::uintptr_t address, const Allocation& allocation);
    void check_guards() {
        for (const auto& [address, allocation] : allocations) check_guards(address, allocation);
    }
    const std::pair<const std::uintptr_t, Allocation>* find(const void* pointer) const;
    Place place(const void* pointer) const {
        const auto* found = find(pointer);
        return found ? found->second.place : Place::pageable;
    }
    bool within(const void* pointer, std::size_t bytes) const;
    cudaError_t resolve(Copy& copy) const;
    void execute(const Copy& copy);

    // Streams
    CUstream_st* stream(cudaStream_t handle);
    void run_one(CUstream_st& stream);
    void finish(CUstream_st& stream);
    CUstream_st* busy(const Mark& mark) const;
    void finish(const Mark& mark);
    void finish_all(bool blocking_only);
    cudaError_t enqueue(CUstream_st& stream, std::function<void()> work);
    void execute(const Kernel& kernel);

    // Capture
    cudaError_t capturing(CUstream_st& stream) const {
        return stream.capture->invalid ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
    }
    CUgraphNode_st* add_node(CUstream_st& stream, cudaGraphNodeType type);
    cudaError_t invalidate(CUstream_st& stream) {
        if (stream.capture->invalid) return cudaErrorStreamCaptureInvalidated;
        stream.capture->invalid = true;
        return cudaErrorStreamCaptureUnsupported;
    }
    cudaError_t unsafe();
    cudaError_t legacy_stream();
    cudaError_t submit(cudaStream_t handle, cudaGraphNodeType type, std::function<void()> work);
    void end(const std::shared_ptr<Capture>& capture);
    bool joined(const Capture& capture, const CUstream_st& stream) const;

    cudaGraphNode_t node(cudaGraphNode_t handle) const;
    void execute(const std::vector<Step>& steps, const std::vector<std::shared_ptr<Mark>>& marks);
};

Runtime& runtime() {
    static Runtime& instance = *new Runtime;  // never destroyed: programs call CUDA while they exit
    return instance;
}

thread_local cudaError_t last_error = cudaSuccess;
thread_local bool in_host_function = false;

cudaError_t note(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

// Runs an API function under the lock, on a device that is there and sound.
template <typename Body>
cudaError_t call(Body body) {
    if (in_host_function) return note(cudaErrorNotPermitted);
    Runtime& r = runtime();
    const std::lock_guard lock(r.mutex);
    if (const cudaError_t error = r.available(); error != cudaSuccess) return note(error);
    return note(body(r));
}

template <typename T>
T* add(Owned<T>& all, std::shared_ptr<T> item) {
    T* handle = item.get();
    all.emplace(handle, std::move(item));
    return handle;
}

// --- Settings ---

bool number(const std::string& text, std::uint64_t& value) {
    if (text.empty() || text.find_first_not_of("0123456789") != std::string::npos) return false;
    value = std::strtoull(text.c_str(), nullptr, 10);
    return true;
}

template <typename E>
bool choose(const std::string& value, std::initializer_list<std::pair<const char*, E>> names, E& chosen) {
    for (const auto& [name, e] : names)
        if (value == name) return chosen = e, true;
    return false;
}

int Runtime::set(const std::string& name, const std::string& value) {
    bool known = true;
    std::uint64_t n = 0;
    if (name == "driver")
        known = choose(value,
                       {{"present", Driver::present},
                        {"missing", Driver::missing},
                        {"too_old", Driver::too_old},
                        {"without_device", Driver::without_device}},
                       driver);
    else if (name == "order")
        known =
            choose(value, {{"lazy", Order::lazy}, {"eager", Order::eager}, {"random", Order::random}}, order);
    else if (!number(value, n))
        return -1;
    else if (name == "seed")
        cuda_emulator::chance().seed(n);
    else if (name == "device_memory")
        device_limit = n;
    else if (name == "pinned_memory")
        pinned_limit = n;
    else if (name == "devices") {
        known = n >= 1 && n <= 8;
        if (known) devices = static_cast<int>(n);
    } else if (name == "integrated")
        integrated = n != 0;
    else if (name == "host_page_tables")
        host_page_tables = n != 0;
    else if (name == "fail_next_launch")
        next_launch = static_cast<cudaError_t>(n);
    else if (name == "fail_next_kernel")
        next_kernel = static_cast<cudaError_t>(n);
    else
        known = false;
    return known ? 0 : -1;
}

void Runtime::read_environment() {
    driver = Driver::present;
    order = Order::lazy;
    device_limit = pinned_limit = total_memory;
    integrated = host_page_tables = false;
    devices = 1;
    next_launch = next_kernel = sticky = cudaSuccess;
    cuda_emulator::chance().seed(1);
    for (const char* name : {"driver", "order", "seed", "device_memory", "pinned_memory", "devices",
                             "integrated", "host_page_tables", "fail_next_launch", "fail_next_kernel"}) {
        std::string variable = std::string("FAI_FAST_EMULATOR_") + name;
        std::transform(variable.begin(), variable.end(), variable.begin(),
                       [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
        const char* value = std::getenv(variable.c_str());
        if (value && set(name, value) != 0) {
            std::fprintf(stderr, "CUDA emulator: %s is '%s', which is no value for it; see emulator.h\n",
                         variable.c_str(), value);
            std::abort();
        }
    }
}

// --- Memory ---

std::size_t rounded(std::size_t size) { return (size + alignment - 1) / alignment * alignment; }

cudaError_t Runtime::allocate(void** pointer, std::size_t size, Place place) {
    if (!pointer) return cudaErrorInvalidValue;
    *pointer = nullptr;
    if (size == 0) return cudaSuccess;
    std::size_t& live = place == Place::device ? counters.device_bytes : counters.pinned_bytes;
    const std::size_t limit = place == Place::device ? device_limit : pinned_limit;
    if (live > limit || size > limit - live) return cudaErrorMemoryAllocation;
    void* raw = std::aligned_alloc(alignment, guard_bytes + rounded(size) + guard_bytes);
    if (!raw) return cudaErrorMemoryAllocation;
    auto* begin = static_cast<unsigned char*>(raw);
    unsigned char* data = begin + guard_bytes;
    std::memset(begin, guard, guard_bytes + rounded(size) + guard_bytes);
    std::memset(data, fresh, size);
#ifdef CUDA_EMULATOR_ASAN
    ASAN_POISON_MEMORY_REGION(begin, guard_bytes);
    ASAN_POISON_MEMORY_REGION(data + size, rounded(size) - size + guard_bytes);
#endif
    allocations.emplace(reinterpret_cast<std::uintptr_t>(data), Allocation{size, place, use_device()});
    live += size;
    ++counters.mallocs;
    *pointer = data;
    return cudaSuccess;
}

void Runtime::check_guards([[maybe_unused]] std::uintptr_t address,
                           [[maybe_unused]] const Allocation& allocation) {
#ifndef CUDA_EMULATOR_ASAN
    if (allocation.place == Place::registered) return;
    const auto* data = reinterpret_cast<const unsigned char*>(address);
    const auto sound = [](const unsigned char* from, const unsigned char* to) {
        return std::all_of(from, to, [](unsigned char byte) { return byte == guard; });
    };
    const char* side = nullptr;
    if (!sound(data - guard_bytes, data)) side = "before";
    const unsigned char* end = data + allocation.size;
    if (!sound(end, data + rounded(allocation.size) + guard_bytes)) side = "after";
    if (!side || sticky != cudaSuccess) return;
    std::fprintf(stderr, "CUDA emulator: something wrote %s the %zu bytes of %s memory at %p\n", side,
                 allocation.size, allocation.place == Place::device ? "device" : "pinned",
                 static_cast<const void*>(data));
    spoil(cudaErrorIllegalAddress);
#endif
}

cudaError_t Runtime::release(void* pointer, bool device) {
    const auto found = allocations.find(reinterpret_cast<std::uintptr_t>(pointer));
    if (found == allocations.end() || found->second.place != (device ? Place::device : Place::pinned))
        return cudaErrorInvalidValue;
    check_guards(found->first, found->second);
    (device ? counters.device_bytes : counters.pinned_bytes) -= found->second.size;
    auto* begin = static_cast<unsigned char*>(pointer) - guard_bytes;
#ifdef CUDA_EMULATOR_ASAN
    ASAN_UNPOISON_MEMORY_REGION(begin, guard_bytes + rounded(found->second.size) + guard_bytes);
#endif
    std::memset(pointer, freed, found->second.size);
    allocations.erase(found);
    std::free(begin);
    return sticky;
}

const std::pair<const std::uintptr_t, Allocation>* Runtime::find(const void* pointer) const {
    const auto address = reinterpret_cast<std::uintptr_t>(pointer);
    auto next = allocations.upper_bound(address);
    if (next == allocations.begin()) return nullptr;
    --next;
    return address - next->first < next->second.size ? &*next : nullptr;
}

bool Runtime::within(const void* pointer, std::size_t bytes) const {
    const auto* found = find(pointer);
    return found && bytes <= found->second.size - (reinterpret_cast<std::uintptr_t>(pointer) - found->first);
}

// Checks both ends, and replaces cudaMemcpyDefault by what it stands for.
cudaError_t Runtime::resolve(Copy& copy) const {
    if (copy.width == 0 || copy.height == 0) return cudaSuccess;
    if (copy.dpitch < copy.width || copy.spitch < copy.width) return cudaErrorInvalidPitchValue;
    if (!copy.dst || !copy.src) return cudaErrorInvalidValue;
    const bool to_device = place(copy.dst) == Place::device, from_device = place(copy.src) == Place::device;
    switch (copy.kind) {
        case cudaMemcpyDefault:
            copy.kind = from_device ? (to_device ? cudaMemcpyDeviceToDevice : cudaMemcpyDeviceToHost)
                                    : (to_device ? cudaMemcpyHostToDevice : cudaMemcpyHostToHost);
            break;
        case cudaMemcpyHostToHost:
            if (to_device || from_device) return cudaErrorInvalidValue;
            break;
        case cudaMemcpyHostToDevice:
            if (!to_device || from_device) return cudaErrorInvalidValue;
            break;
        case cudaMemcpyDeviceToHost:
            if (to_device || !from_device) return cudaErrorInvalidValue;
            break;
        case cudaMemcpyDeviceToDevice:
            if (!to_device || !from_device) return cudaErrorInvalidValue;
            break;
        default:
            return cudaErrorInvalidMemcpyDirection;
    }
    if (place(copy.dst) != Place::pageable && !within(copy.dst, copy.dst_bytes()))
        return cudaErrorInvalidValue;
    if (place(copy.src) != Place::pageable && !within(copy.src, copy.src_bytes()))
        return cudaErrorInvalidValue;
    return cudaSuccess;
}

void Runtime::execute(const Copy& copy) {
    if (Copy again = copy; resolve(again) != cudaSuccess) {
        std::fprintf(stderr, "CUDA emulator: a copy runs after its memory was freed (from %p to %p)\n",
                     copy.src, copy.dst);
        return spoil(cudaErrorIllegalAddress);
    }
    for (std::size_t row = 0; row < copy.height; ++row)
        std::memmove(static_cast<char*>(copy.dst) + row * copy.dpitch,
                     static_cast<const char*>(copy.src) + row * copy.spitch, copy.width);
    if (copy.kind == cudaMemcpyHostToDevice) {
        ++counters.copies_to_device;
        counters.bytes_to_device += copy.width * copy.height;
    }
    if (copy.kind == cudaMemcpyDeviceToHost) counters.bytes_to_host += copy.width * copy.height;
}

// --- Streams ---

CUstream_st* Runtime::stream(cudaStream_t handle) {
    if (!handle || handle == cudaStreamLegacy || handle == cudaStreamPerThread) return &legacy;
    return owned(streams, handle).get();
}

void Runtime::run_one(CUstream_st& stream) {
    const std::function<void()> work = std::move(stream.pending.front());
    stream.pending.pop_front();
    if (sticky == cudaSuccess) work();
}

void Runtime::finish(CUstream_st& stream) {
    while (!stream.pending.empty()) {
        CUstream_st* next = &stream;
        if (order == Order::random) {
            std::vector<CUstream_st*> busy;
            for (const auto& [handle, other] : streams)
                if (!other->pending.empty()) busy.push_back(other.get());
            next = busy[cuda_emulator::chance().below(busy.size())];
        }
        run_one(*next);
    }
}

CUstream_st* Runtime::busy(const Mark& mark) const {
    // Work that an error dropped leaves its mark for ever open, maybe in a stream that is gone.
    if (mark.done || !owned(streams, mark.stream) || mark.stream->pending.empty()) return nullptr;
    return mark.stream;
}

void Runtime::finish(const Mark& mark) {
    while (CUstream_st* stream = busy(mark)) run_one(*stream);
}

void Runtime::finish_all(bool blocking_only) {
    for (const auto& [handle, stream] : streams)
        if (!blocking_only || !(stream->flags & cudaStreamNonBlocking)) finish(*stream);
}

cudaError_t Runtime::enqueue(CUstream_st& stream, std::function<void()> work) {
    if (&stream == &legacy) {
        // It waits for every stream that is not non-blocking, and they for it: at once is as late as any.
        finish_all(true);
        if (sticky == cudaSuccess) work();
        return sticky;
    }
    stream.pending.push_back(std::move(work));
    if (order == Order::eager) finish(stream);
    return cudaSuccess;
}

void Runtime::execute(const Kernel& kernel) {
    ++counters.kernels;
    if (next_kernel != cudaSuccess) return spoil(std::exchange(next_kernel, cudaSuccess));
    cuda_emulator::run(kernel);
}

// --- Capture ---

CUgraphNode_st* Runtime::add_node(CUstream_st& stream, cudaGraphNodeType type) {
    auto& nodes = stream.capture->graph->nodes;
    nodes.push_back(std::make_unique<CUgraphNode_st>());
    CUgraphNode_st* node = nodes.back().get();
    node->type = type;
    node->after = stream.frontier;
    stream.frontier = {node};
    return node;
}

// Calls that may wait for other streams, which a capture forbids unless it is relaxed.
cudaError_t Runtime::unsafe() {
    cudaError_t error = cudaSuccess;
    for (const auto& capture : captures) {
        if (capture->mode == cudaStreamCaptureModeRelaxed) continue;
        if (capture->mode == cudaStreamCaptureModeThreadLocal &&
            capture->thread != std::this_thread::get_id())
            continue;
        capture->invalid = true;
        error = cudaErrorStreamCaptureUnsupported;
    }
    return error;
}

// What uses the default stream would wait for every capturing stream that is not non-blocking.
cudaError_t Runtime::legacy_stream() {
    cudaError_t error = cudaSuccess;
    for (const auto& [handle, stream] : streams)
        if (stream->capture && !(stream->flags & cudaStreamNonBlocking)) {
            stream->capture->invalid = true;
            error = cudaErrorStreamCaptureImplicit;
        }
    return error;
}

cudaError_t Runtime::submit(cudaStream_t handle, cudaGraphNodeType type, std::function<void()> work) {
    CUstream_st* target = stream(handle);
    if (!target) return cudaErrorInvalidResourceHandle;
    if (target != &legacy && type == cudaGraphNodeTypeKernel && target->device != use_device())
        return cudaErrorInvalidResourceHandle;
    if (target == &legacy)
        if (const cudaError_t error = legacy_stream(); error != cudaSuccess) return error;
    if (!target->capture) return enqueue(*target, std::move(work));
    if (const cudaError_t error = capturing(*target); error != cudaSuccess) return error;
    add_node(*target, type)->run = std::move(work);
    return cudaSuccess;
}

void Runtime::end(const std::shared_ptr<Capture>& capture) {
    for (const auto& [handle, stream] : streams)
        if (stream->capture == capture) {
            stream->capture = nullptr;
            stream->frontier.clear();
        }
    std::erase(captures, capture);
}

// Whether every node comes before what the stream does next.
bool Runtime::joined(const Capture& capture, const CUstream_st& stream) const {
    std::vector<cudaGraphNode_t> todo = stream.frontier, seen;
    while (!todo.empty()) {
        cudaGraphNode_t node = todo.back();
        todo.pop_back();
        if (std::find(seen.begin(), seen.end(), node) != seen.end()) continue;
        seen.push_back(node);
        todo.insert(todo.end(), node->after.begin(), node->after.end());
    }
    return seen.size() == capture.graph->nodes.size();
}

// --- Graphs ---

cudaGraphNode_t Runtime::node(cudaGraphNode_t handle) const {
    for (const auto& [graph, owner] : graphs)
        for (const auto& node : owner->nodes)
            if (node.get() == handle) return handle;
    return nullptr;
}

// In any order that the dependencies allow.
void Runtime::execute(const std::vector<Step>& steps, const std::vector<std::shared_ptr<Mark>>& marks) {
    std::vector<std::size_t> open(steps.size());
    std::vector<std::size_t> ready;
    for (std::size_t i = 0; i < steps.size(); ++i)
        if ((open[i] = steps[i].after.size()) == 0) ready.push_back(i);
    while (!ready.empty()) {
        const std::size_t chosen = cuda_emulator::chance().below(ready.size());
        const std::size_t now = ready[chosen];
        ready[chosen] = ready.back();
        ready.pop_back();
        const Step& step = steps[now];
        if (sticky == cudaSuccess && step.enabled) {
            if (step.type == cudaGraphNodeTypeMemcpy) {
                execute(step.copy);
            } else if (step.type == cudaGraphNodeTypeEventRecord) {
                marks[now]->done = true;
                marks[now]->time = Clock::now();
            } else if (step.type == cudaGraphNodeTypeWaitEvent) {
                if (marks[now]) finish(*marks[now]);
            } else if (step.run) {
                step.run();
            }
        }
        for (std::size_t i = 0; i < steps.size(); ++i)
            for (const std::size_t before : steps[i].after)
                if (before == now && --open[i] == 0) ready.push_back(i);
    }
}

cudaError_t copy_async(Runtime& r, Copy copy, cudaStream_t handle) {
    CUstream_st* stream = r.stream(handle);
    if (!stream) return cudaErrorInvalidResourceHandle;
    if (const cudaError_t error = r.resolve(copy); error != cudaSuccess) return error;
    if (copy.width == 0 || copy.height == 0) return cudaSuccess;
    if (stream->capture) {
        if (const cudaError_t error = r.capturing(*stream); error != cudaSuccess) return error;
        r.add_node(*stream, cudaGraphNodeTypeMemcpy)->copy = copy;
        return cudaSuccess;
    }
    if (stream == &r.legacy)
        if (const cudaError_t error = r.legacy_stream(); error != cudaSuccess) return error;
    const bool pageable_dst = r.place(copy.dst) == Place::pageable,
               pageable_src = r.place(copy.src) == Place::pageable;
    if (pageable_src && copy.kind == cudaMemcpyHostToDevice) {
        // The source has been read when the call returns.
        const auto* bytes = static_cast<const char*>(copy.src);
        auto staged = std::make_shared<std::vector<char>>(bytes, bytes + copy.src_bytes());
        copy.src = staged->data();
        return r.enqueue(*stream, [&r, copy, staged] { r.execute(copy); });
    }
    const cudaError_t error = r.enqueue(*stream, [&r, copy] { r.execute(copy); });
    // With pageable memory at the other end, the call returns when all is done.
    if (pageable_dst || pageable_src) r.finish(*stream);
    return error == cudaSuccess ? r.sticky : error;
}

Copy flat(void* dst, const void* src, std::size_t count, cudaMemcpyKind kind) {
    return {dst, count, src, count, count, 1, kind};
}

cudaError_t set_async(Runtime& r, void* pointer, int value, std::size_t count, cudaStream_t stream) {
    if (count == 0) return cudaSuccess;
    if (!r.within(pointer, count)) return cudaErrorInvalidValue;
    return r.submit(stream, cudaGraphNodeTypeMemset, [&r, pointer, value, count] {
        if (r.within(pointer, count))
            std::memset(pointer, value, count);
        else
            r.spoil(cudaErrorIllegalAddress);
    });
}

// Every synchronization ends so: what was wrong until here shows here.
cudaError_t synchronized(Runtime& r) {
    ++r.counters.synchronizations;
    r.check_guards();
    return r.sticky;
}

cudaError_t record(Runtime& r, cudaEvent_t event_handle, cudaStream_t stream_handle, unsigned flags) {
    const Event event = owned(r.events, event_handle);
    CUstream_st* stream = r.stream(stream_handle);
    if (!event || !stream) return cudaErrorInvalidResourceHandle;
    if (flags > cudaEventRecordExternal) return cudaErrorInvalidValue;
    if (stream != &r.legacy && event->device != stream->device) return cudaErrorInvalidResourceHandle;
    if (stream == &r.legacy)
        if (const cudaError_t error = r.legacy_stream(); error != cudaSuccess) return error;
    if (stream->capture) {
        if (const cudaError_t error = r.capturing(*stream); error != cudaSuccess) return error;
        if (flags & cudaEventRecordExternal) {
            r.add_node(*stream, cudaGraphNodeTypeEventRecord)->event = event;
        } else {
            event->capture = stream->capture;
            event->frontier = stream->frontier;
        }
        return cudaSuccess;
    }
    if (flags & cudaEventRecordExternal) return cudaErrorInvalidValue;
    event->capture = nullptr;
    event->mark = std::make_shared<Mark>(Mark{stream});
    return r.enqueue(*stream, [mark = event->mark] {
        mark->done = true;
        mark->time = Clock::now();
    });
}

cudaError_t wait(Runtime& r, cudaStream_t stream_handle, cudaEvent_t event_handle, unsigned flags) {
    const Event event = owned(r.events, event_handle);
    CUstream_st* stream = r.stream(stream_handle);
    if (!event || !stream) return cudaErrorInvalidResourceHandle;
    if (flags > cudaEventWaitExternal) return cudaErrorInvalidValue;
    if (stream->capture) {
        if (const cudaError_t error = r.capturing(*stream); error != cudaSuccess) return error;
        if (flags & cudaEventWaitExternal) {
            r.add_node(*stream, cudaGraphNodeTypeWaitEvent)->event = event;
            return cudaSuccess;
        }
        if (!event->capture) {
            stream->capture->invalid = true;
            return cudaErrorStreamCaptureIsolation;
        }
        if (event->capture != stream->capture) {
            stream->capture->invalid = event->capture->invalid = true;
            return cudaErrorStreamCaptureMerge;
        }
    }
    if (event->capture) {
        if (std::find(r.captures.begin(), r.captures.end(), event->capture) == r.captures.end())
            return cudaErrorCapturedEvent;
        if (stream == &r.legacy) return cudaErrorStreamCaptureImplicit;
        stream->capture = event->capture;  // a stream that was not capturing joins
        for (cudaGraphNode_t node : event->frontier)
            if (std::find(stream->frontier.begin(), stream->frontier.end(), node) == stream->frontier.end())
                stream->frontier.push_back(node);
        return cudaSuccess;
    }
    if (flags & cudaEventWaitExternal) return cudaErrorInvalidValue;
    if (!event->mark) return cudaSuccess;
    ++r.counters.waits;
    return r.enqueue(*stream, [&r, mark = event->mark] { r.finish(*mark); });
}

cudaError_t create_stream(cudaStream_t* stream, unsigned flags, int priority) {
    return call([&](Runtime& r) {
        if (!stream || flags > cudaStreamNonBlocking) return cudaErrorInvalidValue;
        auto created = std::make_shared<CUstream_st>();
        created->device = r.use_device();
        created->flags = flags;
        created->priority = std::clamp(priority, -5, 0);
        *stream = add(r.streams, std::move(created));
        return cudaSuccess;
    });
}

Counters read_counters() {
    Runtime& r = runtime();
    const std::lock_guard lock(r.mutex);
    return r.counters;
}

}  // namespace

// --- Errors ---

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorName(cudaError_t error) {
    switch (error) {
#define CUDA_EMULATOR_NAME(name, value, text) \
    case name:                                \
        return #name;
        CUDA_EMULATOR_ERRORS(CUDA_EMULATOR_NAME)
#undef CUDA_EMULATOR_NAME
    }
    return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
#define CUDA_EMULATOR_TEXT(name, value, text) \
    case name:                                \
        return text;
        CUDA_EMULATOR_ERRORS(CUDA_EMULATOR_TEXT)
#undef CUDA_EMULATOR_TEXT
    }
    return "unrecognized error code";
}

// --- Device ---

cudaError_t cudaDriverGetVersion(int* version) {
    if (!version) return note(cudaErrorInvalidValue);
    Runtime& r = runtime();
    const std::lock_guard lock(r.mutex);
    *version = r.driver == Driver::missing ? 0 : r.driver == Driver::too_old ? old_version : runtime_version;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
    if (!version) return note(cudaErrorInvalidValue);
    *version = runtime_version;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
    if (count) *count = 0;
    return call([&](Runtime& r) {
        if (!count) return cudaErrorInvalidValue;
        *count = r.devices;
        return cudaSuccess;
    });
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* prop, int device) {
    return call([&](Runtime& r) {
        if (!prop) return cudaErrorInvalidValue;
        if (device < 0 || device >= r.devices) return cudaErrorInvalidDevice;
        *prop = {};
        std::snprintf(prop->name, sizeof prop->name, "CUDA emulated on the CPU (tests only)");
        for (int i = 0; i < 16; ++i) prop->uuid.bytes[i] = static_cast<char>(i + device);
        prop->totalGlobalMem = r.device_limit;
        prop->sharedMemPerBlock = shared_bytes;
        prop->regsPerBlock = 65536;
        prop->warpSize = warpSize;
        prop->maxThreadsPerBlock = 1024;
        prop->maxThreadsDim[0] = prop->maxThreadsDim[1] = 1024;
        prop->maxThreadsDim[2] = 64;
        prop->maxGridSize[0] = 0x7fffffff;
        prop->maxGridSize[1] = prop->maxGridSize[2] = 65535;
        prop->major = 7;
        prop->minor = 5;
        prop->multiProcessorCount = multiprocessors;
        prop->canMapHostMemory = prop->concurrentKernels = prop->unifiedAddressing = 1;
        prop->asyncEngineCount = 2;
        prop->memoryBusWidth = 256;
        prop->l2CacheSize = 4 << 20;
        prop->maxThreadsPerMultiProcessor = 1024;
        prop->maxBlocksPerMultiProcessor = 16;
        prop->hostRegisterSupported = 1;
        prop->sharedMemPerMultiprocessor = prop->sharedMemPerBlockOptin = 64 * 1024;
        return cudaSuccess;
    });
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attr, int device) {
    return call([&](Runtime& r) {
        if (!value) return cudaErrorInvalidValue;
        if (device < 0 || device >= r.devices) return cudaErrorInvalidDevice;
        switch (attr) {
            case cudaDevAttrMaxThreadsPerBlock:
            case cudaDevAttrMaxThreadsPerMultiProcessor:
                *value = 1024;
                break;
            case cudaDevAttrMaxSharedMemoryPerBlock:
                *value = shared_bytes;
                break;
            case cudaDevAttrMaxSharedMemoryPerBlockOptin:
                *value = 64 * 1024;
                break;
            case cudaDevAttrWarpSize:
                *value = warpSize;
                break;
            case cudaDevAttrMaxRegistersPerBlock:
                *value = 65536;
                break;
            case cudaDevAttrMultiProcessorCount:
                *value = multiprocessors;
                break;
            case cudaDevAttrL2CacheSize:
                *value = 4 << 20;
                break;
            case cudaDevAttrAsyncEngineCount:
                *value = 2;
                break;
            case cudaDevAttrComputeCapabilityMajor:
                *value = 7;
                break;
            case cudaDevAttrComputeCapabilityMinor:
                *value = 5;
                break;
            case cudaDevAttrIntegrated:
                *value = r.integrated;
                break;
            case cudaDevAttrPageableMemoryAccess:
            case cudaDevAttrPageableMemoryAccessUsesHostPageTables:
                *value = r.host_page_tables;
                break;
            case cudaDevAttrCanMapHostMemory:
            case cudaDevAttrConcurrentKernels:
            case cudaDevAttrUnifiedAddressing:
            case cudaDevAttrCanUseHostPointerForRegisteredMem:
            case cudaDevAttrHostRegisterSupported:
            case cudaDevAttrMemoryPoolsSupported:
                *value = 1;
                break;
            default:
                return cudaErrorInvalidValue;
        }
        return cudaSuccess;
    });
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    return call([&](Runtime&) {
        if (least) *least = 0;
        if (greatest) *greatest = -5;
        return cudaSuccess;
    });
}

cudaError_t cudaSetDevice(int device) {
    return call([&](Runtime& r) {
        if (device < 0 || device >= r.devices) return cudaErrorInvalidDevice;
        chosen_device = device;
        if (!pushed_contexts.empty()) pushed_contexts.back() = device;
        r.use_device();  // since CUDA 12
        return cudaSuccess;
    });
}

cudaError_t cudaGetDevice(int* device) {
    return call([&](Runtime&) {
        if (!device) return cudaErrorInvalidValue;
        *device = current_device();
        return cudaSuccess;
    });
}

namespace {

// Contexts are numbered by their device, from 1 on.
int device_get(int* handle, int ordinal) {
    return call([&](Runtime& r) {
        if (ordinal < 0 || ordinal >= r.devices) return cudaErrorInvalidDevice;
        *handle = ordinal;
        return cudaSuccess;
    });
}

int primary_context_retain(void** context, int handle) {
    return call([&](Runtime& r) {
        r.counters.contexts |= std::size_t{1} << handle;
        *context = reinterpret_cast<void*>(static_cast<std::uintptr_t>(handle + 1));
        return cudaSuccess;
    });
}

int context_push(void* context) {
    pushed_contexts.push_back(static_cast<int>(reinterpret_cast<std::uintptr_t>(context)) - 1);
    return cudaSuccess;
}

int context_pop(void** context) {
    if (pushed_contexts.empty()) return cudaErrorInvalidValue;
    *context = reinterpret_cast<void*>(static_cast<std::uintptr_t>(pushed_contexts.back() + 1));
    pushed_contexts.pop_back();
    return cudaSuccess;
}

}  // namespace

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned,
                                             unsigned long long, cudaDriverEntryPointQueryResult* result) {
    return call([&](Runtime&) {
        const std::pair<const char*, void*> known[] = {
            {"cuDeviceGet", reinterpret_cast<void*>(&device_get)},
            {"cuDevicePrimaryCtxRetain", reinterpret_cast<void*>(&primary_context_retain)},
            {"cuCtxPushCurrent", reinterpret_cast<void*>(&context_push)},
            {"cuCtxPopCurrent", reinterpret_cast<void*>(&context_pop)}};
        *function = nullptr;
        for (const auto& [name, address] : known)
            if (std::string(name) == symbol) *function = address;
        if (result) *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
        return cudaSuccess;
    });
}

cudaError_t cudaDeviceSynchronize() {
    return call([](Runtime& r) {
        for (const auto& capture : r.captures) capture->invalid = true;
        if (!r.captures.empty()) return cudaErrorStreamCaptureUnsupported;
        r.finish_all(false);
        return synchronized(r);
    });
}

// --- Memory ---

cudaError_t cudaMalloc(void** pointer, std::size_t size) {
    return call([&](Runtime& r) {
        if (const cudaError_t error = r.unsafe(); error != cudaSuccess) return error;
        return r.allocate(pointer, size, Place::device);
    });
}

cudaError_t cudaFree(void* pointer) {
    return call([&](Runtime& r) {
        if (!pointer) return cudaSuccess;
        if (const cudaError_t error = r.unsafe(); error != cudaSuccess) return error;
        r.finish_all(false);  // as the GPU does, and what is pending may use it
        return r.release(pointer, true);
    });
}

cudaError_t cudaMallocAsync(void** pointer, std::size_t size, cudaStream_t handle) {
    return call([&](Runtime& r) {
        CUstream_st* stream = r.stream(handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        if (stream->capture) return r.invalidate(*stream);  // nodes that allocate are not emulated
        return r.allocate(pointer, size, Place::device);
    });
}

cudaError_t cudaFreeAsync(void* pointer, cudaStream_t handle) {
    return call([&](Runtime& r) {
        CUstream_st* stream = r.stream(handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        if (stream->capture) return r.invalidate(*stream);
        if (!pointer) return cudaSuccess;
        if (r.place(pointer) != Place::device) return cudaErrorInvalidValue;
        return r.enqueue(*stream, [&r, pointer] {
            if (const cudaError_t error = r.release(pointer, true); error != cudaSuccess) r.spoil(error);
        });
    });
}

cudaError_t cudaHostAlloc(void** pointer, std::size_t size, unsigned flags) {
    return call([&](Runtime& r) {
        if (flags > 7) return cudaErrorInvalidValue;
        if (const cudaError_t error = r.unsafe(); error != cudaSuccess) return error;
        return r.allocate(pointer, size, Place::pinned);
    });
}

cudaError_t cudaMallocHost(void** pointer, std::size_t size, unsigned flags) {
    return cudaHostAlloc(pointer, size, flags);
}

cudaError_t cudaFreeHost(void* pointer) {
    return call([&](Runtime& r) {
        if (!pointer) return cudaSuccess;
        if (const cudaError_t error = r.unsafe(); error != cudaSuccess) return error;
        r.finish_all(false);
        return r.release(pointer, false);
    });
}

cudaError_t cudaHostRegister(void* pointer, std::size_t size, unsigned flags) {
    return call([&](Runtime& r) {
        if (!pointer || size == 0 || flags > 15) return cudaErrorInvalidValue;
        if (const cudaError_t error = r.unsafe(); error != cudaSuccess) return error;
        const auto address = reinterpret_cast<std::uintptr_t>(pointer);
        const auto next = r.allocations.lower_bound(address);
        if (r.find(pointer) || (next != r.allocations.end() && next->first < address + size))
            return cudaErrorHostMemoryAlreadyRegistered;
        r.allocations.emplace(address, Allocation{size, Place::registered, r.use_device()});
        r.counters.pinned_bytes += size;
        return cudaSuccess;
    });
}

cudaError_t cudaHostUnregister(void* pointer) {
    return call([&](Runtime& r) {
        if (const cudaError_t error = r.unsafe(); error != cudaSuccess) return error;
        const auto found = r.allocations.find(reinterpret_cast<std::uintptr_t>(pointer));
        if (found == r.allocations.end() || found->second.place != Place::registered)
            return cudaErrorHostMemoryNotRegistered;
        r.finish_all(false);
        r.counters.pinned_bytes -= found->second.size;
        r.allocations.erase(found);
        return cudaSuccess;
    });
}

cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned flags) {
    return call([&](Runtime& r) {
        const Place place = r.place(host);
        if (!device || flags != 0 || (place != Place::pinned && place != Place::registered))
            return cudaErrorInvalidValue;
        *device = host;
        return cudaSuccess;
    });
}

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
    return call([&](Runtime& r) {
        if (free) *free = r.device_limit - std::min(r.device_limit, r.counters.device_bytes);
        if (total) *total = r.device_limit;
        return cudaSuccess;
    });
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
    return call([&](Runtime& r) {
        if (!attributes) return cudaErrorInvalidValue;
        r.use_device();
        void* const address = const_cast<void*>(pointer);
        switch (r.place(pointer)) {
            case Place::device:
                *attributes = {cudaMemoryTypeDevice, r.find(pointer)->second.device, address, nullptr};
                break;
            case Place::pageable:
                *attributes = {cudaMemoryTypeUnregistered, -2, nullptr, address};
                break;
            default:
                *attributes = {cudaMemoryTypeHost, 0, address, address};
        }
        return cudaSuccess;
    });
}

cudaError_t cudaMemcpy(void* dst, const void* src, std::size_t count, cudaMemcpyKind kind) {
    return call([&](Runtime& r) {
        if (const cudaError_t error = r.legacy_stream(); error != cudaSuccess) return error;
        if (const cudaError_t error = r.unsafe(); error != cudaSuccess) return error;
        const cudaError_t error = copy_async(r, flat(dst, src, count, kind), nullptr);
        r.check_guards();
        return error == cudaSuccess ? r.sticky : error;
    });
}

cudaError_t cudaMemcpyAsync(void* dst, const void* src, std::size_t count, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    return call([&](Runtime& r) { return copy_async(r, flat(dst, src, count, kind), stream); });
}

cudaError_t cudaMemcpy2DAsync(void* dst, std::size_t dpitch, const void* src, std::size_t spitch,
                              std::size_t width, std::size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
    return call([&](Runtime& r) {
        return copy_async(r, Copy{dst, dpitch, src, spitch, width, height, kind}, stream);
    });
}

cudaError_t cudaMemset(void* pointer, int value, std::size_t count) {
    return call([&](Runtime& r) {
        if (const cudaError_t error = r.unsafe(); error != cudaSuccess) return error;
        return set_async(r, pointer, value, count, nullptr);
    });
}

cudaError_t cudaMemsetAsync(void* pointer, int value, std::size_t count, cudaStream_t stream) {
    return call([&](Runtime& r) { return set_async(r, pointer, value, count, stream); });
}

// --- Streams ---

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return create_stream(stream, cudaStreamDefault, 0); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    return create_stream(stream, flags, 0);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
    return create_stream(stream, flags, priority);
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
    return call([&](Runtime& r) {
        const std::shared_ptr<CUstream_st> stream = owned(r.streams, handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        if (stream->capture) {
            stream->capture->invalid = true;
            if (stream->capture->origin == stream.get()) {
                r.graphs.erase(stream->capture->graph);
                r.end(std::shared_ptr<Capture>(stream->capture));
            }
        }
        r.finish(*stream);
        r.streams.erase(handle);
        return r.sticky;
    });
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    return call([&](Runtime& r) {
        CUstream_st* stream = r.stream(handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        if (stream->capture) return r.invalidate(*stream);
        if (stream == &r.legacy) {
            if (const cudaError_t error = r.legacy_stream(); error != cudaSuccess) return error;
            r.finish_all(true);
        }
        r.finish(*stream);
        return synchronized(r);
    });
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
    return call([&](Runtime& r) {
        CUstream_st* stream = r.stream(handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        if (stream->capture) return r.invalidate(*stream);
        if (stream->pending.empty()) return r.sticky;
        r.run_one(*stream);  // so that whoever polls gets on
        return r.sticky != cudaSuccess ? r.sticky : cudaErrorNotReady;
    });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    return call([&](Runtime& r) { return wait(r, stream, event, flags); });
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
    return call([&](Runtime& r) {
        CUstream_st* stream = r.stream(handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        if (mode < cudaStreamCaptureModeGlobal || mode > cudaStreamCaptureModeRelaxed)
            return cudaErrorInvalidValue;
        if (stream == &r.legacy) return cudaErrorStreamCaptureUnsupported;
        if (stream->capture) return cudaErrorIllegalState;
        CUgraph_st* graph = add(r.graphs, std::make_shared<CUgraph_st>());
        stream->capture = std::make_shared<Capture>(
            Capture{stream, mode, std::this_thread::get_id(), r.next_capture++, graph});
        stream->frontier.clear();
        r.captures.push_back(stream->capture);
        return cudaSuccess;
    });
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
    return call([&](Runtime& r) {
        if (!graph) return cudaErrorInvalidValue;
        *graph = nullptr;
        CUstream_st* stream = r.stream(handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        const std::shared_ptr<Capture> capture = stream->capture;
        if (!capture) return cudaErrorIllegalState;
        if (capture->origin != stream) {
            capture->invalid = true;
            return cudaErrorStreamCaptureUnmatched;
        }
        if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id())
            return cudaErrorStreamCaptureWrongThread;
        const cudaError_t error = capture->invalid              ? cudaErrorStreamCaptureInvalidated
                                  : r.joined(*capture, *stream) ? cudaSuccess
                                                                : cudaErrorStreamCaptureUnjoined;
        r.end(capture);
        if (error == cudaSuccess)
            *graph = capture->graph;
        else
            r.graphs.erase(capture->graph);
        return error;
    });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
    return cudaStreamGetCaptureInfo(handle, status);
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus* status,
                                     unsigned long long* id, cudaGraph_t* graph,
                                     const cudaGraphNode_t** dependencies, const cudaGraphEdgeData** edges,
                                     std::size_t* dependency_count) {
    return call([&](Runtime& r) {
        CUstream_st* stream = r.stream(handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        if (!status) return cudaErrorInvalidValue;
        if (!stream->capture) {
            *status = cudaStreamCaptureStatusNone;
            return cudaSuccess;
        }
        *status =
            stream->capture->invalid ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
        if (stream->capture->invalid) return cudaSuccess;
        if (id) *id = stream->capture->id;
        if (graph) *graph = stream->capture->graph;
        if (dependencies) *dependencies = stream->frontier.data();
        if (edges) *edges = nullptr;
        if (dependency_count) *dependency_count = stream->frontier.size();
        return cudaSuccess;
    });
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
    return call([&](Runtime& r) {
        if (!function) return cudaErrorInvalidValue;
        return r.submit(stream, cudaGraphNodeTypeHost, [function, data] {
            in_host_function = true;
            function(data);
            in_host_function = false;
        });
    });
}

cudaError_t cuda_emulator::launch(const cudaLaunchConfig_t& config, const void* function,
                                  std::function<void()> body) {
    return call([&](Runtime& r) {
        const dim3 grid = config.gridDim, block = config.blockDim;
        if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535 ||
            grid.z > 65535 || block.x == 0 || block.y == 0 || block.z == 0 || block.x > 1024 ||
            block.y > 1024 || block.z > 64 || block.x * block.y * block.z > 1024)
            return cudaErrorInvalidConfiguration;
        if (config.dynamicSmemBytes > shared_bytes || (config.numAttrs != 0 && !config.attrs) || !function)
            return cudaErrorInvalidValue;
        if (r.next_launch != cudaSuccess) return std::exchange(r.next_launch, cudaSuccess);
        return r.submit(config.stream, cudaGraphNodeTypeKernel,
                        [&r, kernel = Kernel{std::move(body), function, grid, block}] { r.execute(kernel); });
    });
}

// --- Events ---

cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
    return call([&](Runtime& r) {
        if (!event || flags > 7) return cudaErrorInvalidValue;
        *event = add(r.events,
                     std::make_shared<CUevent_st>(CUevent_st{r.use_device(), flags, nullptr, nullptr, {}}));
        return cudaSuccess;
    });
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    return call([&](Runtime& r) {
        return r.events.erase(event) == 1 ? cudaSuccess : cudaErrorInvalidResourceHandle;
    });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    return call([&](Runtime& r) { return record(r, event, stream, cudaEventRecordDefault); });
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
    return call([&](Runtime& r) { return record(r, event, stream, flags); });
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
    return call([&](Runtime& r) {
        const Event event = owned(r.events, handle);
        if (!event) return cudaErrorInvalidResourceHandle;
        if (event->capture) return cudaErrorCapturedEvent;
        if (event->mark) r.finish(*event->mark);
        return synchronized(r);
    });
}

cudaError_t cudaEventQuery(cudaEvent_t handle) {
    return call([&](Runtime& r) {
        const Event event = owned(r.events, handle);
        if (!event) return cudaErrorInvalidResourceHandle;
        if (event->capture) return cudaErrorCapturedEvent;
        if (const cudaError_t error = r.unsafe(); error != cudaSuccess) return error;
        CUstream_st* stream = event->mark ? r.busy(*event->mark) : nullptr;
        if (!stream) return r.sticky;
        r.run_one(*stream);  // so that whoever polls gets on
        return r.sticky != cudaSuccess ? r.sticky : cudaErrorNotReady;
    });
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
    return call([&](Runtime& r) {
        const Event from = owned(r.events, start), to = owned(r.events, end);
        if (!milliseconds) return cudaErrorInvalidValue;
        if (!from || !to || ((from->flags | to->flags) & cudaEventDisableTiming) || !from->mark || !to->mark)
            return cudaErrorInvalidResourceHandle;
        if (!from->mark->done || !to->mark->done) return cudaErrorNotReady;
        *milliseconds = std::chrono::duration<float, std::milli>(to->mark->time - from->mark->time).count();
        return cudaSuccess;
    });
}

// --- Graphs ---

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t handle, unsigned long long) {
    return call([&](Runtime& r) {
        const std::shared_ptr<CUgraph_st> graph = owned(r.graphs, handle);
        if (!exec || !graph) return cudaErrorInvalidValue;
        auto created = std::make_shared<CUgraphExec_st>();
        auto steps = std::make_shared<std::vector<Step>>();
        // A node comes after its dependencies in the list, since capture adds them in that order.
        for (const auto& node : graph->nodes) {
            Step step{node->type, {}, node->run, node->copy, node->event};
            if (step.type == cudaGraphNodeTypeMemcpy) {
                step.to = r.place(step.copy.dst);
                step.from = r.place(step.copy.src);
            }
            for (cudaGraphNode_t before : node->after) step.after.push_back(created->index.at(before));
            created->index.emplace(node.get(), steps->size());
            steps->push_back(std::move(step));
        }
        created->steps = std::move(steps);
        *exec = add(r.execs, std::move(created));
        return cudaSuccess;
    });
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream) {
    return call([&](Runtime& r) {
        if (!r.stream(stream)) return cudaErrorInvalidResourceHandle;
        return owned(r.execs, exec) ? cudaSuccess : cudaErrorInvalidValue;
    });
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t handle, cudaStream_t stream_handle) {
    return call([&](Runtime& r) {
        const std::shared_ptr<CUgraphExec_st> exec = owned(r.execs, handle);
        CUstream_st* stream = r.stream(stream_handle);
        if (!exec) return cudaErrorInvalidValue;
        if (!stream) return cudaErrorInvalidResourceHandle;
        if (stream->capture) return r.invalidate(*stream);  // graphs within graphs are not emulated
        if (stream == &r.legacy)
            if (const cudaError_t error = r.legacy_stream(); error != cudaSuccess) return error;
        if (r.next_launch != cudaSuccess) return std::exchange(r.next_launch, cudaSuccess);
        ++r.counters.graph_launches;
        std::vector<std::shared_ptr<Mark>> marks;
        for (const Step& step : *exec->steps) {
            if (step.type == cudaGraphNodeTypeEventRecord) {
                step.event->capture = nullptr;
                step.event->mark = std::make_shared<Mark>(Mark{stream});
            }
            marks.push_back(step.event ? step.event->mark : nullptr);
        }
        const std::shared_ptr<Mark> before = exec->last;
        exec->last = std::make_shared<Mark>(Mark{stream});
        return r.enqueue(*stream,
                         [&r, before, mark = exec->last, steps = exec->steps, marks = std::move(marks)] {
                             if (before) r.finish(*before);
                             r.execute(*steps, marks);
                             mark->done = true;
                         });
    });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    return call([&](Runtime& r) { return r.graphs.erase(graph) == 1 ? cudaSuccess : cudaErrorInvalidValue; });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    return call([&](Runtime& r) { return r.execs.erase(exec) == 1 ? cudaSuccess : cudaErrorInvalidValue; });
}

cudaError_t cudaGraphGetNodes(cudaGraph_t handle, cudaGraphNode_t* nodes, std::size_t* count) {
    return call([&](Runtime& r) {
        const std::shared_ptr<CUgraph_st> graph = owned(r.graphs, handle);
        if (!graph || !count) return cudaErrorInvalidValue;
        if (nodes)
            for (std::size_t i = 0; i < *count; ++i)
                nodes[i] = i < graph->nodes.size() ? graph->nodes[i].get() : nullptr;
        *count = nodes ? std::min(*count, graph->nodes.size()) : graph->nodes.size();
        return cudaSuccess;
    });
}

cudaError_t cudaGraphNodeGetType(cudaGraphNode_t handle, cudaGraphNodeType* type) {
    return call([&](Runtime& r) {
        if (!r.node(handle) || !type) return cudaErrorInvalidValue;
        *type = handle->type;
        return cudaSuccess;
    });
}

cudaError_t cudaGraphMemcpyNodeGetParams(cudaGraphNode_t handle, cudaMemcpy3DParms* params) {
    return call([&](Runtime& r) {
        if (!r.node(handle) || handle->type != cudaGraphNodeTypeMemcpy || !params)
            return cudaErrorInvalidValue;
        const Copy& copy = handle->copy;
        *params = {};
        params->srcPtr = {const_cast<void*>(copy.src), copy.spitch, copy.width, copy.height};
        params->dstPtr = {copy.dst, copy.dpitch, copy.width, copy.height};
        params->extent = {copy.width, copy.height, 1};
        params->kind = copy.kind;
        return cudaSuccess;
    });
}

cudaError_t cudaGraphExecMemcpyNodeSetParams1D(cudaGraphExec_t exec_handle, cudaGraphNode_t handle, void* dst,
                                               const void* src, std::size_t count, cudaMemcpyKind kind) {
    return call([&](Runtime& r) {
        const std::shared_ptr<CUgraphExec_st> exec = owned(r.execs, exec_handle);
        if (!exec || !r.node(handle) || handle->type != cudaGraphNodeTypeMemcpy ||
            !exec->index.contains(handle))
            return cudaErrorInvalidValue;
        Copy copy = flat(dst, src, count, kind);
        if (count == 0 || handle->copy.height != 1) return cudaErrorInvalidValue;
        if (const cudaError_t error = r.resolve(copy); error != cudaSuccess) return error;
        auto steps = std::make_shared<std::vector<Step>>(*exec->steps);
        Step& step = (*steps)[exec->index.at(handle)];
        // The kind of memory at either end is part of the instantiated graph.
        if (r.place(copy.dst) != step.to || r.place(copy.src) != step.from) return cudaErrorInvalidValue;
        step.copy = copy;
        exec->steps = std::move(steps);
        return cudaSuccess;
    });
}

cudaError_t cudaGraphNodeSetEnabled(cudaGraphExec_t exec_handle, cudaGraphNode_t handle, unsigned enabled) {
    return call([&](Runtime& r) {
        const std::shared_ptr<CUgraphExec_st> exec = owned(r.execs, exec_handle);
        if (!exec || !r.node(handle) || !exec->index.contains(handle) ||
            handle->type > cudaGraphNodeTypeMemset)
            return cudaErrorInvalidValue;
        auto steps = std::make_shared<std::vector<Step>>(*exec->steps);
        (*steps)[exec->index.at(handle)].enabled = enabled != 0;
        exec->steps = std::move(steps);
        return cudaSuccess;
    });
}

cudaError_t cudaGraphNodeGetEnabled(cudaGraphExec_t exec_handle, cudaGraphNode_t handle, unsigned* enabled) {
    return call([&](Runtime& r) {
        const std::shared_ptr<CUgraphExec_st> exec = owned(r.execs, exec_handle);
        if (!exec || !enabled || !r.node(handle) || !exec->index.contains(handle))
            return cudaErrorInvalidValue;
        *enabled = (*exec->steps)[exec->index.at(handle)].enabled;
        return cudaSuccess;
    });
}

// --- Kernels ---

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
    return call([&](Runtime&) {
        if (!attributes) return cudaErrorInvalidValue;
        if (!function) return cudaErrorInvalidDeviceFunction;
        *attributes = {};
        attributes->maxThreadsPerBlock = 1024;
        attributes->numRegs = 32;
        attributes->ptxVersion = attributes->binaryVersion = 75;
        attributes->maxDynamicSharedSizeBytes = shared_bytes;
        return cudaSuccess;
    });
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute, int) {
    return call([&](Runtime&) { return function ? cudaSuccess : cudaErrorInvalidDeviceFunction; });
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function, int block_size,
                                                          std::size_t dynamic_bytes) {
    return call([&](Runtime&) {
        if (!blocks || block_size < 1) return cudaErrorInvalidValue;
        if (!function) return cudaErrorInvalidDeviceFunction;
        const int warps = (block_size + warpSize - 1) / warpSize;
        *blocks = block_size > 1024 || dynamic_bytes > shared_bytes ? 0 : std::min(16, 32 / warps);
        return cudaSuccess;
    });
}

// --- Control ---

namespace cuda_emulator {
namespace {

template <typename T>
void change(T Runtime::* member, T value) {
    Runtime& r = runtime();
    const std::lock_guard lock(r.mutex);
    r.*member = value;
}

}  // namespace

void set_driver(Driver driver) { change(&Runtime::driver, driver); }
void set_order(Order order) { change(&Runtime::order, order); }
void set_device_memory(std::size_t bytes) { change(&Runtime::device_limit, bytes); }
void set_pinned_memory(std::size_t bytes) { change(&Runtime::pinned_limit, bytes); }
void fail_next_launch(cudaError_t error) { change(&Runtime::next_launch, error); }
void fail_next_kernel(cudaError_t error) { change(&Runtime::next_kernel, error); }

void set_seed(std::uint64_t seed) {
    const std::lock_guard lock(runtime().mutex);
    chance().seed(seed);
}

void reset() {
    const std::lock_guard lock(runtime().mutex);
    runtime().read_environment();
}

Counters counters() { return read_counters(); }

}  // namespace cuda_emulator

int cuda_emulator_set(const char* name, const char* value) {
    if (std::string(name) == "reset") return cuda_emulator::reset(), 0;
    Runtime& r = runtime();
    const std::lock_guard lock(r.mutex);
    return r.set(name, value);
}

long long cuda_emulator_get(const char* name) {
    const Counters c = read_counters();
    const std::pair<const char*, std::size_t> all[] = {{"device_bytes", c.device_bytes},
                                                       {"pinned_bytes", c.pinned_bytes},
                                                       {"mallocs", c.mallocs},
                                                       {"kernels", c.kernels},
                                                       {"graph_launches", c.graph_launches},
                                                       {"contexts", c.contexts},
                                                       {"synchronizations", c.synchronizations},
                                                       {"waits", c.waits},
                                                       {"copies_to_device", c.copies_to_device},
                                                       {"bytes_to_device", c.bytes_to_device},
                                                       {"bytes_to_host", c.bytes_to_host}};
    for (const auto& [known, value] : all)
        if (std::string(known) == name) return static_cast<long long>(value);
    return -1;
}
