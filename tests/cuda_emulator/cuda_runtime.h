// CUDA's device language for g++ and clang++, and the launch of kernels. Included before anything else, as
// nvcc does by itself (-include cuda_runtime.h).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "cuda_runtime_api.h"

#define __forceinline__ inline __attribute__((always_inline))
// One block runs at a time, so that one copy serves them all.
#define __shared__ static
#define __constant__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

// Not const: the emulator sets them, and g++ keeps what is const in registers across a barrier.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

namespace cuda_emulator {

enum class Operation : unsigned char {
    sync_threads,
    sync_threads_or,
    sync_threads_and,
    sync_threads_count,
    sync_warp,
    ballot,
    any,
    all,
    shuffle,
    match_any,
    match_all,
    add,
    min,
    max,
    min_signed,
    max_signed,
    bit_and,
    bit_or,
    bit_xor,
};

int barrier(Operation operation, int predicate = 0);
// What each lane gets from an operation on the lanes of the mask; argument: the lane that a shuffle reads.
std::uint64_t warp(Operation operation, unsigned mask, std::uint64_t value = 0, unsigned argument = 0);
unsigned lane();
// Lets other threads go first; for loops that wait for one.
void yield();
[[noreturn]] void trap(const char* what);
cudaError_t launch(const cudaLaunchConfig_t& config, const void* function, std::function<void()> body);

template <typename T>
T shuffle(unsigned mask, T value, unsigned source) {
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = warp(Operation::shuffle, mask, bits, source);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

inline unsigned first_of(unsigned width) { return lane() & ~(width - 1); }
inline unsigned checked(int width) {
    if (width < 1 || width > 32 || (width & (width - 1)) != 0)
        trap("a shuffle's width is no power of 2 up to 32");
    return static_cast<unsigned>(width);
}

}  // namespace cuda_emulator

template <typename... Expected, typename... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...),
                               Actual&&... arguments) {
    // Converts as a call would; the copies live until the kernel has run.
    auto keep = [](Expected... converted) { return std::tuple<Expected...>(converted...); };
    return cuda_emulator::launch(
        *config, reinterpret_cast<const void*>(kernel),
        [kernel, kept = keep(std::forward<Actual>(arguments)...)] { std::apply(kernel, kept); });
}

inline void __syncthreads() { cuda_emulator::barrier(cuda_emulator::Operation::sync_threads); }
inline int __syncthreads_or(int predicate) {
    return cuda_emulator::barrier(cuda_emulator::Operation::sync_threads_or, predicate);
}
inline int __syncthreads_and(int predicate) {
    return cuda_emulator::barrier(cuda_emulator::Operation::sync_threads_and, predicate);
}
inline int __syncthreads_count(int predicate) {
    return cuda_emulator::barrier(cuda_emulator::Operation::sync_threads_count, predicate);
}
inline void __syncwarp(unsigned mask = 0xffffffff) {
    cuda_emulator::warp(cuda_emulator::Operation::sync_warp, mask);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    return static_cast<unsigned>(cuda_emulator::warp(cuda_emulator::Operation::ballot, mask, predicate != 0));
}
inline int __any_sync(unsigned mask, int predicate) {
    return static_cast<int>(cuda_emulator::warp(cuda_emulator::Operation::any, mask, predicate != 0));
}
inline int __all_sync(unsigned mask, int predicate) {
    return static_cast<int>(cuda_emulator::warp(cuda_emulator::Operation::all, mask, predicate != 0));
}
// Lanes need not have converged, so the least that hardware may return: this lane alone.
inline unsigned __activemask() { return 1u << cuda_emulator::lane(); }

#define CUDA_EMULATOR_SHUFFLES(T)                                                                    \
    inline T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {                 \
        const unsigned w = cuda_emulator::checked(width);                                            \
        return cuda_emulator::shuffle(                                                               \
            mask, value, cuda_emulator::first_of(w) | (static_cast<unsigned>(source) & (w - 1)));    \
    }                                                                                                \
    inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {          \
        const unsigned lane = cuda_emulator::lane();                                                 \
        const unsigned first = cuda_emulator::first_of(cuda_emulator::checked(width));               \
        return cuda_emulator::shuffle(mask, value, delta <= lane - first ? lane - delta : lane);     \
    }                                                                                                \
    inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {        \
        const unsigned lane = cuda_emulator::lane(), w = cuda_emulator::checked(width);              \
        const unsigned last = cuda_emulator::first_of(w) + w - 1;                                    \
        return cuda_emulator::shuffle(mask, value, delta <= last - lane ? lane + delta : lane);      \
    }                                                                                                \
    inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize) {              \
        const unsigned lane = cuda_emulator::lane(), w = cuda_emulator::checked(width);              \
        const unsigned source = lane ^ static_cast<unsigned>(lanes);                                 \
        return cuda_emulator::shuffle(mask, value,                                                   \
                                      source <= cuda_emulator::first_of(w) + w - 1 ? source : lane); \
    }
CUDA_EMULATOR_SHUFFLES(int)
CUDA_EMULATOR_SHUFFLES(unsigned)
CUDA_EMULATOR_SHUFFLES(long)
CUDA_EMULATOR_SHUFFLES(unsigned long)
CUDA_EMULATOR_SHUFFLES(long long)
CUDA_EMULATOR_SHUFFLES(unsigned long long)
CUDA_EMULATOR_SHUFFLES(float)
CUDA_EMULATOR_SHUFFLES(double)

#define CUDA_EMULATOR_MATCHES(T)                                                                            \
    inline unsigned __match_any_sync(unsigned mask, T value) {                                              \
        std::uint64_t bits = 0;                                                                             \
        std::memcpy(&bits, &value, sizeof(T));                                                              \
        return static_cast<unsigned>(cuda_emulator::warp(cuda_emulator::Operation::match_any, mask, bits)); \
    }                                                                                                       \
    inline unsigned __match_all_sync(unsigned mask, T value, int* predicate) {                              \
        std::uint64_t bits = 0;                                                                             \
        std::memcpy(&bits, &value, sizeof(T));                                                              \
        const auto lanes =                                                                                  \
            static_cast<unsigned>(cuda_emulator::warp(cuda_emulator::Operation::match_all, mask, bits));    \
        *predicate = lanes != 0;                                                                            \
        return lanes;                                                                                       \
    }
CUDA_EMULATOR_MATCHES(int)
CUDA_EMULATOR_MATCHES(unsigned)
CUDA_EMULATOR_MATCHES(long)
CUDA_EMULATOR_MATCHES(unsigned long)
CUDA_EMULATOR_MATCHES(long long)
CUDA_EMULATOR_MATCHES(unsigned long long)
CUDA_EMULATOR_MATCHES(float)
CUDA_EMULATOR_MATCHES(double)

#define CUDA_EMULATOR_REDUCTION(name, T, operation)                                          \
    inline T name(unsigned mask, T value) {                                                  \
        return static_cast<T>(cuda_emulator::warp(cuda_emulator::Operation::operation, mask, \
                                                  static_cast<std::uint32_t>(value)));       \
    }
CUDA_EMULATOR_REDUCTION(__reduce_add_sync, unsigned, add)
CUDA_EMULATOR_REDUCTION(__reduce_add_sync, int, add)
CUDA_EMULATOR_REDUCTION(__reduce_min_sync, unsigned, min)
CUDA_EMULATOR_REDUCTION(__reduce_min_sync, int, min_signed)
CUDA_EMULATOR_REDUCTION(__reduce_max_sync, unsigned, max)
CUDA_EMULATOR_REDUCTION(__reduce_max_sync, int, max_signed)
CUDA_EMULATOR_REDUCTION(__reduce_and_sync, unsigned, bit_and)
CUDA_EMULATOR_REDUCTION(__reduce_or_sync, unsigned, bit_or)
CUDA_EMULATOR_REDUCTION(__reduce_xor_sync, unsigned, bit_xor)

inline void __threadfence_block() {}
inline void __threadfence() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) { cuda_emulator::yield(); }
[[noreturn]] inline void __trap() { cuda_emulator::trap("__trap()"); }

// One thread runs at a time, so that plain arithmetic is atomic.
#define CUDA_EMULATOR_ATOMIC(name, T, result) \
    inline T name(T* address, T value) {      \
        const T old = *address;               \
        *address = static_cast<T>(result);    \
        return old;                           \
    }
#define CUDA_EMULATOR_ATOMICS(T)                                  \
    CUDA_EMULATOR_ATOMIC(atomicMin, T, value < old ? value : old) \
    CUDA_EMULATOR_ATOMIC(atomicMax, T, value > old ? value : old) \
    CUDA_EMULATOR_ATOMIC(atomicAnd, T, old& value)                \
    CUDA_EMULATOR_ATOMIC(atomicOr, T, old | value)                \
    CUDA_EMULATOR_ATOMIC(atomicXor, T, old ^ value)
#define CUDA_EMULATOR_COMPARE_AND_SWAP(T)                \
    inline T atomicCAS(T* address, T compare, T value) { \
        const T old = *address;                          \
        if (old == compare) *address = value;            \
        return old;                                      \
    }
CUDA_EMULATOR_ATOMICS(int)
CUDA_EMULATOR_ATOMICS(unsigned)
CUDA_EMULATOR_ATOMICS(unsigned long long)
CUDA_EMULATOR_ATOMIC(atomicMin, long long, value < old ? value : old)
CUDA_EMULATOR_ATOMIC(atomicMax, long long, value > old ? value : old)
CUDA_EMULATOR_ATOMIC(atomicAdd, int, static_cast<unsigned>(old) + static_cast<unsigned>(value))
CUDA_EMULATOR_ATOMIC(atomicAdd, unsigned, old + value)
CUDA_EMULATOR_ATOMIC(atomicAdd, unsigned long long, old + value)
CUDA_EMULATOR_ATOMIC(atomicAdd, float, old + value)
CUDA_EMULATOR_ATOMIC(atomicAdd, double, old + value)
CUDA_EMULATOR_ATOMIC(atomicSub, int, static_cast<unsigned>(old) - static_cast<unsigned>(value))
CUDA_EMULATOR_ATOMIC(atomicSub, unsigned, old - value)
CUDA_EMULATOR_ATOMIC(atomicInc, unsigned, old >= value ? 0 : old + 1)
CUDA_EMULATOR_ATOMIC(atomicDec, unsigned, old == 0 || old > value ? value : old - 1)
CUDA_EMULATOR_ATOMIC(atomicExch, int, value)
CUDA_EMULATOR_ATOMIC(atomicExch, unsigned, value)
CUDA_EMULATOR_ATOMIC(atomicExch, unsigned long long, value)
CUDA_EMULATOR_ATOMIC(atomicExch, float, value)
CUDA_EMULATOR_COMPARE_AND_SWAP(int)
CUDA_EMULATOR_COMPARE_AND_SWAP(unsigned)
CUDA_EMULATOR_COMPARE_AND_SWAP(unsigned short)
CUDA_EMULATOR_COMPARE_AND_SWAP(unsigned long long)

#define CUDA_EMULATOR_LOAD(name)      \
    template <typename T>             \
    inline T name(const T* address) { \
        return *address;              \
    }
#define CUDA_EMULATOR_STORE(name)                                 \
    template <typename T>                                         \
    inline void name(T* address, std::type_identity_t<T> value) { \
        *address = value;                                         \
    }
CUDA_EMULATOR_LOAD(__ldg)
CUDA_EMULATOR_LOAD(__ldca)
CUDA_EMULATOR_LOAD(__ldcg)
CUDA_EMULATOR_LOAD(__ldcs)
CUDA_EMULATOR_LOAD(__ldlu)
CUDA_EMULATOR_LOAD(__ldcv)
CUDA_EMULATOR_STORE(__stwb)
CUDA_EMULATOR_STORE(__stcg)
CUDA_EMULATOR_STORE(__stcs)
CUDA_EMULATOR_STORE(__stwt)

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
    x = (x >> 1 & 0x55555555) | (x & 0x55555555) << 1;
    x = (x >> 2 & 0x33333333) | (x & 0x33333333) << 2;
    x = (x >> 4 & 0x0f0f0f0f) | (x & 0x0f0f0f0f) << 4;
    return __builtin_bswap32(x);
}
inline unsigned long long __brevll(unsigned long long x) {
    return static_cast<unsigned long long>(__brev(static_cast<unsigned>(x))) << 32 |
           __brev(static_cast<unsigned>(x >> 32));
}
inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
inline int __mulhi(int a, int b) { return static_cast<int>(static_cast<long long>(a) * b >> 32); }
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>(((static_cast<unsigned long long>(high) << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<unsigned long long>(high) << 32 | low) >> (shift & 31));
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const unsigned long long bytes = static_cast<unsigned long long>(b) << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned nibble = selector >> 4 * i & 15;
        unsigned byte = static_cast<unsigned>(bytes >> 8 * (nibble & 7)) & 0xff;
        if (nibble & 8) byte = byte & 0x80 ? 0xff : 0;
        result |= byte << 8 * i;
    }
    return result;
}

#define CUDA_EMULATOR_BITS(name, From, To)         \
    inline To name(From x) {                       \
        static_assert(sizeof(From) == sizeof(To)); \
        return __builtin_bit_cast(To, x);          \
    }
CUDA_EMULATOR_BITS(__float_as_int, float, int)
CUDA_EMULATOR_BITS(__float_as_uint, float, unsigned)
CUDA_EMULATOR_BITS(__int_as_float, int, float)
CUDA_EMULATOR_BITS(__uint_as_float, unsigned, float)
CUDA_EMULATOR_BITS(__double_as_longlong, double, long long)
CUDA_EMULATOR_BITS(__longlong_as_double, long long, double)

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

// To int and unsigned; out of range goes to the nearest, NaN to 0, as on the hardware.
namespace cuda_emulator {
template <typename To>
To saturate(double x) {
    constexpr double low = std::is_signed_v<To> ? -2147483648.0 : 0.0;
    constexpr double high = std::is_signed_v<To> ? 2147483647.0 : 4294967295.0;
    if (std::isnan(x)) return 0;
    return static_cast<To>(x < low ? low : x > high ? high : x);
}
}  // namespace cuda_emulator
inline int __float2int_rn(float x) { return cuda_emulator::saturate<int>(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return cuda_emulator::saturate<int>(std::trunc(x)); }
inline int __float2int_rd(float x) { return cuda_emulator::saturate<int>(std::floor(x)); }
inline int __float2int_ru(float x) { return cuda_emulator::saturate<int>(std::ceil(x)); }
inline unsigned __float2uint_rn(float x) { return cuda_emulator::saturate<unsigned>(std::nearbyint(x)); }
inline unsigned __float2uint_rz(float x) { return cuda_emulator::saturate<unsigned>(std::trunc(x)); }
inline unsigned __float2uint_rd(float x) { return cuda_emulator::saturate<unsigned>(std::floor(x)); }
inline unsigned __float2uint_ru(float x) { return cuda_emulator::saturate<unsigned>(std::ceil(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }

// As nvcc's: converted as in arithmetic, but no integer with a float; of floats the one that is no NaN.
namespace cuda_emulator {
template <typename A, typename B>
concept Comparable = (std::is_integral_v<A> && std::is_integral_v<B>) ||
                     (std::is_floating_point_v<A> && std::is_floating_point_v<B>);
}
template <typename A, typename B>
    requires cuda_emulator::Comparable<A, B>
constexpr auto min(A a, B b) {
    using T = decltype(a + b);
    if constexpr (std::is_floating_point_v<T>) return static_cast<T>(__builtin_fmin(a, b));
    const T x = static_cast<T>(a), y = static_cast<T>(b);
    return y < x ? y : x;
}
template <typename A, typename B>
    requires cuda_emulator::Comparable<A, B>
constexpr auto max(A a, B b) {
    using T = decltype(a + b);
    if constexpr (std::is_floating_point_v<T>) return static_cast<T>(__builtin_fmax(a, b));
    const T x = static_cast<T>(a), y = static_cast<T>(b);
    return x < y ? y : x;
}
