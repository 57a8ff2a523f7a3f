// parallel_for over a lazily started pool of sleeping workers.
#pragma once

#include <cstdint>
#include <functional>

namespace fai {

// Cores this process may run on.
int available_threads();

// Threads to use for a caller's num_threads: 0 means all available; anything above that is cut to it.
int resolve_threads(int requested);

// Runs body(task) once for every task in [0, tasks), on up to num_threads threads, the caller's among them.
// Returns when all are done; the first exception a task threw is thrown again here. Idle workers block, they
// never spin. After fork() the child starts a pool of its own. May be called from several threads at once
// and from inside a task.
void parallel_for(int64_t tasks, int num_threads, const std::function<void(int64_t)>& body);

}  // namespace fai
