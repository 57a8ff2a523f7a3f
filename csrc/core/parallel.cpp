#include "csrc/core/parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "csrc/core/cpus.h"

namespace fai {
namespace {

using Clock = std::chrono::steady_clock;

// Longer than the pieces of a frame take, and too short to be noticed where a core is waited for.
constexpr auto kCallerSpins = std::chrono::microseconds(200);
// About what waking a thread takes.
constexpr auto kWorkerSpins = std::chrono::microseconds(50);

void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Waits until condition() or for `longest`; false where that was too short.
template <class Condition>
bool spin(Clock::duration longest, Condition&& condition) {
    const auto end = Clock::now() + longest;
    do {
        for (int i = 0; i < 32; ++i) {
            if (condition()) return true;
            relax();
        }
    } while (Clock::now() < end);
    return false;
}

struct Job {
    Job(int64_t tasks_, int helpers) : tasks(tasks_), helpers_wanted(helpers) {}
    virtual ~Job() = default;
    // Takes tasks until there are none.
    virtual void run() noexcept = 0;

    const int64_t tasks;
    int helpers_wanted;  // under Pool's mutex once queued
    bool soon_again = false;
    std::atomic<int64_t> next{0};
    std::atomic<int> helpers_inside{0};  // changed under Pool's mutex
};

struct Loop final : Job {
    Loop(int64_t tasks_, int helpers, const std::function<void(int64_t)>& body_)
        : Job(tasks_, helpers), body(body_) { soon_again = true; }

    void run() noexcept override {
        while (!failed.load(std::memory_order_relaxed)) {
            const int64_t task = next.fetch_add(1, std::memory_order_relaxed);
            if (task >= tasks) return;
            try {
                body(task);
            } catch (...) {
                if (!failed.exchange(true)) error = std::current_exception();
            }
        }
    }

    const std::function<void(int64_t)>& body;
    std::atomic<bool> failed{false};
    std::exception_ptr error;
};

struct Relay final : Job {
    Relay(int64_t tasks_, int helpers, const std::function<void(int64_t)>& work_)
        : Job(tasks_, helpers), work(work_) {
        soon_again = true;
    }

    bool run_one() noexcept {
        const int64_t task = next.fetch_add(1, std::memory_order_relaxed);
        if (task >= tasks) return false;
        work(task);
        done[task].store(true, std::memory_order_release);
        return true;
    }
    void run() noexcept override {
        while (run_one()) {
        }
    }
    // No task is begun any more.
    void stop() { next.store(tasks, std::memory_order_relaxed); }

    const std::function<void(int64_t)>& work;
    std::atomic<bool> done[kMaxRelayTasks] = {};
};

class Pool {
  public:
    // Lends workers to the job, which must stay until finish(). Does not block.
    void start(Job& job) {
        const int wanted = job.helpers_wanted;
        {
            const std::lock_guard lock(mutex_);
            // A machine that refuses another thread leaves the work to those there are.
            try {
                while (workers_ < job.helpers_wanted) {
                    std::thread([this] { work(); }).detach();
                    ++workers_;
                }
            } catch (const std::system_error&) {
            }
            queue_.push_back(&job);
        }
        calls_.fetch_add(1, std::memory_order_release);
        wake(wanted);
    }

    // Blocks until no worker is inside the job, nor will be.
    void finish(Job& job) {
        {
            const std::lock_guard lock(mutex_);
            std::erase(queue_, &job);
        }
        const auto left = [&] { return job.helpers_inside.load(std::memory_order_acquire) == 0; };
        if (job.soon_again && spin(kCallerSpins, left)) return;
        std::unique_lock lock(mutex_);
        done_.wait(lock, left);
    }

  private:
    // Each who wakes wakes others: one thread would be at it for as long as a small task takes.
    void wake(int wanted) {
        for (int i = 0; i < std::min(wanted, 2); ++i) calls_.notify_one();
    }

    [[noreturn]] void work() {
        bool soon_again = false;
        for (;;) {
            const int seen = calls_.load(std::memory_order_acquire);
            int still_wanted = 0;
            if (Job* job = enter(still_wanted)) {
                wake(still_wanted);
                job->run();
                soon_again = job->soon_again;
                leave(*job);
                continue;
            }
            const auto called = [&] { return calls_.load(std::memory_order_relaxed) != seen; };
            if (std::exchange(soon_again, false) && spin(kWorkerSpins, called)) continue;
            calls_.wait(seen, std::memory_order_relaxed);
        }
    }

    Job* enter(int& still_wanted) {
        const std::lock_guard lock(mutex_);
        if (queue_.empty()) return nullptr;
        Job* job = queue_.front();
        job->helpers_inside.fetch_add(1, std::memory_order_relaxed);
        if (--job->helpers_wanted == 0) queue_.erase(queue_.begin());
        still_wanted = queue_.empty() ? 0 : queue_.front()->helpers_wanted;
        return job;
    }

    void leave(Job& job) {
        // The job may be gone as soon as nobody is inside.
        const std::lock_guard lock(mutex_);
        if (job.helpers_inside.fetch_sub(1, std::memory_order_release) == 1) done_.notify_all();
    }

    std::mutex mutex_;
    std::condition_variable done_;
    std::atomic<int> calls_{0};  // changes whenever there is a new job
    std::vector<Job*> queue_;
    int workers_ = 0;
};

std::atomic<Pool*> g_pool{nullptr};

// The pool is never destroyed: workers may still sleep in it while the process exits, and after fork() the
// child abandons the parent's, whose threads and locks it did not inherit in a usable state.
Pool& pool() {
    if (Pool* existing = g_pool.load(std::memory_order_acquire)) return *existing;
    static const int registered = pthread_atfork(nullptr, nullptr, [] { g_pool.store(nullptr); });
    (void)registered;
    auto fresh = std::make_unique<Pool>();
    Pool* expected = nullptr;
    if (g_pool.compare_exchange_strong(expected, fresh.get())) return *fresh.release();
    return *expected;
}

int cpus_to_run_on() {
#ifdef __linux__
    if (const int cpus = affinity_cpus()) return cpus;
#endif
    return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

}  // namespace

int available_threads() {
    // Read once, from some ten files, as calls ask for every frame. Not a static local, whose lock a child
    // that is forked meanwhile would find taken for good.
    static std::atomic<int> known{-1};
    int quota = known.load(std::memory_order_relaxed);
    if (quota < 0) known.store(quota = quota_cpus(), std::memory_order_relaxed);
    return quota ? std::min(quota, cpus_to_run_on()) : cpus_to_run_on();
}

int resolve_threads(int requested) {
    return requested <= 0 ? available_threads() : std::min(requested, cpus_to_run_on());
}

void parallel_for(int64_t tasks, int num_threads, const std::function<void(int64_t)>& body) {
    const int helpers = static_cast<int>(std::min<int64_t>(num_threads, tasks)) - 1;
    Loop job(tasks, helpers, body);
    if (helpers <= 0) {
        job.run();
    } else {
        Pool& workers = pool();
        workers.start(job);
        job.run();
        workers.finish(job);
    }
    if (job.error) std::rethrow_exception(job.error);
}

void relay(int64_t tasks, int num_threads, const std::function<void(int64_t)>& work,
           const std::function<void()>& meanwhile, const std::function<void(int64_t, int64_t)>& pass_on) {
    if (tasks > kMaxRelayTasks) throw std::length_error("relay: more tasks than kMaxRelayTasks");
    const int helpers = static_cast<int>(std::min<int64_t>(num_threads, tasks)) - 1;
    Relay job(tasks, helpers, work);
    int64_t passed = 0;
    const auto pass = [&] {
        int64_t end = passed;
        while (end < tasks && job.done[end].load(std::memory_order_acquire)) ++end;
        if (end == passed) return;
        const int64_t begin = std::exchange(passed, end);
        pass_on(begin, end);
    };
    Pool* const workers = helpers > 0 ? &pool() : nullptr;
    if (workers) workers->start(job);
    try {
        meanwhile();
        while (job.run_one()) pass();
        // What is missing now is in the hands of workers.
        const auto all_passed = [&] {
            pass();
            return passed == tasks;
        };
        spin(kCallerSpins, all_passed);
    } catch (...) {
        job.stop();
        if (workers) workers->finish(job);
        throw;
    }
    if (workers) workers->finish(job);
    pass();
}

}  // namespace fai
