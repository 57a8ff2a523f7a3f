// CUDA's half, by way of float: exact, since float has more than twice its digits.
#pragma once

#include <cmath>

#include "cuda_runtime.h"

namespace cuda_emulator {

inline unsigned short half_bits(float value) {
    const unsigned bits = __float_as_uint(value);
    const unsigned sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return 0x7fff;
    if (magnitude >= 0x477ff000) return static_cast<unsigned short>(sign | 0x7c00);  // from 65520
    if (magnitude < 0x38800000)  // below 2^-14: a whole number of 2^-24
        return static_cast<unsigned short>(
            sign | static_cast<unsigned>(std::nearbyint(__uint_as_float(magnitude) * 0x1p24f)));
    const unsigned rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return static_cast<unsigned short>(sign | ((rounded >> 13) - (112 << 10)));
}

inline float half_value(unsigned short half) {
    const unsigned sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ff;
    if (exponent == 0)
        return __uint_as_float(sign | __float_as_uint(static_cast<float>(fraction) * 0x1p-24f));
    return __uint_as_float(sign | (exponent == 31 ? 0xffu : exponent + 112) << 23 | fraction << 13);
}

}  // namespace cuda_emulator

struct alignas(2) __half {
    unsigned short __x;

    __half() = default;
    __half(float value) : __x(cuda_emulator::half_bits(value)) {}
    // By way of float, as CUDA's own from int; from double the low bits are kept so that it rounds only once.
    __half(double value) : __x(rounded(value)) {}
    __half(int value) : __half(static_cast<double>(value)) {}
    __half(unsigned value) : __half(static_cast<double>(value)) {}
    operator float() const { return cuda_emulator::half_value(__x); }

  private:
    static unsigned short rounded(double value) {
        float near = static_cast<float>(value);
        if (near != value && std::isfinite(near) && (__float_as_uint(near) & 1) == 0) {
            // Round to odd: the float next to it on the other side of the value is odd.
            near = std::nextafter(near, near < value ? HUGE_VALF : -HUGE_VALF);
        }
        return cuda_emulator::half_bits(near);
    }
};
using half = __half;

struct alignas(4) __half2 {
    __half x, y;
};
using half2 = __half2;

inline float __half2float(__half x) { return x; }
inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline __half __double2half(double x) { return x; }
CUDA_EMULATOR_BITS(__half_as_ushort, __half, unsigned short)
CUDA_EMULATOR_BITS(__half_as_short, __half, short)
CUDA_EMULATOR_BITS(__ushort_as_half, unsigned short, __half)
CUDA_EMULATOR_BITS(__short_as_half, short, __half)

inline __half2 make_half2(__half x, __half y) { return {x, y}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __half2half2(__half x) { return {x, x}; }
inline __half2 __float2half2_rn(float x) { return {x, x}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __float22half2_rn(float2 v) { return {v.x, v.y}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
inline float __low2float(__half2 v) { return v.x; }
inline float __high2float(__half2 v) { return v.y; }

#define CUDA_EMULATOR_HALVES(name, operator_)                                                                \
    inline __half name(__half a, __half b) { return static_cast<float>(a) operator_ static_cast<float>(b); } \
    inline __half operator operator_(__half a, __half b) { return name(a, b); }
CUDA_EMULATOR_HALVES(__hadd, +)
CUDA_EMULATOR_HALVES(__hsub, -)
CUDA_EMULATOR_HALVES(__hmul, *)
CUDA_EMULATOR_HALVES(__hdiv, /)
#define CUDA_EMULATOR_COMPARED_HALVES(name, operator_)                                                     \
    inline bool name(__half a, __half b) { return static_cast<float>(a) operator_ static_cast<float>(b); } \
    inline bool operator operator_(__half a, __half b) { return name(a, b); }
CUDA_EMULATOR_COMPARED_HALVES(__heq, ==)
CUDA_EMULATOR_COMPARED_HALVES(__hne, !=)
CUDA_EMULATOR_COMPARED_HALVES(__hlt, <)
CUDA_EMULATOR_COMPARED_HALVES(__hle, <=)
CUDA_EMULATOR_COMPARED_HALVES(__hgt, >)
CUDA_EMULATOR_COMPARED_HALVES(__hge, >=)
inline __half __hneg(__half x) { return __ushort_as_half(static_cast<unsigned short>(x.__x ^ 0x8000)); }
inline __half operator-(__half x) { return __hneg(x); }
inline bool __hisnan(__half x) { return std::isnan(static_cast<float>(x)); }
inline __half __hmax(__half a, __half b) { return std::fmax(static_cast<float>(a), static_cast<float>(b)); }
inline __half __hmin(__half a, __half b) { return std::fmin(static_cast<float>(a), static_cast<float>(b)); }
