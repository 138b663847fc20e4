// Matrix products of the engine, with patches of images as one operand: convolutions, their transposes and their weight
// gradients, none of which writes the patches out or reorders weights.
//
// P[k][j] is the patch matrix: k counts (channel, tap), j counts (image, position), and the element lies in the source
// image at
//     b + channel * b_channel + b_tap[tap] + image * b_image + b_position[position].
// W[m][k] is the weight, at w + m * w_row + channel * w_channel + w_tap[tap], and Y[m][j] the result, at
// y + m * y_row + image * y_image + y_position[position]. So any stride, dilation, flip or subset of taps and positions
// is a matter of tables. The source is padded beforehand, which leaves no bounds to check. Positions whose taps fall on
// padding make products of their own, with fewer taps and the same weights.
//
//     multiply:  Y (+)= W P       a convolution; its gradient by the input, with the roles of the images exchanged
//     correlate: W (+)= Y P^T     the gradient by the weights
//
// Blocking is BLIS's: the micro-kernel holds a tile of Y in registers and walks over k; a block of P, kDepth deep,
// stays in the second-level cache while every row of W passes by once. W is broadcast element by element, so it is read
// where it lies; P is too where its columns make up vectors, and is packed into panels as wide as the tile elsewhere.
// Products with fewer columns than half a vector, by narrow.h, have vectors along the weights.
#pragma once

#include <cstdint>

namespace metagan {

struct Patches {
    const float* b = nullptr;
    int64_t b_channel = 0, b_image = 0;
    const int32_t* b_tap = nullptr;
    const int32_t* b_position = nullptr;
    int channels = 0, taps = 0, images = 0, positions = 0;
    int run = 1;  // positions come in runs of so many adjacent ones, in the source and in Y

    int64_t depth() const { return int64_t{channels} * taps; }
    int64_t columns() const { return int64_t{images} * positions; }
};

struct Weights {
    const float* w = nullptr;
    int64_t w_row = 0, w_channel = 0;
    // The same converted beforehand, by GemmKernels::to_bf16_pairs, or null.
    const float* pairs = nullptr;
    int64_t pairs_row = 0, pairs_channel = 0;
    // Taps of W, where some products of a result are made and others elsewhere: in which order channels are summed must
    // not depend on which. 0: those that the products read.
    int64_t taps = 0;
};

struct Result {
    float* y = nullptr;
    int64_t y_row = 0, y_image = 0;
    const int32_t* y_position = nullptr;
};

struct Product {
    Patches patches;
    const int32_t* w_tap = nullptr;
    Result result;
};

constexpr int64_t kDepth = 256;  // what is summed between two visits of a result
constexpr int64_t kWidth = 512;  // columns packed at a time by `multiply`
constexpr int64_t kChunk = 384;  // columns of W that `correlate` finishes at a time, at most
constexpr int64_t kPackFloats = kDepth * kWidth;

// From the first on, before the last.
struct Interval {
    int64_t first, last;
};

// Words of weights as W is read, and as it is with rows and channels exchanged; null: not wanted. Rows of words are
// GemmKernels::pairs_row() apart.
struct Bf16PairTables {
    float* pairs = nullptr;
    int64_t row = 0;
    float* exchanged = nullptr;
    int64_t exchanged_row = 0;
};

// Every element is summed in the same order however a product is divided into ranges.
struct GemmKernels {
    // Y = bias + W P, or Y += W P when `accumulate`, for several products with the same rows of W, all of one number of
    // channels. `panels` counts columns by tile_columns, those of one product after those of another, each product's
    // beginning with a panel of its own. `bias` may be null. `pack` holds kPackFloats, 64-byte aligned.
    void (*multiply)(const Product* products, int count, const Weights&, Interval rows, Interval panels,
                     const float* bias, bool accumulate, float* pack);
    // W = Y P^T, or W += Y P^T when `accumulate`, for the first `rows` rows and some columns, at most kChunk, written
    // densely to `out`: rows are `out_row` apart, and columns up to the next multiple of tile_columns change too.
    void (*weight_gradient)(const Patches&, const Result&, int64_t rows, Interval columns, bool accumulate, float* out,
                            int64_t out_row, float* pack);
    int tile_rows, tile_columns;
    // How long a vector of columns takes alone, next to one of the two of a tile: it waits for the elements of W.
    double lone_vector;

    // What a product takes, in taps of a vector of columns.
    double cost(int64_t taps, int64_t columns) const {
        double vectors = 2 * static_cast<double>(columns / tile_columns);
        if (const int64_t rest = columns % tile_columns) vectors += 2 * rest <= tile_columns ? lone_vector : 2;
        return static_cast<double>(taps) * vectors;
    }

    // Of products in bf16, else null: converts weights [rows][channels][taps], of the given rows and channels, either
    // from an even number on, of which `w` is the first; rows are w_row apart. Different rows may be converted side by
    // side.
    void (*to_bf16_pairs)(const float* w, int64_t w_row, Interval rows, Interval channels, int64_t taps,
                          const Bf16PairTables&);
    // How far rows of words are apart.
    int64_t (*pairs_row)(int64_t channels, int64_t taps);
};

// Of operands as they are, or rounded to bf16 (nearest, ties to even); results and sums are float32 in either.
enum class Precision : int { float32, bf16 };

extern const GemmKernels gemm_kernels_portable;
extern const GemmKernels gemm_kernels_avx2;
extern const GemmKernels gemm_kernels_avx512;
extern const GemmKernels gemm_bf16_kernels_portable;
extern const GemmKernels gemm_bf16_kernels_avx2;
extern const GemmKernels gemm_bf16_kernels_avx512;
extern const GemmKernels gemm_bf16_kernels_avx512_bf16;

}  // namespace metagan
