// Normalisation: y = weight x_hat + bias with x_hat = (x - mean) / deviation. Included by layer_kernels.cpp only.
#pragma once

#include "cpu/simd/runs.h"
#include "cpu/simd/vector_math.h"
#include "layer_kernels.h"

namespace metagan {
namespace {

// Calls body(offset, parameter_offset) for every run of adjacent elements of a set.
template <class Body>
METAGAN_INLINE void for_each_run(const NormSet& set, const Body& body) {
    for (int64_t channel = 0; channel < set.channels; ++channel)
        for (int64_t image = 0; image < set.images; ++image)
            body(channel * set.channel_stride + image * set.image_stride, channel * set.weight_channel);
}

METAGAN_INLINE double set_size(const NormSet& set) {
    return static_cast<double>(set.channels * set.images * set.length);
}

// Weight or bias of element i of a run: adjacent values if `step`, else one for the run; `missing` if values is null.
template <class V>
METAGAN_INLINE V parameter(const float* values, int64_t i, int64_t step, V kind, float missing) {
    if (!values) return splat(missing, kind);
    return step ? load(values + i, kind) : splat(*values, kind);
}

METAGAN_INLINE const float* at_or_null(const float* values, int64_t offset) {
    return values ? values + offset : nullptr;
}

void norm_statistics(const NormSet& set, const float* x, float eps, NormStatistics* out) {
    Sums<1> sum, squares;
    for_each_run(set, [&](int64_t at, int64_t) {
        sum.add(set.length, [&](int64_t i, auto* sums) METAGAN_INLINED { sums[0] += load(x + at + i, sums[0]); });
    });
    const float mean = static_cast<float>(sum[0] / set_size(set));
    for_each_run(set, [&](int64_t at, int64_t) {
        squares.add(set.length, [&](int64_t i, auto* sums) METAGAN_INLINED {
            const auto centred = load(x + at + i, sums[0]) - mean;
            sums[0] += centred * centred;
        });
    });
    const double variance = squares[0] / set_size(set);
    *out = {mean, static_cast<float>(1 / __builtin_sqrt(variance + static_cast<double>(eps))), 0, 0};
}

void norm(const NormSet& set, const NormStatistics& s, const float* x, float* y) {
    for_each_run(set, [&](int64_t at, int64_t parameters) {
        const float *weight = at_or_null(set.weight, parameters), *bias = at_or_null(set.bias, parameters);
        for_each(set.length, [&](int64_t i, auto kind) {
            const auto x_hat = (load(x + at + i, kind) - s.mean) * s.inverse_deviation;
            store(y + at + i, x_hat * parameter(weight, i, set.weight_step, kind, 1) +
                                  parameter(bias, i, set.weight_step, kind, 0));
        });
    });
}

// J v = (v - mean(v) - x_hat mean(x_hat v)) / deviation is the derivative of x_hat along v; J is symmetric.
template <class V>
METAGAN_INLINE V apply_jacobian(V v, V x_hat, float mean, float projection, float inverse_deviation) {
    return (v - mean - x_hat * projection) * inverse_deviation;
}

void norm_tangent(const NormSet& set, NormStatistics* s, const float* x, const float* x_dot, float* y_dot) {
    Sums<2> sums;
    for_each_run(set, [&](int64_t at, int64_t) {
        sums.add(set.length, [&](int64_t i, auto* part) METAGAN_INLINED {
            const auto dot = load(x_dot + at + i, part[0]);
            part[0] += dot;
            part[1] += dot * ((load(x + at + i, part[0]) - s->mean) * s->inverse_deviation);
        });
    });
    s->mean_tangent = static_cast<float>(sums[0] / set_size(set));
    s->projection = static_cast<float>(sums[1] / set_size(set));
    for_each_run(set, [&](int64_t at, int64_t parameters) {
        const float *weight = at_or_null(set.weight, parameters), *weight_dot = at_or_null(set.weight_dot, parameters),
                    *bias_dot = at_or_null(set.bias_dot, parameters);
        for_each(set.length, [&](int64_t i, auto kind) {
            const auto x_hat = (load(x + at + i, kind) - s->mean) * s->inverse_deviation;
            auto result = apply_jacobian(load(x_dot + at + i, kind), x_hat, s->mean_tangent, s->projection,
                                         s->inverse_deviation) *
                          parameter(weight, i, set.weight_step, kind, 1);
            if (weight_dot) result = result + x_hat * parameter(weight_dot, i, set.weight_step, kind, 0);
            if (bias_dot) result = result + parameter(bias_dot, i, set.weight_step, kind, 0);
            store(y_dot + at + i, result);
        });
    });
}

// With h = weight y_bar + weight_dot y_tilde and k = weight y_tilde:
//     x_tilde = J k,
//     x_bar   = J h - x_hat / deviation^2 (cov(k, x_dot) - p q) - (q J x_dot + p J k) / deviation,
// p = mean(x_hat x_dot), q = mean(x_hat k): the gradient of <k, J x_dot> by x, J depending on it through x_hat and the
// deviation.
template <bool kPaired>
void norm_reverse_of(const NormSet& set, const NormStatistics& s, const float* x, const float* x_dot,
                     const float* y_bar, const float* y_tilde, float* x_bar, float* x_tilde) {
    enum { kH, kXH, kK, kXK, kKDot, kAll };
    constexpr int kSums = kPaired ? kAll : kXH + 1;
    const auto operands = [&](int64_t at, int64_t parameters, int64_t i, auto kind, auto& x_hat, auto& h, auto& k) {
        const auto weight = parameter(at_or_null(set.weight, parameters), i, set.weight_step, kind, 1);
        x_hat = (load(x + at + i, kind) - s.mean) * s.inverse_deviation;
        h = load(y_bar + at + i, kind) * weight;
        if constexpr (kPaired) {
            const auto tilde = load(y_tilde + at + i, kind);
            k = tilde * weight;
            if (set.weight_dot) h = h + tilde * parameter(set.weight_dot + parameters, i, set.weight_step, kind, 0);
        }
    };
    Sums<kSums> sums;
    for_each_run(set, [&](int64_t at, int64_t parameters) {
        sums.add(set.length, [&](int64_t i, auto* part) METAGAN_INLINED {
            auto x_hat = part[0], h = part[0], k = part[0];
            operands(at, parameters, i, part[0], x_hat, h, k);
            part[kH] += h;
            part[kXH] += h * x_hat;
            if constexpr (kPaired) {
                part[kK] += k;
                part[kXK] += k * x_hat;
                part[kKDot] += k * load(x_dot + at + i, part[0]);
            }
        });
    });
    float mean[kAll] = {};
    for (int i = 0; i < kSums; ++i) mean[i] = static_cast<float>(sums[i] / set_size(set));
    const float r = s.inverse_deviation, p = s.projection, q = mean[kXK];
    const float along_x_hat = r * r * (mean[kKDot] - mean[kK] * s.mean_tangent - p * q);
    for_each_run(set, [&](int64_t at, int64_t parameters) {
        for_each(set.length, [&](int64_t i, auto kind) {
            auto x_hat = kind, h = kind, k = kind;
            operands(at, parameters, i, kind, x_hat, h, k);
            auto bar = apply_jacobian(h, x_hat, mean[kH], mean[kXH], r);
            if constexpr (kPaired) {
                const auto dot = apply_jacobian(load(x_dot + at + i, kind), x_hat, s.mean_tangent, p, r);
                const auto tilde = apply_jacobian(k, x_hat, mean[kK], q, r);
                bar = bar - x_hat * along_x_hat - (dot * (q * r) + tilde * (p * r));
                if (x_tilde) store(x_tilde + at + i, tilde);
            }
            store(x_bar + at + i, bar);
        });
    });
}

void norm_reverse(const NormSet& set, const NormStatistics& s, const float* x, const float* x_dot, const float* y_bar,
                  const float* y_tilde, float* x_bar, float* x_tilde) {
    (y_tilde ? norm_reverse_of<true> : norm_reverse_of<false>)(set, s, x, x_dot, y_bar, y_tilde, x_bar, x_tilde);
}

void norm_parameters(int64_t length, int64_t weight_step, const NormStatistics& s, const float* x, const float* x_dot,
                     const float* y_bar, const float* y_tilde, float* weight_bar, float* bias_bar) {
    const auto weight_term = [&](int64_t i, auto kind) {
        const auto x_hat = (load(x + i, kind) - s.mean) * s.inverse_deviation;
        auto term = load(y_bar + i, kind) * x_hat;
        if (y_tilde)
            term = term + load(y_tilde + i, kind) * apply_jacobian(load(x_dot + i, kind), x_hat, s.mean_tangent,
                                                                   s.projection, s.inverse_deviation);
        return term;
    };
    if (weight_step) {
        for_each(length, [&](int64_t i, auto kind) {
            if (weight_bar) store(weight_bar + i, load(weight_bar + i, kind) + weight_term(i, kind));
            if (bias_bar) store(bias_bar + i, load(bias_bar + i, kind) + load(y_bar + i, kind));
        });
        return;
    }
    Sums<2> sums;
    sums.add(length, [&](int64_t i, auto* part) METAGAN_INLINED {
        part[0] += weight_term(i, part[0]);
        part[1] += load(y_bar + i, part[1]);
    });
    if (weight_bar) *weight_bar += static_cast<float>(sums[0]);
    if (bias_bar) *bias_bar += static_cast<float>(sums[1]);
}

}  // namespace
}  // namespace metagan
