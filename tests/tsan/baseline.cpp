// In place of csrc/cpu/dispatch.cpp: the threads around the kernels are the same for every instruction set.
#include "csrc/cpu/isa.h"

namespace fai::cpu {
const Kernels& kernels() { return baseline::table(); }
}  // namespace fai::cpu
