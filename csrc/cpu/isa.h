// The tables that the isa_*.cpp files define.
#pragma once

#include "csrc/cpu/kernels.h"

namespace fai::cpu {

namespace baseline {
const Kernels& table();
}
#if defined(__x86_64__)
namespace avx2 {
const Kernels& table();
}
namespace avx512 {
const Kernels& table();
}
#endif

}  // namespace fai::cpu
