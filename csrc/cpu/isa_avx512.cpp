// The kernels for AVX-512 F, BW, DQ, VL and CD (x86-64-v4); CMakeLists.txt gives this file its compiler
// flags.
#if defined(__AVX512BW__)
#define FAI_ISA avx512
#define FAI_ISA_NAME "avx512"
#include "csrc/cpu/isa.inl"
#endif
