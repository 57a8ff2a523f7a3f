// The kernels for what every CPU of the target has: SSE2 on x86-64, NEON on 64-bit ARM.
#define FAI_ISA baseline
#if defined(__ARM_NEON)
#define FAI_ISA_NAME "neon"
#else
#define FAI_ISA_NAME "baseline"
#endif
#include "csrc/cpu/isa.inl"
