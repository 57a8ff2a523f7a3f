// Sixteen lanes, whatever the machine: one zmm, two ymm, four xmm or four NEON registers. Because every ISA
// works on the same sixteen lanes in the same order, and nothing is fused, all give the same bits.
//
// Include only from csrc/cpu/*.inl. FAI_ISA names the namespace; everything in it is inlined.
#pragma once

#include <cstdint>
#include <cstring>

#include "csrc/math/hd.h"
#include "csrc/math/scalar.h"

#if defined(__AVX2__) || defined(__F16C__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace fai::cpu::FAI_ISA {

inline constexpr int kLanes = 16;

#if defined(__AVX512BW__)
inline constexpr int kRegisterBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kRegisterBytes = 32;
#else
inline constexpr int kRegisterBytes = 16;
#endif
inline constexpr int kLanesPerRegister = kRegisterBytes / 4;   // lanes per register
inline constexpr int kRegisters = kLanes / kLanesPerRegister;  // registers per vector

typedef float NativeF __attribute__((vector_size(kRegisterBytes), may_alias));
typedef int32_t NativeI __attribute__((vector_size(kRegisterBytes), may_alias));
typedef uint32_t NativeU __attribute__((vector_size(kRegisterBytes), may_alias));
// Registers as they lie in memory, at any address.
typedef float MemoryF __attribute__((vector_size(kRegisterBytes), may_alias, aligned(1)));
typedef int32_t MemoryI __attribute__((vector_size(kRegisterBytes), may_alias, aligned(1)));

#define FAI_FOR_REGISTERS for (int k = 0; k < kRegisters; ++k)

struct F32 {
    NativeF r[kRegisters];
};

struct I32 {
    NativeI r[kRegisters];
};

// A yes or no per lane.
struct Mask {
#if defined(__AVX512BW__)
    __mmask16 bits;
#else
    NativeI r[kRegisters];  // all ones or all zeros
#endif
};

// ---- making, loading, storing

FAI_HD F32 broadcast(float value) {
    F32 v;
    // Minus zero changes no number, and so is no operation; plus zero would be one, as it changes -0.
    FAI_FOR_REGISTERS v.r[k] = value - NativeF{};
    return v;
}
FAI_HD F32 broadcast(const F32&, float value) { return broadcast(value); }
FAI_HD I32 broadcast_int(int32_t value) {
    I32 v;
    FAI_FOR_REGISTERS v.r[k] = NativeI{} + value;
    return v;
}
FAI_HD F32 load(const float* p) {
    F32 v;
    FAI_FOR_REGISTERS v.r[k] = reinterpret_cast<const MemoryF*>(p)[k];
    return v;
}
FAI_HD I32 load(const int32_t* p) {
    I32 v;
    FAI_FOR_REGISTERS v.r[k] = reinterpret_cast<const MemoryI*>(p)[k];
    return v;
}
FAI_HD void store(float* p, const F32& v) { FAI_FOR_REGISTERS reinterpret_cast<MemoryF*>(p)[k] = v.r[k]; }
FAI_HD void store(int32_t* p, const I32& v) { FAI_FOR_REGISTERS reinterpret_cast<MemoryI*>(p)[k] = v.r[k]; }

// ---- arithmetic

FAI_HD F32 operator+(const F32& a, const F32& b) {
    F32 v;
    FAI_FOR_REGISTERS v.r[k] = a.r[k] + b.r[k];
    return v;
}
FAI_HD F32 operator-(const F32& a, const F32& b) {
    F32 v;
    FAI_FOR_REGISTERS v.r[k] = a.r[k] - b.r[k];
    return v;
}
FAI_HD F32 operator*(const F32& a, const F32& b) {
    F32 v;
    FAI_FOR_REGISTERS v.r[k] = a.r[k] * b.r[k];
    return v;
}
// About a * b + c, rounded once where the machine can: for bounds alone, as it is not the same everywhere.
FAI_HD F32 about_multiply_add(const F32& a, const F32& b, const F32& c) {
    F32 v;
#if defined(__AVX512BW__)
    v.r[0] = (NativeF)_mm512_fmadd_ps((__m512)a.r[0], (__m512)b.r[0], (__m512)c.r[0]);
#elif defined(__FMA__)
    FAI_FOR_REGISTERS v.r[k] = (NativeF)_mm256_fmadd_ps((__m256)a.r[k], (__m256)b.r[k], (__m256)c.r[k]);
#elif defined(__aarch64__)
    FAI_FOR_REGISTERS v.r[k] =
        (NativeF)vfmaq_f32((float32x4_t)c.r[k], (float32x4_t)a.r[k], (float32x4_t)b.r[k]);
#else
    FAI_FOR_REGISTERS v.r[k] = a.r[k] * b.r[k] + c.r[k];
#endif
    return v;
}
FAI_HD F32 operator/(const F32& a, const F32& b) {
    F32 v;
    FAI_FOR_REGISTERS v.r[k] = a.r[k] / b.r[k];
    return v;
}
FAI_HD I32 operator+(const I32& a, const I32& b) {
    I32 v;
    FAI_FOR_REGISTERS v.r[k] = a.r[k] + b.r[k];
    return v;
}
FAI_HD I32 operator-(const I32& a, const I32& b) {
    I32 v;
    FAI_FOR_REGISTERS v.r[k] = a.r[k] - b.r[k];
    return v;
}
FAI_HD I32 operator&(const I32& a, const I32& b) {
    I32 v;
    FAI_FOR_REGISTERS v.r[k] = a.r[k] & b.r[k];
    return v;
}
template <int n>
FAI_HD I32 shift_right(const I32& a) {
    I32 v;
    FAI_FOR_REGISTERS v.r[k] = (NativeI)((NativeU)a.r[k] >> n);
    return v;
}
FAI_HD I32 shift_right(const I32& a, int n) {
    I32 v;
    FAI_FOR_REGISTERS v.r[k] = (NativeI)((NativeU)a.r[k] >> n);
    return v;
}
FAI_HD F32 to_float(const I32& a) {
    F32 v;
    FAI_FOR_REGISTERS v.r[k] = __builtin_convertvector(a.r[k], NativeF);
    return v;
}
// Towards zero; of numbers that an int32 holds.
FAI_HD I32 to_int(const F32& a) {
    I32 v;
    FAI_FOR_REGISTERS v.r[k] = __builtin_convertvector(a.r[k], NativeI);
    return v;
}
FAI_HD F32 power_of_two(const F32& n) {
    F32 v;
    FAI_FOR_REGISTERS v.r[k] = (NativeF)((__builtin_convertvector(n.r[k], NativeI) + 127) << 23);
    return v;
}

// minimum and maximum return b where either is NaN, as minps does, on every ISA.
FAI_HD F32 minimum(const F32& a, const F32& b) {
    F32 v;
#if defined(__AVX512BW__)
    v.r[0] = (NativeF)_mm512_min_ps((__m512)a.r[0], (__m512)b.r[0]);
#elif defined(__AVX2__)
    FAI_FOR_REGISTERS v.r[k] = (NativeF)_mm256_min_ps((__m256)a.r[k], (__m256)b.r[k]);
#elif defined(__SSE2__)
    FAI_FOR_REGISTERS v.r[k] = (NativeF)_mm_min_ps((__m128)a.r[k], (__m128)b.r[k]);
#else
    FAI_FOR_REGISTERS v.r[k] = a.r[k] < b.r[k] ? a.r[k] : b.r[k];
#endif
    return v;
}
FAI_HD F32 maximum(const F32& a, const F32& b) {
    F32 v;
#if defined(__AVX512BW__)
    v.r[0] = (NativeF)_mm512_max_ps((__m512)a.r[0], (__m512)b.r[0]);
#elif defined(__AVX2__)
    FAI_FOR_REGISTERS v.r[k] = (NativeF)_mm256_max_ps((__m256)a.r[k], (__m256)b.r[k]);
#elif defined(__SSE2__)
    FAI_FOR_REGISTERS v.r[k] = (NativeF)_mm_max_ps((__m128)a.r[k], (__m128)b.r[k]);
#else
    FAI_FOR_REGISTERS v.r[k] = a.r[k] > b.r[k] ? a.r[k] : b.r[k];
#endif
    return v;
}

// ---- comparing and choosing

#if defined(__AVX512BW__)
FAI_HD Mask operator>=(const F32& a, const F32& b) {
    return {_mm512_cmp_ps_mask((__m512)a.r[0], (__m512)b.r[0], _CMP_GE_OQ)};
}
FAI_HD Mask operator>(const F32& a, const F32& b) {
    return {_mm512_cmp_ps_mask((__m512)a.r[0], (__m512)b.r[0], _CMP_GT_OQ)};
}
FAI_HD Mask operator<(const F32& a, const F32& b) { return b > a; }
FAI_HD Mask is_nan(const F32& a) {
    return {_mm512_cmp_ps_mask((__m512)a.r[0], (__m512)a.r[0], _CMP_UNORD_Q)};
}
FAI_HD Mask equal(const I32& a, const I32& b) {
    return {_mm512_cmpeq_epi32_mask((__m512i)a.r[0], (__m512i)b.r[0])};
}
FAI_HD Mask operator&(Mask a, Mask b) { return {static_cast<__mmask16>(a.bits & b.bits)}; }
FAI_HD Mask operator|(Mask a, Mask b) { return {static_cast<__mmask16>(a.bits | b.bits)}; }
FAI_HD uint32_t bits(Mask m) { return m.bits; }
FAI_HD Mask mask_of(uint32_t wanted) { return {static_cast<__mmask16>(wanted)}; }
FAI_HD F32 select(Mask m, const F32& yes, const F32& no) {
    return {{(NativeF)_mm512_mask_blend_ps(m.bits, (__m512)no.r[0], (__m512)yes.r[0])}};
}
FAI_HD I32 select(Mask m, const I32& yes, const I32& no) {
    return {{(NativeI)_mm512_mask_blend_epi32(m.bits, (__m512i)no.r[0], (__m512i)yes.r[0])}};
}
#else
FAI_HD Mask operator>=(const F32& a, const F32& b) {
    Mask m;
    FAI_FOR_REGISTERS m.r[k] = a.r[k] >= b.r[k];
    return m;
}
FAI_HD Mask operator>(const F32& a, const F32& b) {
    Mask m;
    FAI_FOR_REGISTERS m.r[k] = a.r[k] > b.r[k];
    return m;
}
FAI_HD Mask operator<(const F32& a, const F32& b) { return b > a; }
FAI_HD Mask is_nan(const F32& a) {
    Mask m;
    FAI_FOR_REGISTERS m.r[k] = a.r[k] != a.r[k];
    return m;
}
FAI_HD Mask equal(const I32& a, const I32& b) {
    Mask m;
    FAI_FOR_REGISTERS m.r[k] = a.r[k] == b.r[k];
    return m;
}
FAI_HD Mask operator&(const Mask& a, const Mask& b) {
    Mask m;
    FAI_FOR_REGISTERS m.r[k] = a.r[k] & b.r[k];
    return m;
}
FAI_HD Mask operator|(const Mask& a, const Mask& b) {
    Mask m;
    FAI_FOR_REGISTERS m.r[k] = a.r[k] | b.r[k];
    return m;
}
FAI_HD uint32_t bits(const Mask& m) {
    uint32_t result = 0;
#if defined(__AVX2__)
    FAI_FOR_REGISTERS result |= static_cast<uint32_t>(_mm256_movemask_ps((__m256)m.r[k])) << (8 * k);
#elif defined(__SSE2__)
    FAI_FOR_REGISTERS result |= static_cast<uint32_t>(_mm_movemask_ps((__m128)m.r[k])) << (4 * k);
#else
    const NativeI weights = {1, 2, 4, 8};
    FAI_FOR_REGISTERS {
        const NativeI w = m.r[k] & weights;
        result |= static_cast<uint32_t>(w[0] | w[1] | w[2] | w[3]) << (4 * k);
    }
#endif
    return result;
}
FAI_HD Mask mask_of(uint32_t wanted) {
    Mask m;
    NativeI lane;
    for (int i = 0; i < kLanesPerRegister; ++i) lane[i] = 1 << i;
    FAI_FOR_REGISTERS m.r[k] =
        ((NativeI{} + static_cast<int32_t>(wanted >> (kLanesPerRegister * k))) & lane) != 0;
    return m;
}
FAI_HD F32 select(const Mask& m, const F32& yes, const F32& no) {
    F32 v;
    FAI_FOR_REGISTERS v.r[k] = (NativeF)((m.r[k] & (NativeI)yes.r[k]) | (~m.r[k] & (NativeI)no.r[k]));
    return v;
}
FAI_HD I32 select(const Mask& m, const I32& yes, const I32& no) {
    I32 v;
    FAI_FOR_REGISTERS v.r[k] = (m.r[k] & yes.r[k]) | (~m.r[k] & no.r[k]);
    return v;
}
#endif
FAI_HD bool any(const Mask& m) { return bits(m) != 0; }
FAI_HD bool all(const Mask& m) { return bits(m) == 0xffffu; }

// ---- how many lanes

FAI_HD uint32_t low_bits(int n) { return n >= kLanes ? 0xffffu : (1u << n) - 1u; }
FAI_HD int min_i32(int a, int b) { return a < b ? a : b; }
FAI_HD int max_i32(int a, int b) { return a > b ? a : b; }

// ---- across lanes

// The sum of all lanes, always in the same order: halves, quarters, eighths.
FAI_HD float sum(const F32& v) {
    alignas(64) float lane[kLanes];
    store(lane, v);
    for (int width = kLanes / 2; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
    }
    return lane[0];
}

// The largest and the smallest lane, of numbers.
FAI_HD float greatest(const F32& v) {
    NativeF part = v.r[0];
    for (int k = 1; k < kRegisters; ++k) part = part > v.r[k] ? part : v.r[k];
    float best = part[0];
    for (int i = 1; i < kLanesPerRegister; ++i) best = part[i] > best ? part[i] : best;
    return best;
}
FAI_HD float smallest(const F32& v) {
    NativeF part = v.r[0];
    for (int k = 1; k < kRegisters; ++k) part = part < v.r[k] ? part : v.r[k];
    float best = part[0];
    for (int i = 1; i < kLanesPerRegister; ++i) best = part[i] < best ? part[i] : best;
    return best;
}

// Lane i takes lane i + 1; the last keeps its own.
FAI_HD F32 next_lane(const F32& v) {
#if defined(__AVX512BW__)
    const __m512i index = _mm512_setr_epi32(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 15);
    return {{(NativeF)_mm512_permutexvar_ps(index, (__m512)v.r[0])}};
#elif defined(__AVX2__)
    const __m256 low = _mm256_permutevar8x32_ps((__m256)v.r[0], _mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 0));
    const __m256 high = _mm256_permutevar8x32_ps((__m256)v.r[1], _mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 7));
    const __m256 carry = _mm256_permutevar8x32_ps((__m256)v.r[1], _mm256_setzero_si256());
    return {{(NativeF)_mm256_blend_ps(low, carry, 0x80), (NativeF)high}};
#else
    alignas(64) float lane[kLanes + 1];
    store(lane, v);
    lane[kLanes] = lane[kLanes - 1];
    return load(lane + 1);
#endif
}

// Lane i takes the value of lane index[i], 0 <= index[i] < 16.
FAI_HD F32 permute(const F32& v, const I32& index) {
#if defined(__AVX512BW__)
    return {{(NativeF)_mm512_permutexvar_ps((__m512i)index.r[0], (__m512)v.r[0])}};
#elif defined(__AVX2__)
    F32 result;
    FAI_FOR_REGISTERS {
        const __m256 low = _mm256_permutevar8x32_ps((__m256)v.r[0], (__m256i)index.r[k]);
        const __m256 high = _mm256_permutevar8x32_ps((__m256)v.r[1], (__m256i)index.r[k]);
        // Bit 3 of the index chooses the half; blendv looks at bit 31.
        const __m256 half = _mm256_castsi256_ps(_mm256_slli_epi32((__m256i)index.r[k], 28));
        result.r[k] = (NativeF)_mm256_blendv_ps(low, high, half);
    }
    return result;
#else
    alignas(64) float table[kLanes];
    alignas(64) int32_t at[kLanes];
    alignas(64) float out[kLanes];
    store(table, v);
    store(at, index);
    for (int i = 0; i < kLanes; ++i) out[i] = table[at[i] & (kLanes - 1)];
    return load(out);
#endif
}

// ---- half floats

// Exact for every half, infinities and NaN included.
FAI_HD float half_to_float(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
    const uint32_t magnitude = h & 0x7fffu;
    // The exponent is moved up by 112 with a multiplication, which also normalizes subnormal halves.
    uint32_t shifted = magnitude << 13;
    float value;
    std::memcpy(&value, &shifted, 4);
    value *= 0x1p112f;
    uint32_t result;
    std::memcpy(&result, &value, 4);
    if (magnitude >= 0x7c00u) result = shifted | 0x7f800000u;
    result |= sign;
    std::memcpy(&value, &result, 4);
    return value;
}

// To the nearest half, ties to even; overflow to infinity.
FAI_HD uint16_t float_to_half(float f) {
    uint32_t x;
    std::memcpy(&x, &f, 4);
    const uint16_t sign = static_cast<uint16_t>((x >> 16) & 0x8000u);
    x &= 0x7fffffffu;
    if (x > 0x7f800000u) return sign | 0x7e00u;
    if (x >= 0x477ff000u) return sign | 0x7c00u;
    if (x < 0x38800000u) {  // subnormal half: adding 0.5 leaves the rounded mantissa in the low bits
        float magnitude;
        std::memcpy(&magnitude, &x, 4);
        magnitude += 0.5f;
        uint32_t y;
        std::memcpy(&y, &magnitude, 4);
        return sign | static_cast<uint16_t>(y - 0x3f000000u);
    }
    x += 0xc8000fffu + ((x >> 13) & 1u);
    return sign | static_cast<uint16_t>(x >> 13);
}

FAI_HD F32 load(const uint16_t* p) {
#if defined(__AVX512BW__)
    return {{(NativeF)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}};
#elif defined(__F16C__)
    F32 v;
    FAI_FOR_REGISTERS v.r[k] =
        (NativeF)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + k));
    return v;
#elif defined(__aarch64__)
    F32 v;
    FAI_FOR_REGISTERS v.r[k] =
        (NativeF)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + kLanesPerRegister * k)));
    return v;
#else
    alignas(64) float lane[kLanes];
    for (int i = 0; i < kLanes; ++i) lane[i] = half_to_float(p[i]);
    return load(lane);
#endif
}
FAI_HD void store(uint16_t* p, const F32& v) {
#if defined(__AVX512BW__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph((__m512)v.r[0], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__)
    FAI_FOR_REGISTERS _mm_storeu_si128(reinterpret_cast<__m128i*>(p) + k,
                                       _mm256_cvtps_ph((__m256)v.r[k], _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
    FAI_FOR_REGISTERS vst1_u16(p + kLanesPerRegister * k,
                               vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v.r[k])));
#else
    alignas(64) float lane[kLanes];
    store(lane, v);
    for (int i = 0; i < kLanes; ++i) p[i] = float_to_half(lane[i]);
#endif
}

// The first n <= 16 values; the other lanes are zero. Reads nothing past them.
template <class T>
FAI_HD F32 load_first(const T* p, int n) {
    if (n >= kLanes) return load(p);
    alignas(64) T lane[kLanes] = {};
    std::memcpy(lane, p, static_cast<size_t>(n) * sizeof(T));
    return load(lane);
}
template <class T>
FAI_HD void store_first(T* p, const F32& v, int n) {
    if (n >= kLanes) {
        store(p, v);
        return;
    }
    alignas(64) T lane[kLanes];
    store(lane, v);
    std::memcpy(p, lane, static_cast<size_t>(n) * sizeof(T));
}

// ---- bytes

#if defined(__AVX2__)
FAI_HD I32 from_quarters(const __m128i (&quarter)[4]) {
    const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(quarter[0]), quarter[1], 1);
    const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(quarter[2]), quarter[3], 1);
#if defined(__AVX512BW__)
    return {{(NativeI)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)}};
#else
    return {{(NativeI)low, (NativeI)high}};
#endif
}
#endif

// Four bytes from each of base + offset[0..15], little endian in the lane. Scalar loads: the gather
// instructions are slower than this on most CPUs, and several times so with the microcode against data
// sampling.
FAI_HD I32 gather_bytes(const uint8_t* base, const int32_t* offset) {
#if defined(__AVX2__)
    // Inserted one by one: going through memory would stall on stores narrower than the load that follows.
    __m128i quarter[4];
    for (int k = 0; k < 4; ++k) {
        int32_t word[4];
        for (int i = 0; i < 4; ++i) std::memcpy(&word[i], base + offset[4 * k + i], 4);
        quarter[k] = _mm_setr_epi32(word[0], word[1], word[2], word[3]);
    }
    return from_quarters(quarter);
#else
    alignas(64) int32_t word[kLanes];
    for (int i = 0; i < kLanes; ++i) std::memcpy(&word[i], base + offset[i], 4);
    return load(word);
#endif
}

// Eight bytes from each of base + offset[0..15]: the first four in the lanes of `low`, the others in `high`.
FAI_HD void gather_pairs(const uint8_t* base, const int32_t* offset, I32& low, I32& high) {
#if defined(__AVX2__)
    // Two loads per register, arranged so that one shuffle within 128-bit lanes leaves the columns in order.
    const auto two = [&](int i) {
        const __m128 first =
            _mm_castsi128_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(base + offset[i])));
        return _mm_castps_si128(_mm_loadh_pi(first, reinterpret_cast<const __m64*>(base + offset[i + 1])));
    };
    const __m128i left[4] = {two(0), two(4), two(8), two(12)};
    const __m128i right[4] = {two(2), two(6), two(10), two(14)};
    const I32 a = from_quarters(left), b = from_quarters(right);
#if defined(__AVX512BW__)
    low.r[0] = (NativeI)_mm512_shuffle_ps((__m512)a.r[0], (__m512)b.r[0], 0x88);
    high.r[0] = (NativeI)_mm512_shuffle_ps((__m512)a.r[0], (__m512)b.r[0], 0xdd);
#else
    for (int k = 0; k < kRegisters; ++k) {
        low.r[k] = (NativeI)_mm256_shuffle_ps((__m256)a.r[k], (__m256)b.r[k], 0x88);
        high.r[k] = (NativeI)_mm256_shuffle_ps((__m256)a.r[k], (__m256)b.r[k], 0xdd);
    }
#endif
#else
    alignas(64) int32_t word[2][kLanes];
    for (int i = 0; i < kLanes; ++i) {
        std::memcpy(&word[0][i], base + offset[i], 4);
        std::memcpy(&word[1][i], base + offset[i] + 4, 4);
    }
    low = load(word[0]);
    high = load(word[1]);
#endif
}

// The low bytes (or half words) of n <= 16 lanes.
template <class T>
FAI_HD void store_narrow(T* p, const I32& v, int n) {
    alignas(64) T lane[kLanes];
#if defined(__AVX512BW__)
    if constexpr (sizeof(T) == 1) {
        _mm_store_si128(reinterpret_cast<__m128i*>(lane), _mm512_cvtepi32_epi8((__m512i)v.r[0]));
    } else {
        _mm256_store_si256(reinterpret_cast<__m256i*>(lane), _mm512_cvtepi32_epi16((__m512i)v.r[0]));
    }
#else
    alignas(64) int32_t wide[kLanes];
    store(wide, v);
    for (int i = 0; i < kLanes; ++i) lane[i] = static_cast<T>(wide[i]);
#endif
    if (n == kLanes) {
        std::memcpy(p, lane, sizeof lane);
    } else {
        std::memcpy(p, lane, static_cast<size_t>(n) * sizeof(T));
    }
}

#undef FAI_FOR_REGISTERS

}  // namespace fai::cpu::FAI_ISA
