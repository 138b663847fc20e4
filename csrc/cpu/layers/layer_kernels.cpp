// Layer kernels, compiled once for every instruction set, METAGAN_ISA; no standard library code (see gemm_kernels.cpp).
// Contraction is off, so an element has the same bits in a vector and in the remainder.
#include "layer_kernels.h"

#include "activations.h"
#include "cpu/simd/runs.h"
#include "normalizations.h"

namespace metagan {
namespace {

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
        sum.add(r.length,
                [&](int64_t i, auto* sums) METAGAN_INLINED { sums[0] += load(x + row * r.stride + i, sums[0]); });
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
    switch (width) {  // constant copy lengths for short rows
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
