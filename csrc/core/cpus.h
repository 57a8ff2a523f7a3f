// How many CPUs this process may keep busy.
#pragma once

#ifdef __linux__
#include <sched.h>
#endif

#include <string>

namespace fai {

#ifdef __linux__
using GetAffinity = int (*)(pid_t, size_t, cpu_set_t*);

// CPUs in the calling thread's mask, however many the machine has; 0 where the system does not say. `get` is
// another function in tests alone.
int affinity_cpus(GetAffinity get = sched_getaffinity);
#endif

// The least CPU quota of the control groups (version 1 or 2) that this process is in, and of those above
// them, in whole CPUs, rounded up; 0 where there is none. `root` precedes every path that is read, for tests.
int quota_cpus(const std::string& root = "");

}  // namespace fai
