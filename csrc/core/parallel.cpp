#include "csrc/core/parallel.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>

namespace fai {
namespace {

struct Job {
    Job(int64_t tasks_, int helpers, const std::function<void(int64_t)>& body_)
        : tasks(tasks_), helpers_wanted(helpers), body(&body_) {}

    int64_t tasks;
    int helpers_wanted;  // under Pool::mutex once queued
    const std::function<void(int64_t)>* body;
    std::atomic<int64_t> next{0};
    int helpers_inside = 0;  // under Pool::mutex
    std::atomic<bool> failed{false};
    std::exception_ptr error;

    void run() noexcept {
        while (!failed.load(std::memory_order_relaxed)) {
            const int64_t task = next.fetch_add(1, std::memory_order_relaxed);
            if (task >= tasks) return;
            try {
                (*body)(task);
            } catch (...) {
                if (!failed.exchange(true)) error = std::current_exception();
            }
        }
    }
};

class Pool {
  public:
    // Lends idle workers to the job, runs it on this thread too, and waits until no worker is inside it.
    void run(Job& job) {
        const bool one_helper = job.helpers_wanted == 1;
        {
            std::lock_guard lock(mutex_);
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
        if (one_helper) {
            wake_.notify_one();
        } else {
            wake_.notify_all();
        }
        job.run();
        std::unique_lock lock(mutex_);
        std::erase(queue_, &job);
        done_.wait(lock, [&] { return job.helpers_inside == 0; });
    }

  private:
    [[noreturn]] void work() {
        std::unique_lock lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return !queue_.empty(); });
            Job* job = queue_.front();
            ++job->helpers_inside;
            if (--job->helpers_wanted == 0) queue_.pop_front();
            lock.unlock();
            job->run();
            lock.lock();
            if (--job->helpers_inside == 0) done_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    std::condition_variable done_;
    std::deque<Job*> queue_;
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

}  // namespace

int available_threads() {
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
    return std::max(1u, std::thread::hardware_concurrency());
}

int resolve_threads(int requested) {
    const int available = available_threads();
    return requested <= 0 ? available : std::min(requested, available);
}

void parallel_for(int64_t tasks, int num_threads, const std::function<void(int64_t)>& body) {
    const int helpers = static_cast<int>(std::min<int64_t>(num_threads, tasks)) - 1;
    Job job(tasks, helpers, body);
    if (helpers <= 0) {
        job.run();
    } else {
        pool().run(job);
    }
    if (job.error) std::rethrow_exception(job.error);
}

}  // namespace fai
