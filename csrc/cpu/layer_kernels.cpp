// Compiled once for every instruction set, METAGAN_ISA; no standard library code (see gemm_kernels.cpp). Contraction is
// off: an element's bits do not depend on whether it falls into a vector or into the remainder.
#include "layer_kernels.h"

#include "vector_math.h"

namespace metagan {
namespace {

// Calls body(i, kind) for [0, length): by vectors as far as they go, then by four, then one by one.
template <class Body>
METAGAN_INLINE void for_each(int64_t length, const Body& body) {
    int64_t i = 0;
    for (; i + kFloats <= length; i += kFloats) body(i, FloatVector{});
    for (; i + 4 <= length; i += 4) body(i, FloatQuad{});
    for (; i < length; ++i) body(i, 0.f);
}

// Sums over runs: float for some thousand elements, double across these.
template <int kSums>
class Sums {
  public:
    // Adds what term(i, sums) adds to sums[], which are vectors or numbers, for [0, length).
    template <class Term>
    METAGAN_INLINE void add(int64_t length, const Term& term) {
        int64_t i = 0;
        for (; i + kFloats <= length; i += kFloats) term(i, wide_);
        for (; i + 4 <= length; i += 4) term(i, quad_);
        for (; i < length; ++i) term(i, narrow_);
        pending_ += length;
        if (pending_ >= 64 * kFloats) flush();
    }

    METAGAN_INLINE double operator[](int s) {
        if (pending_ > 0) flush();
        return totals_[s];
    }

  private:
    METAGAN_INLINE void flush() {
        for (int s = 0; s < kSums; ++s) {
            const float quad = (quad_[s][0] + quad_[s][2]) + (quad_[s][1] + quad_[s][3]);
            totals_[s] += static_cast<double>(total(wide_[s]) + (quad + narrow_[s]));
            wide_[s] = FloatVector{};
            quad_[s] = FloatQuad{};
            narrow_[s] = 0;
        }
        pending_ = 0;
    }

    FloatVector wide_[kSums] = {};
    FloatQuad quad_[kSums] = {};
    float narrow_[kSums] = {};
    double totals_[kSums] = {};
    int64_t pending_ = 0;
};

// Activations: value, slope f' and curvature f''.

struct Relu {
    template <class V>
    METAGAN_INLINE V value(V x) const {
        return x < 0 ? splat(0, x) : x;
    }  // NaN stays
    template <class V>
    METAGAN_INLINE V slope(V x) const {
        return x > 0 ? splat(1, x) : splat(0, x);
    }
    template <class V>
    METAGAN_INLINE V curvature(V x) const {
        return splat(0, x);
    }
};

struct LeakyRelu {  // and PReLU, row by row
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

// Calls body(function, row, i, kind) for every element of all rows. Rows shorter than a vector are taken piece by
// piece, the same piece of each, since their ends would cost more than what lies between them.
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

// The slope's tangent of a row, 0 where there is none.
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
        sum.add(r.length, [&](int64_t i, auto* sums) {
            const auto kind = sums[0];
            const auto from = load(x + at + i, kind);
            auto term = from * load(y_bar + at + i, kind);
            if (y_tilde) term = term + load(x_dot + at + i, kind) * load(y_tilde + at + i, kind);
            sums[0] += from > 0 ? splat(0, kind) : term;
        });
        out[row] += static_cast<float>(sum[0]);
    }
}

// Normalisation. With x_hat = (x - mean) / deviation, y = weight x_hat + bias.

template <class Body>
METAGAN_INLINE void for_each_run(const NormSet& set, const Body& body) {
    for (int64_t channel = 0; channel < set.channels; ++channel)
        for (int64_t image = 0; image < set.images; ++image)
            body(channel * set.channel_stride + image * set.image_stride, channel * set.weight_channel);
}

METAGAN_INLINE double set_size(const NormSet& set) {
    return static_cast<double>(set.channels * set.images * set.length);
}

// Element i of a run's weights: a vector where they are adjacent, else the one number of the run.
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
        sum.add(set.length, [&](int64_t i, auto* sums) { sums[0] += load(x + at + i, sums[0]); });
    });
    const float mean = static_cast<float>(sum[0] / set_size(set));
    for_each_run(set, [&](int64_t at, int64_t) {
        squares.add(set.length, [&](int64_t i, auto* sums) {
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
METAGAN_INLINE V along(V v, V x_hat, float mean, float projection, float inverse_deviation) {
    return (v - mean - x_hat * projection) * inverse_deviation;
}

void norm_tangent(const NormSet& set, NormStatistics* s, const float* x, const float* x_dot, float* y_dot) {
    Sums<2> sums;
    for_each_run(set, [&](int64_t at, int64_t) {
        sums.add(set.length, [&](int64_t i, auto* part) {
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
            auto result =
                along(load(x_dot + at + i, kind), x_hat, s->mean_tangent, s->projection, s->inverse_deviation) *
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
        sums.add(set.length, [&](int64_t i, auto* part) {
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
            auto bar = along(h, x_hat, mean[kH], mean[kXH], r);
            if constexpr (kPaired) {
                const auto dot = along(load(x_dot + at + i, kind), x_hat, s.mean_tangent, p, r);
                const auto tilde = along(k, x_hat, mean[kK], q, r);
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
            term = term + load(y_tilde + i, kind) *
                              along(load(x_dot + i, kind), x_hat, s.mean_tangent, s.projection, s.inverse_deviation);
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
    sums.add(length, [&](int64_t i, auto* part) {
        part[0] += weight_term(i, part[0]);
        part[1] += load(y_bar + i, part[1]);
    });
    if (weight_bar) *weight_bar += static_cast<float>(sums[0]);
    if (bias_bar) *bias_bar += static_cast<float>(sums[1]);
}

void sum_blocks(int64_t planes, int64_t height, int64_t width, int block_height, int block_width, float scale,
                const float* x, float* y) {
    const int64_t row = width * block_width;
    for (int64_t line = 0; line < planes * height; ++line, x += row * block_height, y += width) {
        if (block_height == 2 && block_width == 2) {
            for (int64_t i = 0; i < width; ++i)
                y[i] = ((x[2 * i] + x[2 * i + 1]) + (x[row + 2 * i] + x[row + 2 * i + 1])) * scale;
            continue;
        }
        for (int64_t i = 0; i < width; ++i) {
            float sum = 0;
            for (int b = 0; b < block_height; ++b)
                for (int a = 0; a < block_width; ++a) sum += x[b * row + i * block_width + a];
            y[i] = sum * scale;
        }
    }
}

void spread_blocks(int64_t planes, int64_t height, int64_t width, int block_height, int block_width, float scale,
                   const float* y, float* x) {
    const int64_t row = width * block_width;
    for (int64_t line = 0; line < planes * height; ++line, x += row * block_height, y += width) {
        if (block_width == 2) {
            for (int64_t i = 0; i < width; ++i) x[2 * i] = x[2 * i + 1] = y[i] * scale;
        } else {
            for (int64_t i = 0; i < width; ++i)
                for (int a = 0; a < block_width; ++a) x[i * block_width + a] = y[i] * scale;
        }
        for (int b = 1; b < block_height; ++b)
            __builtin_memcpy(x + b * row, x, static_cast<size_t>(row) * sizeof(float));
    }
}

void row_sums(Rows r, const float* x, float* out) {
    for (int64_t row = 0; row < r.rows; ++row) {
        Sums<1> sum;
        sum.add(r.length, [&](int64_t i, auto* sums) { sums[0] += load(x + row * r.stride + i, sums[0]); });
        out[row] += static_cast<float>(sum[0]);
    }
}

void scale(int64_t size, float factor, float constant, const float* x, float* y) {
    for_each(size, [&](int64_t i, auto kind) { store(y + i, load(x + i, kind) * factor + constant); });
}

void add(int64_t size, float factor, const float* x, float* y) {
    for_each(size, [&](int64_t i, auto kind) { store(y + i, load(y + i, kind) + load(x + i, kind) * factor); });
}

template <int64_t kWidth>
METAGAN_INLINE void pad_planes(int64_t planes, int64_t height, int64_t width, const float* x, float* padded,
                               int64_t padded_width, int64_t padded_plane) {
    const int64_t count = kWidth ? kWidth : width;
    for (int64_t plane = 0; plane < planes; ++plane)
        for (int64_t row = 0; row < height; ++row, x += count)
            __builtin_memcpy(padded + plane * padded_plane + row * padded_width, x,
                             static_cast<size_t>(count) * sizeof(float));
}

void pad(int64_t planes, int64_t height, int64_t width, const float* x, float* padded, int64_t padded_width,
         int64_t padded_plane) {
    switch (width) {  // lengths known to the compiler, where rows are short
        case 2:
            return pad_planes<2>(planes, height, width, x, padded, padded_width, padded_plane);
        case 4:
            return pad_planes<4>(planes, height, width, x, padded, padded_width, padded_plane);
        case 8:
            return pad_planes<8>(planes, height, width, x, padded, padded_width, padded_plane);
        case 16:
            return pad_planes<16>(planes, height, width, x, padded, padded_width, padded_plane);
        case 32:
            return pad_planes<32>(planes, height, width, x, padded, padded_width, padded_plane);
        default:
            return pad_planes<0>(planes, height, width, x, padded, padded_width, padded_plane);
    }
}

void clamp(int64_t size, float bound, float* x) {
    for_each(size, [&](int64_t i, auto kind) {
        const auto value = load(x + i, kind);
        const auto below = value > bound ? splat(bound, kind) : value;
        store(x + i, below < -bound ? splat(-bound, kind) : below);
    });
}

}  // namespace

const LayerKernels METAGAN_FOR_ISA(layer_kernels_) = {
    activation,
    activation_tangent,
    activation_reverse,
    prelu_slopes,
    norm_statistics,
    norm,
    norm_tangent,
    norm_reverse,
    norm_parameters,
    sum_blocks,
    spread_blocks,
    row_sums,
    scale,
    add,
    pad,
    clamp,
};

}  // namespace metagan
