// Chooses the table of kernels, once.
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "csrc/core/error.h"
#include "csrc/cpu/isa.h"

namespace fai::cpu {
namespace {

struct Isa {
    const char* name;
    const Kernels& (*table)();
    bool (*available)();
};

// FMA stands for F16C, which came before it and which Clang 14 cannot ask for.
const Isa kIsas[] = {
#if defined(__x86_64__)
    {"baseline", baseline::table, [] { return true; }},
    {"avx2", avx2::table,
     [] {
         return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                __builtin_cpu_supports("popcnt");
     }},
    {"avx512", avx512::table,
     [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("fma") &&
                __builtin_cpu_supports("bmi2");
     }},
#elif defined(__ARM_NEON)
    {"neon", baseline::table, [] { return true; }},
#else
    {"baseline", baseline::table, [] { return true; }},
#endif
};

const Kernels& choose() {
    const char* forced = std::getenv("FAI_FAST_FORCE_ISA");
    if (forced && !*forced) forced = nullptr;
    const Isa* best = nullptr;
    std::string choices;
    for (const Isa& isa : kIsas) {
        if (!isa.available()) continue;
        if (!forced || std::strcmp(forced, isa.name) == 0) best = &isa;
        choices += std::string(choices.empty() ? "" : ", ") + isa.name;
    }
    if (!best) {
        throw std::runtime_error(
            message("FAI_FAST_FORCE_ISA: got '", forced, "', expected one that this machine has: ", choices));
    }
    return best->table();
}

}  // namespace

const Kernels& kernels() {
    static const Kernels& table = choose();
    return table;
}

std::vector<IsaInfo> isas() {
    std::vector<IsaInfo> all;
    for (const Isa& isa : kIsas) all.push_back({isa.name, isa.available()});
    return all;
}

}  // namespace fai::cpu
