// Storage and arithmetic types of the fused ops, for the host compiler and nvcc alike.
#pragma once

#include <cstdint>

// Always inlined: each instruction set compiles these anew, and the linker must not replace one copy by another.
#ifdef __CUDACC__
#define METAGAN_INLINE __host__ __device__ __forceinline__
#else
#define METAGAN_INLINE inline __attribute__((always_inline))
#endif

namespace metagan {

struct BFloat16 {
    uint16_t bits;
};

template <class T>
struct ArithmeticOf {
    using type = T;
};
template <>
struct ArithmeticOf<BFloat16> {
    using type = float;
};
template <class T>
using Arithmetic = typename ArithmeticOf<T>::type;

// Converts from the storage to the arithmetic type.
METAGAN_INLINE float widen(float x) { return x; }
METAGAN_INLINE double widen(double x) { return x; }
METAGAN_INLINE float widen(BFloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float result;
    __builtin_memcpy(&result, &bits, sizeof result);
    return result;
}

// Rounds from the arithmetic to the storage type.
METAGAN_INLINE void narrow(float x, float& out) { out = x; }
METAGAN_INLINE void narrow(double x, double& out) { out = x; }
METAGAN_INLINE void narrow(float x, BFloat16& out) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
    const uint32_t quiet_nan = (bits >> 16) | 0x40u;                        // rounding could turn a NaN into infinity
    out.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

#ifdef __CUDA_ARCH__
METAGAN_INLINE float square_root(float x) { return __fsqrt_rn(x); }
METAGAN_INLINE double square_root(double x) { return __dsqrt_rn(x); }
#else
METAGAN_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
METAGAN_INLINE double square_root(double x) { return __builtin_sqrt(x); }
#endif

}  // namespace metagan
