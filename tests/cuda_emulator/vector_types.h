// CUDA's vector types, with CUDA's alignments.
#pragma once

#define CUDA_EMULATOR_VECTORS(name, type)                                                  \
    struct name##1 { type x; };                                                            \
    struct alignas(2 * sizeof(type)) name##2 { type x, y; };                               \
    struct name##3 { type x, y, z; };                                                      \
    struct alignas(sizeof(type) < 4 ? 4 * sizeof(type) : 16) name##4 { type x, y, z, w; }; \
    inline name##1 make_##name##1(type x) { return {x}; }                                  \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; }                       \
    inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }            \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

CUDA_EMULATOR_VECTORS(char, signed char)
CUDA_EMULATOR_VECTORS(uchar, unsigned char)
CUDA_EMULATOR_VECTORS(short, short)
CUDA_EMULATOR_VECTORS(ushort, unsigned short)
CUDA_EMULATOR_VECTORS(int, int)
CUDA_EMULATOR_VECTORS(uint, unsigned)
CUDA_EMULATOR_VECTORS(longlong, long long)
CUDA_EMULATOR_VECTORS(ulonglong, unsigned long long)
CUDA_EMULATOR_VECTORS(float, float)
CUDA_EMULATOR_VECTORS(double, double)
#undef CUDA_EMULATOR_VECTORS

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    constexpr operator uint3() const { return {x, y, z}; }
};
