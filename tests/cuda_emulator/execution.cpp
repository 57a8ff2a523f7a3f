// Threads of a block as fibers. A fiber runs one thread after another for as long as none waits; a thread
// that waits keeps its fiber, and another fiber goes on. So a kernel without barriers costs a call per
// thread.
#include "execution.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <numeric>
#include <vector>

#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#define CUDA_EMULATOR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUDA_EMULATOR_ASAN 1
#endif
#endif
#ifdef CUDA_EMULATOR_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) || !defined(__ELF__)
#define CUDA_EMULATOR_UCONTEXT 1
#endif
#ifdef CUDA_EMULATOR_UCONTEXT
#include <ucontext.h>
#else
// ucontext asks the kernel for the signal mask at every switch, which costs twenty times this.
extern "C" void cuda_emulator_switch(void** from, void* to) __attribute__((visibility("hidden")));
asm(R"(
    .text
    .hidden cuda_emulator_switch
    .globl cuda_emulator_switch
    .type cuda_emulator_switch, @function
cuda_emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size cuda_emulator_switch, .-cuda_emulator_switch
)");
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_emulator {
namespace {

constexpr std::size_t stack_bytes = 256 * 1024;
constexpr std::uint64_t poison = 0xa5a5a5a5a5a5a5a5;
constexpr const char* names[] = {"__syncthreads",
                                 "__syncthreads_or",
                                 "__syncthreads_and",
                                 "__syncthreads_count",
                                 "__syncwarp",
                                 "__ballot_sync",
                                 "__any_sync",
                                 "__all_sync",
                                 "__shfl_sync",
                                 "__match_any_sync",
                                 "__match_all_sync",
                                 "__reduce_add_sync",
                                 "__reduce_min_sync",
                                 "__reduce_max_sync",
                                 "__reduce_min_sync (int)",
                                 "__reduce_max_sync (int)",
                                 "__reduce_and_sync",
                                 "__reduce_or_sync",
                                 "__reduce_xor_sync"};

const char* name(Operation operation) { return names[static_cast<int>(operation)]; }

struct Fiber {
#ifdef CUDA_EMULATOR_UCONTEXT
    ucontext_t context;
#else
    void* stack_pointer = nullptr;
#endif
    const void* bottom = nullptr;
    std::size_t size = 0;
    void* fake_stack = nullptr;
};

enum class State : unsigned char { running, ready, at_barrier, at_warp, exited };

struct Thread {
    uint3 index;
    unsigned warp, lane;
    Fiber* fiber;
    State state;
    Operation operation;
    unsigned mask, argument;
    std::uint64_t value, result;
};

struct Warp {
    Thread* lanes;
    unsigned exited, waiting;
};

class Executor {
  public:
    Random chance;

    void run(const Kernel& kernel);
    int barrier(Operation operation, int predicate);
    std::uint64_t warp(Operation operation, unsigned mask, std::uint64_t value, unsigned argument);
    void yield();
    unsigned lane() const { return current_->lane; }
    [[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 2, 3)));

  private:
    const Kernel* kernel_ = nullptr;
    Fiber main_;
    Fiber* fiber_ = nullptr;     // the one that runs
    Fiber* previous_ = nullptr;  // the one before it
    std::vector<Fiber*> idle_;
    std::size_t fibers_ = 0;
    Thread* current_ = nullptr;
    std::vector<Thread> threads_;
    std::vector<Thread*> order_, ready_, at_barrier_;
    std::vector<Warp> warps_;
    std::size_t started_ = 0, live_ = 0;
    int predicates_ = 0, barrier_result_ = 0;

    static void enter() { executor().work(); }
    static Executor& executor();
    friend Executor& executor();

    void prepare(const Kernel& kernel);
    void run_block();
    void work();
    void suspend(Thread& thread);
    void wake(Thread& thread);
    void exit(Thread& thread);
    void release_barrier();
    bool release_warp(Warp& warp, unsigned lane);
    void complete(Warp& warp, unsigned lanes);
    Fiber* idle_fiber();
    Fiber* ready_fiber();
    void switch_to(Fiber& to);
    void arrived();
    [[noreturn]] void report_deadlock();
};

// Never destroyed: programs call CUDA while they exit.
Executor& executor() {
    static Executor& instance = *new Executor;
    return instance;
}
Executor& Executor::executor() { return cuda_emulator::executor(); }

void Executor::fail(const char* format, ...) {
    std::fflush(nullptr);
    std::fprintf(stderr, "CUDA emulator: ");
    va_list arguments;
    va_start(arguments, format);
    std::vfprintf(stderr, format, arguments);
    va_end(arguments);
    // addr2line -fe FILE OFFSET names a kernel that the file does not export.
    Dl_info info{};
    if (kernel_ && dladdr(kernel_->function, &info) != 0)
        std::fprintf(
            stderr, "\n  in block (%u, %u, %u) of the kernel %s%sat %s+%#zx", blockIdx.x, blockIdx.y,
            blockIdx.z, info.dli_sname ? info.dli_sname : "", info.dli_sname ? " " : "", info.dli_fname,
            reinterpret_cast<std::size_t>(kernel_->function) - reinterpret_cast<std::size_t>(info.dli_fbase));
    if (current_)
        std::fprintf(stderr, ", thread (%u, %u, %u), grid (%u, %u, %u), block (%u, %u, %u)", threadIdx.x,
                     threadIdx.y, threadIdx.z, gridDim.x, gridDim.y, gridDim.z, blockDim.x, blockDim.y,
                     blockDim.z);
    std::fprintf(stderr, "\n");
    std::abort();
}

void Executor::report_deadlock() {
    std::fprintf(stderr, "CUDA emulator: every live thread of a block waits for one that never comes:\n");
    for (const Thread& thread : threads_) {
        if (thread.state == State::exited) continue;
        // One line for all that wait alike, by the first of them.
        auto alike = [&](const Thread& other) {
            return other.state == thread.state && other.operation == thread.operation &&
                   (thread.state == State::at_barrier ||
                    (other.warp == thread.warp && other.mask == thread.mask));
        };
        std::size_t count = 0;
        bool first = true;
        for (const Thread& other : threads_) {
            if (!alike(other)) continue;
            if (&other < &thread) first = false;
            ++count;
        }
        if (!first) continue;
        std::fprintf(stderr, "  %zu at %s", count, name(thread.operation));
        if (thread.state == State::at_warp)
            std::fprintf(stderr, " with mask %#x, of which lanes %#x are there", thread.mask,
                         warps_[thread.warp].waiting & thread.mask);
        std::fprintf(stderr, "; the first is thread (%u, %u, %u)\n", thread.index.x, thread.index.y,
                     thread.index.z);
    }
    current_ = nullptr;
    fail("deadlock: %zu of %zu threads have not returned", live_, threads_.size());
}

void Executor::arrived() {
#ifdef CUDA_EMULATOR_ASAN
    const void* bottom;
    std::size_t size;
    __sanitizer_finish_switch_fiber(fiber_->fake_stack, &bottom, &size);
    if (previous_ == &main_) main_.bottom = bottom, main_.size = size;
#endif
}

void Executor::switch_to(Fiber& to) {
    Fiber& from = *fiber_;
    previous_ = &from;
    fiber_ = &to;
#ifdef CUDA_EMULATOR_ASAN
    __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.size);
#endif
#ifdef CUDA_EMULATOR_UCONTEXT
    swapcontext(&from.context, &to.context);
#else
    cuda_emulator_switch(&from.stack_pointer, to.stack_pointer);
#endif
    arrived();
}

Fiber* Executor::idle_fiber() {
    if (!idle_.empty()) {
        Fiber* fiber = idle_.back();
        idle_.pop_back();
        return fiber;
    }
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    void* memory = mmap(nullptr, page + stack_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    // A page that may not be touched turns an overflow into a fault.
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0)
        fail("no memory for the stack of a thread");
    auto* fiber = new Fiber;
    char* bottom = static_cast<char*>(memory) + page;
    fiber->bottom = bottom;
    // Tops at the same offset in a page would all fall into the same few sets of the cache.
    fiber->size = stack_bytes - fibers_++ * 320 % 16384;
#ifdef CUDA_EMULATOR_UCONTEXT
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = bottom;
    fiber->context.uc_stack.ss_size = fiber->size;
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, &Executor::enter, 0);
#else
    // As if enter() had been called and had switched away at once: six registers, its address, no caller.
    void** top = reinterpret_cast<void**>(bottom + fiber->size) - 8;
    top[6] = reinterpret_cast<void*>(&Executor::enter);
    fiber->stack_pointer = top;
#endif
    return fiber;
}

Fiber* Executor::ready_fiber() {
    if (ready_.empty()) report_deadlock();
    const unsigned chosen = chance.below(ready_.size());
    Fiber* fiber = ready_[chosen]->fiber;
    ready_[chosen] = ready_.back();
    ready_.pop_back();
    return fiber;
}

void Executor::work() {
    arrived();
    for (;;) {
        while (started_ < order_.size()) {
            Thread& thread = *order_[started_++];
            thread.fiber = fiber_;
            current_ = &thread;
            threadIdx = thread.index;
            kernel_->body();
            exit(thread);
        }
        idle_.push_back(fiber_);
        switch_to(live_ == 0 ? main_ : *ready_fiber());
    }
}

void Executor::suspend(Thread& thread) {
    Fiber* next = started_ < order_.size() ? idle_fiber() : ready_fiber();
    if (next != thread.fiber) switch_to(*next);
    thread.state = State::running;
    current_ = &thread;
    threadIdx = thread.index;
}

void Executor::wake(Thread& thread) {
    thread.state = State::ready;
    ready_.push_back(&thread);
}

void Executor::exit(Thread& thread) {
    thread.state = State::exited;
    --live_;
    release_barrier();
    Warp& warp = warps_[thread.warp];
    warp.exited |= 1u << thread.lane;
    for (unsigned lane = 0; warp.waiting != 0 && lane < 32; ++lane)
        if (warp.waiting >> lane & 1) release_warp(warp, lane);
}

void Executor::release_barrier() {
    if (at_barrier_.empty() || at_barrier_.size() != live_) return;
    switch (at_barrier_.front()->operation) {
        case Operation::sync_threads_or:
            barrier_result_ = predicates_ != 0;
            break;
        case Operation::sync_threads_and:
            barrier_result_ = predicates_ == static_cast<int>(live_);
            break;
        default:
            barrier_result_ = predicates_;
    }
    for (Thread* thread : at_barrier_) wake(*thread);
    at_barrier_.clear();
    predicates_ = 0;
}

int Executor::barrier(Operation operation, int predicate) {
    Thread& thread = *current_;
    if (!at_barrier_.empty() && at_barrier_.front()->operation != operation)
        fail("one thread is at %s while another is at %s", name(operation),
             name(at_barrier_.front()->operation));
    thread.operation = operation;
    thread.state = State::at_barrier;
    at_barrier_.push_back(&thread);
    predicates_ += predicate != 0;
    release_barrier();
    suspend(thread);
    return barrier_result_;
}

// Lets the lanes go that wait with this one, if all have come that its mask names and that have not returned.
bool Executor::release_warp(Warp& warp, unsigned lane) {
    const Thread& first = warp.lanes[lane];
    const unsigned lanes = first.mask & ~warp.exited;
    if ((warp.waiting & lanes) != lanes) return false;
    for (unsigned i = 0; i < 32; ++i)
        if (lanes >> i & 1 && warp.lanes[i].mask != first.mask) return false;
    for (unsigned i = 0; i < 32; ++i)
        if (lanes >> i & 1 && warp.lanes[i].operation != first.operation)
            fail("lane %u is at %s while lane %u is at %s, both with mask %#x", lane, name(first.operation),
                 i, name(warp.lanes[i].operation), first.mask);
    complete(warp, lanes);
    return true;
}

void Executor::complete(Warp& warp, unsigned lanes) {
    Thread* const all = warp.lanes;
    const unsigned first = static_cast<unsigned>(__builtin_ctz(lanes));
    const Operation operation = all[first].operation;
    std::uint64_t result = all[first].value;
    if (operation == Operation::ballot || operation == Operation::match_all) result = 0;
    for (unsigned i = first; i < 32; ++i) {
        if (!(lanes >> i & 1)) continue;
        const std::uint64_t value = all[i].value;
        switch (operation) {
            case Operation::ballot:
                result |= value << i;
                break;
            case Operation::any:
            case Operation::bit_or:
                result |= value;
                break;
            case Operation::all:
            case Operation::bit_and:
                result &= value;
                break;
            case Operation::bit_xor:
                result ^= i == first ? 0 : value;
                break;
            case Operation::add:
                result += i == first ? 0 : value;
                break;
            case Operation::min:
                result = value < result ? value : result;
                break;
            case Operation::max:
                result = value > result ? value : result;
                break;
            case Operation::min_signed:
                result =
                    static_cast<std::int32_t>(value) < static_cast<std::int32_t>(result) ? value : result;
                break;
            case Operation::max_signed:
                result =
                    static_cast<std::int32_t>(value) > static_cast<std::int32_t>(result) ? value : result;
                break;
            case Operation::match_all:
                result = value == all[first].value && (i == first || result != 0) ? lanes : 0;
                break;
            case Operation::match_any:
                all[i].result = 0;
                for (unsigned j = 0; j < 32; ++j)
                    if (lanes >> j & 1 && all[j].value == value) all[i].result |= 1u << j;
                break;
            case Operation::shuffle:
                // What an absent lane would give is undefined.
                all[i].result = lanes >> all[i].argument & 1 ? all[all[i].argument].value : poison;
                break;
            default:
                break;
        }
    }
    const bool own = operation == Operation::match_any || operation == Operation::shuffle;
    for (unsigned i = first; i < 32; ++i) {
        if (!(lanes >> i & 1)) continue;
        if (!own) all[i].result = result;
        wake(all[i]);
    }
    warp.waiting &= ~lanes;
}

std::uint64_t Executor::warp(Operation operation, unsigned mask, std::uint64_t value, unsigned argument) {
    Thread& thread = *current_;
    if (!(mask >> thread.lane & 1))
        fail("lane %u is at %s with mask %#x, which does not name it", thread.lane, name(operation), mask);
    thread.operation = operation;
    thread.mask = mask;
    thread.value = value;
    thread.argument = argument;
    thread.state = State::at_warp;
    Warp& warp = warps_[thread.warp];
    warp.waiting |= 1u << thread.lane;
    release_warp(warp, thread.lane);
    suspend(thread);
    return thread.result;
}

void Executor::yield() {
    Thread& thread = *current_;
    wake(thread);
    suspend(thread);
}

void Executor::prepare(const Kernel& kernel) {
    kernel_ = &kernel;
    gridDim = kernel.grid;
    blockDim = kernel.block;
    const std::size_t count = std::size_t{blockDim.x} * blockDim.y * blockDim.z;
    threads_.assign(count, Thread{});
    order_.resize(count);
    warps_.assign((count + 31) / 32, Warp{});
    for (unsigned i = 0; i < count; ++i) {
        threads_[i].index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
        threads_[i].warp = i / 32;
        threads_[i].lane = i % 32;
        order_[i] = &threads_[i];
    }
    for (std::size_t i = 0; i < warps_.size(); ++i) warps_[i].lanes = &threads_[32 * i];
}

template <typename T>
void shuffle_all(std::vector<T>& items, Random& chance) {
    for (std::size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[chance.below(i)]);
}

void Executor::run_block() {
    shuffle_all(order_, chance);
    started_ = 0;
    live_ = threads_.size();
    for (Thread& thread : threads_) thread.state = State::running;
    for (Warp& warp : warps_) warp.exited = warp.waiting = 0;
    // A last warp that is not full: its missing lanes have returned before they began.
    if (const unsigned rest = threads_.size() % 32; rest != 0) warps_.back().exited = ~0u << rest;
    switch_to(*idle_fiber());
}

void Executor::run(const Kernel& kernel) {
    prepare(kernel);
    fiber_ = &main_;
    std::vector<std::uint32_t> blocks(std::size_t{gridDim.x} * gridDim.y * gridDim.z);
    std::iota(blocks.begin(), blocks.end(), 0u);
    shuffle_all(blocks, chance);
    for (const std::uint32_t block : blocks) {
        blockIdx = {block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y};
        run_block();
    }
    kernel_ = nullptr;
    current_ = nullptr;
}

}  // namespace

Random& chance() { return executor().chance; }
void run(const Kernel& kernel) { executor().run(kernel); }
int barrier(Operation operation, int predicate) { return executor().barrier(operation, predicate); }
std::uint64_t warp(Operation operation, unsigned mask, std::uint64_t value, unsigned argument) {
    return executor().warp(operation, mask, value, argument);
}
unsigned lane() { return executor().lane(); }
void yield() { executor().yield(); }
void trap(const char* what) { executor().fail("%s", what); }

}  // namespace cuda_emulator
