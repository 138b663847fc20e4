// Mathematical functions of the activations, for one float or a vector: the same operations, so the same bits.
#pragma once

#include "vector.h"

namespace metagan {
namespace {

template <class V>
struct IntegersOf;
template <>
struct IntegersOf<float> {
    using type = int32_t;
};
template <>
struct IntegersOf<FloatVector> {
    using type = IndexVector;
};
#if defined(__AVX2__)
template <>
struct IntegersOf<FloatQuad> {
    using type = int32_t __attribute__((vector_size(16)));
};
METAGAN_INLINE FloatQuad splat(float x, FloatQuad) { return FloatQuad{} + x; }
#endif
template <class V>
using Integers = typename IntegersOf<V>::type;

template <class To, class From>
METAGAN_INLINE To bits_as(From from) {
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

METAGAN_INLINE float splat(float x, float) { return x; }
METAGAN_INLINE FloatVector splat(float x, FloatVector) { return FloatVector{} + x; }

// Applies a scalar function f to every lane.
template <class F>
METAGAN_INLINE float each_lane(float x, const F& f) {
    return f(x);
}
template <class V, class F>
METAGAN_INLINE V each_lane(V x, const F& f) {
    for (size_t i = 0; i < sizeof x / sizeof x[0]; ++i) x[i] = f(x[i]);
    return x;
}

template <class V>
METAGAN_INLINE V absolute(V x) {
    return x < 0 ? -x : x;
}

// e^x to 2 ulp: x = n ln 2 + r, then a polynomial in r (Cody & Waite's reduction).
template <class V>
METAGAN_INLINE V exponential(V x) {
    constexpr float kShift = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
    const V top = splat(88.72283f, x), bottom = splat(-87.33654f, x);
    const V bounded = x > top ? top : (x < bottom ? bottom : x);
    const V shifted = bounded * 1.44269504f + kShift;
    const V n = shifted - kShift;
    const V r = (bounded - n * 0.693359375f) - n * -2.12194440e-4f;
    V p = splat(1.9875691500e-4f, x);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.f;
    // 2^n as two factors, because n may be 128.
    const Integers<V> exponent = bits_as<Integers<V>>(shifted) - bits_as<int32_t>(kShift);
    const Integers<V> half = exponent >> 1;
    const V scaled = p * bits_as<V>((half + 127) << 23) * bits_as<V>((exponent - half + 127) << 23);
    const V high = x > top ? splat(__builtin_inff(), x) : scaled;
    const V result = x < bottom ? splat(0, x) : high;
    return x == x ? result : x;
}

template <class V>
METAGAN_INLINE V sigmoid(V x) {
    return 1.f / (1.f + exponential(-x));
}

template <class V>
METAGAN_INLINE V hyperbolic_tangent(V x) {
    const V size = absolute(x);
    const V square = x * x;
    V p = splat(-5.70498872745e-3f, x);
    p = p * square + 2.06390887954e-2f;
    p = p * square + -5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square + -3.33332819422e-1f;
    const V near_zero = x + x * (square * p);
    const V far = 1.f - 2.f / (exponential(size + size) + 1.f);
    const V with_sign = x < 0 ? -far : far;
    const V result = size < 0.625f ? near_zero : with_sign;
    return x == x ? result : x;
}

}  // namespace
}  // namespace metagan
