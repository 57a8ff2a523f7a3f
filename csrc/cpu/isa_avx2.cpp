// The kernels for AVX2 with F16C and BMI2 (x86-64-v3); CMakeLists.txt gives this file its compiler flags.
#if defined(__AVX2__)
#define FAI_ISA avx2
#define FAI_ISA_NAME "avx2"
#include "csrc/cpu/isa.inl"
#endif
