// Tasks over a lazily started pool of workers.
#pragma once

#include <cstdint>
#include <functional>

namespace fai {

// CPUs that this process may run on, and at most the CPU quota of its control groups.
int available_threads();

// Threads to use for a caller's num_threads: 0 means all available; anything above the CPUs that this process
// may run on is cut to them. A quota does not cut: whoever asks for more may want to spend it faster.
int resolve_threads(int requested);

// Runs body(task) once for every task in [0, tasks), on up to num_threads threads, the caller's among them.
// Returns when all are done; the first exception a task threw is thrown again here. Idle workers block, they
// never spin. After fork() the child starts a pool of its own. May be called from several threads at once
// and from inside a task.
void parallel_for(int64_t tasks, int num_threads, const std::function<void(int64_t)>& body);

// The most tasks of one relay().
inline constexpr int64_t kMaxRelayTasks = 512;

// Tasks whose results are wanted in their order, as soon as there are some: runs work(task) once for every
// task in [0, tasks), on up to num_threads threads, the caller's among them, and on the caller's thread alone
// first meanwhile(), while the workers wake, then pass_on(begin, end) for every run of tasks that is done and
// before which nothing is missing. Returns when all have been passed on.
//
// `work` must not throw; what the other two throw is thrown again once no worker is inside. Allocates nothing
// after the first call. The caller spins for the last tasks, and workers a little for the next relay, since
// waking takes about as long as a task; then both block. Otherwise as parallel_for().
void relay(int64_t tasks, int num_threads, const std::function<void(int64_t)>& work,
           const std::function<void()>& meanwhile, const std::function<void(int64_t, int64_t)>& pass_on);

}  // namespace fai
