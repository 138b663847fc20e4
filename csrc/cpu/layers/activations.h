// Activations: value f, slope f' and curvature f'', and their passes over rows. Included by layer_kernels.cpp only.
#pragma once

#include "cpu/simd/runs.h"
#include "cpu/simd/vector_math.h"
#include "layer_kernels.h"

namespace metagan {
namespace {

struct Relu {
    template <class V>
    METAGAN_INLINE V value(V x) const {
        return x < 0 ? splat(0, x) : x;  // keeps NaN
    }
    template <class V>
    METAGAN_INLINE V slope(V x) const {
        return x > 0 ? splat(1, x) : splat(0, x);
    }
    template <class V>
    METAGAN_INLINE V curvature(V x) const {
        return splat(0, x);
    }
};

// PReLU is this with a slope for each row.
struct LeakyRelu {
    float negative;
    template <class V>
    METAGAN_INLINE V value(V x) const {
        return x > 0 ? x : negative * x;
    }
    template <class V>
    METAGAN_INLINE V slope(V x) const {
        return x > 0 ? splat(1, x) : splat(negative, x);
    }
    template <class V>
    METAGAN_INLINE V curvature(V x) const {
        return splat(0, x);
    }
};

struct Elu {
    float alpha;
    template <class V>
    METAGAN_INLINE V value(V x) const {
        return x > 0 ? x : alpha * (exponential(x) - 1.f);
    }
    template <class V>
    METAGAN_INLINE V slope(V x) const {
        return x > 0 ? splat(1, x) : alpha * exponential(x);
    }
    template <class V>
    METAGAN_INLINE V curvature(V x) const {
        return x > 0 ? splat(0, x) : alpha * exponential(x);
    }
};

struct Silu {
    template <class V>
    METAGAN_INLINE V value(V x) const {
        return x * sigmoid(x);
    }
    template <class V>
    METAGAN_INLINE V slope(V x) const {
        const V s = sigmoid(x);
        return s * (1.f + x * (1.f - s));
    }
    template <class V>
    METAGAN_INLINE V curvature(V x) const {
        const V s = sigmoid(x);
        return s * (1.f - s) * (2.f + x * (1.f - 2.f * s));
    }
};

struct Gelu {
    template <class V>
    METAGAN_INLINE V cumulative(V x) const {
        return 0.5f * (1.f + each_lane(x * 0.70710678f, [](float lane) { return __builtin_erff(lane); }));
    }
    template <class V>
    METAGAN_INLINE V density(V x) const {
        return 0.39894228f * exponential(-0.5f * (x * x));
    }
    template <class V>
    METAGAN_INLINE V value(V x) const {
        return x * cumulative(x);
    }
    template <class V>
    METAGAN_INLINE V slope(V x) const {
        return cumulative(x) + x * density(x);
    }
    template <class V>
    METAGAN_INLINE V curvature(V x) const {
        return density(x) * (2.f - x * x);
    }
};

struct GeluTanh {
    static constexpr float kRoot = 0.79788456f, kCubic = 0.044715f;
    template <class V>
    METAGAN_INLINE V inner(V x) const {
        return hyperbolic_tangent(kRoot * (x + kCubic * (x * x * x)));
    }
    template <class V>
    METAGAN_INLINE V inner_slope(V x) const {
        return kRoot * (1.f + 3 * kCubic * (x * x));
    }
    template <class V>
    METAGAN_INLINE V value(V x) const {
        return 0.5f * x * (1.f + inner(x));
    }
    template <class V>
    METAGAN_INLINE V slope(V x) const {
        const V t = inner(x);
        return 0.5f * (1.f + t) + 0.5f * x * ((1.f - t * t) * inner_slope(x));
    }
    template <class V>
    METAGAN_INLINE V curvature(V x) const {
        const V t = inner(x), u = inner_slope(x), rest = 1.f - t * t;
        return rest * u + 0.5f * x * (rest * (6 * kRoot * kCubic * x) - 2.f * t * rest * (u * u));
    }
};

struct Softplus {
    float beta, threshold;
    template <class V>
    METAGAN_INLINE V value(V x) const {
        const V soft = each_lane(
            x * beta, [](float z) { return (z > 0 ? z : 0) + __builtin_log1pf(__builtin_expf(z > 0 ? -z : z)); });
        return x * beta > threshold ? x : soft / beta;
    }
    template <class V>
    METAGAN_INLINE V slope(V x) const {
        return x * beta > threshold ? splat(1, x) : sigmoid(x * beta);
    }
    template <class V>
    METAGAN_INLINE V curvature(V x) const {
        const V s = sigmoid(x * beta);
        return x * beta > threshold ? splat(0, x) : beta * (s * (1.f - s));
    }
};

struct Tanh {
    template <class V>
    METAGAN_INLINE V value(V x) const {
        return hyperbolic_tangent(x);
    }
    template <class V>
    METAGAN_INLINE V slope(V x) const {
        const V t = hyperbolic_tangent(x);
        return 1.f - t * t;
    }
    template <class V>
    METAGAN_INLINE V curvature(V x) const {
        const V t = hyperbolic_tangent(x);
        return -2.f * t * (1.f - t * t);
    }
};

struct Sigmoid {
    template <class V>
    METAGAN_INLINE V value(V x) const {
        return sigmoid(x);
    }
    template <class V>
    METAGAN_INLINE V slope(V x) const {
        const V s = sigmoid(x);
        return s * (1.f - s);
    }
    template <class V>
    METAGAN_INLINE V curvature(V x) const {
        const V s = sigmoid(x);
        return s * (1.f - s) * (1.f - 2.f * s);
    }
};

// Calls body(function, row, i, kind) for every element of all rows. Rows shorter than a vector are traversed column by
// column, so that the branches of the remainder loop are taken once instead of once a row.
template <class FunctionOfRow, class Body>
METAGAN_INLINE void for_each_element(Rows r, const FunctionOfRow& function, const Body& body) {
    if (r.length >= kFloats) {
        for (int64_t row = 0; row < r.rows; ++row) {
            const auto f = function(row);
            for_each(r.length, [&](int64_t i, auto kind) { body(f, row, i, kind); });
        }
    } else {
        for_each(r.length, [&](int64_t i, auto kind) {
            for (int64_t row = 0; row < r.rows; ++row) body(function(row), row, i, kind);
        });
    }
}

// Calls body(function, row, i, kind) for every element with the activation that the options select.
template <class Body>
METAGAN_INLINE void with_activation(const ActivationOptions& options, Rows r, const Body& body) {
    const auto every_row = [&](auto function) { for_each_element(r, [=](int64_t) { return function; }, body); };
    switch (options.function) {
        case Activation::relu:
            return every_row(Relu{});
        case Activation::leaky_relu:
            return every_row(LeakyRelu{options.a});
        case Activation::prelu: {
            const float* const slopes = options.slopes;
            const int64_t stride = options.slope_stride;
            return for_each_element(r, [=](int64_t row) { return LeakyRelu{slopes[row * stride]}; }, body);
        }
        case Activation::elu:
            return every_row(Elu{options.a});
        case Activation::silu:
            return every_row(Silu{});
        case Activation::gelu:
            return every_row(Gelu{});
        case Activation::gelu_tanh:
            return every_row(GeluTanh{});
        case Activation::softplus:
            return every_row(Softplus{options.a, options.b});
        case Activation::tanh:
            return every_row(Tanh{});
        case Activation::sigmoid:
            return every_row(Sigmoid{});
    }
}

void activation(const ActivationOptions& options, Rows r, const float* x, float* y) {
    with_activation(options, r, [=](auto f, int64_t row, int64_t i, auto kind) {
        const int64_t at = row * r.stride + i;
        store(y + at, f.value(load(x + at, kind)));
    });
}

// Tangent of a row's PReLU slope; 0 without one.
METAGAN_INLINE float slope_dot(const ActivationOptions& options, int64_t row) {
    return options.slopes_dot ? options.slopes_dot[row * options.slope_stride] : 0;
}

void activation_tangent(const ActivationOptions& options, Rows r, const float* x, const float* x_dot, float* y_dot) {
    with_activation(options, r, [&](auto f, int64_t row, int64_t i, auto kind) {
        const int64_t at = row * r.stride + i;
        const auto from = load(x + at, kind);
        auto result = f.slope(from) * load(x_dot + at, kind);
        if (options.slopes_dot) result = result + (from > 0 ? splat(0, kind) : slope_dot(options, row) * from);
        store(y_dot + at, result);
    });
}

void activation_reverse(const ActivationOptions& options, Rows r, const float* x, const float* x_dot,
                        const float* y_bar, const float* y_tilde, float* x_bar, float* x_tilde) {
    if (!y_tilde)
        return with_activation(options, r, [=](auto f, int64_t row, int64_t i, auto kind) {
            const int64_t at = row * r.stride + i;
            store(x_bar + at, f.slope(load(x + at, kind)) * load(y_bar + at, kind));
        });
    const bool curved = options.function > Activation::prelu;
    with_activation(options, r, [&](auto f, int64_t row, int64_t i, auto kind) {
        const int64_t at = row * r.stride + i;
        const auto from = load(x + at, kind), tilde = load(y_tilde + at, kind);
        const auto slope = f.slope(from);
        auto bar = slope * load(y_bar + at, kind);
        if (curved) bar = bar + f.curvature(from) * load(x_dot + at, kind) * tilde;
        if (options.slopes_dot) bar = bar + (from > 0 ? splat(0, kind) : slope_dot(options, row) * tilde);
        if (x_tilde) store(x_tilde + at, slope * tilde);
        store(x_bar + at, bar);
    });
}

void prelu_slopes(Rows r, const float* x, const float* x_dot, const float* y_bar, const float* y_tilde, float* out) {
    for (int64_t row = 0; row < r.rows; ++row) {
        const int64_t at = row * r.stride;
        Sums<1> sum;
        sum.add(r.length, [&](int64_t i, auto* sums) METAGAN_INLINED {
            const auto kind = sums[0];
            const auto from = load(x + at + i, kind);
            auto term = from * load(y_bar + at + i, kind);
            if (y_tilde) term = term + load(x_dot + at + i, kind) * load(y_tilde + at + i, kind);
            sums[0] += from > 0 ? splat(0, kind) : term;
        });
        out[row] += static_cast<float>(sum[0]);
    }
}

}  // namespace
}  // namespace metagan
