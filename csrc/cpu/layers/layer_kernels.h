// Element-wise kernels of the engine's layers, over part of an array: the caller divides arrays among threads. In
// reverse passes `x_dot` is the tangent and `y_tilde` its cotangent (both null: no tangent).
#pragma once

#include <cstdint>

#include "cpu/simd/isa.h"
#include "ops/names.h"

namespace metagan {

// `rows` rows of `length` adjacent elements, `stride` apart in every array of a call.
struct Rows {
    int64_t rows, length, stride;
};

// Activation functions and their names in plans; up to prelu no curvature is computed.
enum class Activation : int { relu, leaky_relu, prelu, elu, silu, gelu, gelu_tanh, softplus, tanh, sigmoid };
constexpr Named<Activation> kActivations[] = {
    {"relu", Activation::relu},           {"leaky_relu", Activation::leaky_relu},
    {"prelu", Activation::prelu},         {"elu", Activation::elu},
    {"silu", Activation::silu},           {"gelu", Activation::gelu},
    {"gelu_tanh", Activation::gelu_tanh}, {"softplus", Activation::softplus},
    {"tanh", Activation::tanh},           {"sigmoid", Activation::sigmoid},
};

// An activation and its parameters.
struct ActivationOptions {
    Activation function;
    float a = 0, b = 0;             // leaky_relu: slope; elu: alpha; softplus: beta and threshold
    const float* slopes = nullptr;  // prelu: slopes[row * slope_stride]
    const float* slopes_dot = nullptr;
    int64_t slope_stride = 0;
};

// Elements that share a mean and a variance: [channels][images][length], the last dimension adjacent.
struct NormSet {
    int64_t channels, images, length, channel_stride, image_stride;
    // weight and bias of element (channel, i): [channel * weight_channel + i * weight_step]
    int64_t weight_channel, weight_step;
    const float *weight, *bias, *weight_dot, *bias_dot;  // null: 1, 0, 0, 0
};

// Statistics of a NormSet; the second line is set by the tangent pass.
struct NormStatistics {
    float mean, inverse_deviation;
    float mean_tangent, projection;  // means of x_dot and of x_hat x_dot
};

// Layer kernels of one instruction set.
struct LayerKernels {
    void (*activation)(const ActivationOptions&, Rows, const float* x, float* y);
    void (*activation_tangent)(const ActivationOptions&, Rows, const float* x, const float* x_dot, float* y_dot);
    // x_bar = f' y_bar + f'' x_dot y_tilde, x_tilde = f' y_tilde (null: not wanted).
    void (*activation_reverse)(const ActivationOptions&, Rows, const float* x, const float* x_dot, const float* y_bar,
                               const float* y_tilde, float* x_bar, float* x_tilde);
    // Adds the gradient by each row's prelu slope to out[row].
    void (*prelu_slopes)(Rows, const float* x, const float* x_dot, const float* y_bar, const float* y_tilde,
                         float* out);

    void (*norm_statistics)(const NormSet&, const float* x, float eps, NormStatistics*);
    void (*norm)(const NormSet&, const NormStatistics&, const float* x, float* y);
    void (*norm_tangent)(const NormSet&, NormStatistics*, const float* x, const float* x_dot, float* y_dot);
    void (*norm_reverse)(const NormSet&, const NormStatistics&, const float* x, const float* x_dot, const float* y_bar,
                         const float* y_tilde, float* x_bar, float* x_tilde);
    // Adds the gradients by weight and bias (either may be null) of one run of a set to [i * weight_step].
    void (*norm_parameters)(int64_t length, int64_t weight_step, const NormStatistics&, const float* x,
                            const float* x_dot, const float* y_bar, const float* y_tilde, float* weight_bar,
                            float* bias_bar);

    // Pooling: y = scale * the sum over its block of x; and its transpose, every element of a block = scale * y.
    void (*sum_blocks)(int64_t planes, int64_t height, int64_t width, int block_height, int block_width, float scale,
                       const float* x, float* y);
    void (*spread_blocks)(int64_t planes, int64_t height, int64_t width, int block_height, int block_width, float scale,
                          const float* y, float* x);

    void (*row_sums)(Rows, const float* x, float* out);                                   // out[row] += sum
    void (*scale)(int64_t size, float factor, float constant, const float* x, float* y);  // y = factor x + constant
    void (*add)(int64_t size, float factor, const float* x, float* y);                    // y += factor x
    // Copies planes of height x width into planes of `padded_plane` elements with rows of `padded_width`.
    void (*pad)(int64_t planes, int64_t height, int64_t width, const float* x, float* padded, int64_t padded_width,
                int64_t padded_plane);
    void (*clamp)(int64_t size, float bound, float* x);
};

METAGAN_DECLARE_TABLES(LayerKernels, layer_kernels);

}  // namespace metagan
