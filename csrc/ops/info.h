// What was compiled in and what is in use.
#pragma once

#include <string>
#include <vector>

namespace fai::ops {

struct BuildInfo {
    std::string isa;  // in use
    std::vector<std::string> isas_compiled;
    std::vector<std::string> isas_available;  // on this CPU, the best last
    bool cuda;
    std::string cuda_toolkit;  // "13.0"; empty without CUDA
    int threads;
};

// Throws std::runtime_error where FAI_FAST_FORCE_ISA cannot be had.
BuildInfo build_info();

}  // namespace fai::ops
