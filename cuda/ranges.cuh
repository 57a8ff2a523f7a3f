// What the host does with a frame, by name in a profiler's time line (NVTX): only in builds with
// FAI_FAST_NVTX=ON.
#pragma once

#ifdef FAI_FAST_NVTX
#include <nvtx3/nvToolsExt.h>
#endif

namespace fai::cuda {

class Range {
  public:
#ifdef FAI_FAST_NVTX
    explicit Range(const char* name) { nvtxRangePushA(name); }
    ~Range() { nvtxRangePop(); }
#else
    explicit Range(const char*) {}
#endif
    Range(const Range&) = delete;
    Range& operator=(const Range&) = delete;
};

}  // namespace fai::cuda
