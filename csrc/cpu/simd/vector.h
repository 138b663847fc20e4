// SIMD vectors of the instruction set that a file is compiled for, as the compiler's vector types, whose arithmetic
// reads like that of numbers. Loads and stores convert between storage and arithmetic types, as `widen` and `narrow` do
// for one element.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/dtypes.h"
#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// Defined where the processor has dot products of bf16 pairs with float32 accumulation.
#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define METAGAN_BF16_DOT
#endif

namespace metagan {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

constexpr int kFloats = kVectorBytes / 4;
constexpr int kDoubles = kVectorBytes / 8;

using FloatVector = float __attribute__((vector_size(kVectorBytes)));
using FloatQuad = float __attribute__((vector_size(16)));  // for rows shorter than a vector
using DoubleVector = double __attribute__((vector_size(kVectorBytes)));
using BitsVector = uint32_t __attribute__((vector_size(kVectorBytes)));
using IndexVector = int32_t __attribute__((vector_size(kVectorBytes)));
using BFloat16Vector = uint16_t __attribute__((vector_size(kVectorBytes / 2)));

template <class A>
struct VectorOf;
template <>
struct VectorOf<float> {
    using type = FloatVector;
};
template <>
struct VectorOf<double> {
    using type = DoubleVector;
};

METAGAN_INLINE IndexVector lane_numbers() {
    IndexVector lane;
    for (int i = 0; i < kFloats; ++i) lane[i] = i;
    return lane;
}

// Selects lanes of a followed by b; one or two instructions for constant indices.
METAGAN_INLINE FloatVector shuffle(FloatVector a, FloatVector b, IndexVector from) {
#if !defined(__clang__)
    return __builtin_shuffle(a, b, from);
#elif defined(__AVX512F__)
    return _mm512_permutex2var_ps(a, reinterpret_cast<__m512i>(from), b);
#elif defined(__AVX2__)
    const auto lanes = reinterpret_cast<__m256i>(from);
    return from < kFloats ? FloatVector(_mm256_permutevar8x32_ps(a, lanes))
                          : FloatVector(_mm256_permutevar8x32_ps(b, lanes));
#elif defined(__aarch64__)
    const uint8x16x2_t both = {{reinterpret_cast<uint8x16_t>(a), reinterpret_cast<uint8x16_t>(b)}};
    const BitsVector bytes = reinterpret_cast<BitsVector>(from) * 0x04040404u + 0x03020100u;
    return reinterpret_cast<FloatVector>(vqtbl2q_u8(both, reinterpret_cast<uint8x16_t>(bytes)));
#else
    FloatVector result;
    for (int i = 0; i < kFloats; ++i) result[i] = from[i] < kFloats ? a[from[i]] : b[from[i] - kFloats];
    return result;
#endif
}

METAGAN_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Loads one element or a vector of them, as the type of the last argument says.
template <class T>
METAGAN_INLINE Arithmetic<T> load(const T* from, Arithmetic<T>) {
    return widen(*from);
}

METAGAN_INLINE FloatVector load(const float* from, FloatVector) {
    FloatVector result;
    __builtin_memcpy(&result, from, sizeof result);
    return result;
}

#if defined(__AVX2__)  // elsewhere FloatQuad is FloatVector
METAGAN_INLINE FloatQuad load(const float* from, FloatQuad) {
    FloatQuad result;
    __builtin_memcpy(&result, from, sizeof result);
    return result;
}

METAGAN_INLINE void store(float* to, FloatQuad value) { __builtin_memcpy(to, &value, sizeof value); }
#endif

METAGAN_INLINE DoubleVector load(const double* from, DoubleVector) {
    DoubleVector result;
    __builtin_memcpy(&result, from, sizeof result);
    return result;
}

METAGAN_INLINE FloatVector load(const BFloat16* from, FloatVector) {
    BFloat16Vector stored;
    __builtin_memcpy(&stored, from, sizeof stored);
    return reinterpret_cast<FloatVector>(__builtin_convertvector(stored, BitsVector) << 16);
}

// Loads kDoubles elements, converted to float64.
METAGAN_INLINE DoubleVector load_doubles(const double* from) { return load(from, DoubleVector{}); }

METAGAN_INLINE DoubleVector load_doubles(const float* from) {
    float __attribute__((vector_size(kVectorBytes / 2))) stored;
    __builtin_memcpy(&stored, from, sizeof stored);
    return __builtin_convertvector(stored, DoubleVector);
}

METAGAN_INLINE DoubleVector load_doubles(const BFloat16* from) {
    float widened[kDoubles];
    for (int i = 0; i < kDoubles; ++i) widened[i] = widen(from[i]);
    return load_doubles(widened);
}

template <class T>
METAGAN_INLINE void store(T* to, Arithmetic<T> value) {
    narrow(value, *to);
}

METAGAN_INLINE void store(float* to, FloatVector value) { __builtin_memcpy(to, &value, sizeof value); }

METAGAN_INLINE void store(double* to, DoubleVector value) { __builtin_memcpy(to, &value, sizeof value); }

// Rounds to bf16 (nearest, ties to even); the bits are the low 16 of each lane.
METAGAN_INLINE BitsVector bfloat16_bits(FloatVector value) {
    const BitsVector bits = reinterpret_cast<BitsVector>(value);
    const BitsVector rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const BitsVector quiet_nan = (bits >> 16) | 0x40u;
    const auto is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return is_nan ? quiet_nan : rounded;
}

METAGAN_INLINE void store(BFloat16* to, FloatVector value) {
    const BFloat16Vector stored = __builtin_convertvector(bfloat16_bits(value), BFloat16Vector);
    __builtin_memcpy(to, &stored, sizeof stored);
}

METAGAN_INLINE FloatVector round_to_bfloat16(FloatVector value) {
#if defined(__AVX512BF16__)  // flushes denormals to zero, as bf16 products do there
    const auto rounded = reinterpret_cast<BFloat16Vector>(_mm512_cvtneps_pbh(value));
    return reinterpret_cast<FloatVector>(__builtin_convertvector(rounded, BitsVector) << 16);
#else
    return reinterpret_cast<FloatVector>(bfloat16_bits(value) << 16);
#endif
}

METAGAN_INLINE float round_to_bfloat16(float value) {
    BFloat16 rounded;
    narrow(value, rounded);
    return widen(rounded);
}

// Operand of a product, rounded to bf16 if kRounded.
template <bool kRounded, class V>
METAGAN_INLINE V operand(V x) {
    if constexpr (kRounded)
        return round_to_bfloat16(x);
    else
        return x;
}

// Loads the first `count` elements of a vector, the others as 0; store_first leaves the others unchanged.
METAGAN_INLINE FloatVector load_first(const float* from, int count) {
#if defined(__AVX512F__)
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
#elif defined(__aarch64__)  // a copy of variable length would be a call
    if (count >= kFloats) return load(from, FloatVector{});
    FloatVector result = {};
    for (int i = 0; i < count; ++i) result[i] = from[i];
    return result;
#else
    FloatVector result = {};
    __builtin_memcpy(&result, from, static_cast<size_t>(count) * sizeof(float));
    return result;
#endif
}

METAGAN_INLINE void store_first(float* to, int count, FloatVector value) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), value);
#elif defined(__aarch64__)
    for (int i = 0; i < count; ++i) to[i] = value[i];
#else
    __builtin_memcpy(to, &value, static_cast<size_t>(count) * sizeof(float));
#endif
}

// Sum of the lanes.
METAGAN_INLINE float total(FloatVector x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(x);
#else
    float lanes[kFloats];
    __builtin_memcpy(lanes, &x, sizeof lanes);
    for (int half = kFloats / 2; half >= 1; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[half + i];
    return lanes[0];
#endif
}

METAGAN_INLINE FloatVector square_root(FloatVector x) {
#if defined(__AVX512F__)
    return _mm512_maskz_sqrt_ps(-1, x);  // GCC 12 warns about _mm512_sqrt_ps
#elif defined(__AVX2__)
    return _mm256_sqrt_ps(x);
#elif defined(__SSE2__)
    return _mm_sqrt_ps(x);
#elif defined(__aarch64__)
    return vsqrtq_f32(x);
#else
    for (int i = 0; i < kFloats; ++i) x[i] = metagan::square_root(x[i]);
    return x;
#endif
}

METAGAN_INLINE DoubleVector square_root(DoubleVector x) {
#if defined(__AVX512F__)
    return _mm512_maskz_sqrt_pd(-1, x);
#elif defined(__AVX2__)
    return _mm256_sqrt_pd(x);
#elif defined(__SSE2__)
    return _mm_sqrt_pd(x);
#elif defined(__aarch64__)
    return vsqrtq_f64(x);
#else
    for (int i = 0; i < kDoubles; ++i) x[i] = metagan::square_root(x[i]);
    return x;
#endif
}

// Calls body(i, kind) for [begin, end): whole vectors of A, then single elements.
template <class A, class Body>
METAGAN_INLINE void for_each(int64_t begin, int64_t end, const Body& body) {
    using V = typename VectorOf<A>::type;
    constexpr int64_t kWidth = sizeof(V) / sizeof(A);
    int64_t i = begin;
    for (; i + kWidth <= end; i += kWidth) body(i, V{});
    for (; i < end; ++i) body(i, A{});
}

}  // namespace
}  // namespace metagan

// Appends METAGAN_ISA, the instruction set that a file is compiled for, to a name.
#define METAGAN_JOIN_(a, b) a##b
#define METAGAN_JOIN(a, b) METAGAN_JOIN_(a, b)
#define METAGAN_FOR_ISA(name) METAGAN_JOIN(name, METAGAN_ISA)
