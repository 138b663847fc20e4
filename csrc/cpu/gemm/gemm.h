// Matrix products (GEMM) of the engine, with patches of images as one operand: convolutions, their transposes and their
// weight gradients. This is implicit im2col: the patch matrix is never written out, and weights are never reordered.
//
// P[k][j] is the patch matrix: k counts (channel, tap), j counts (image, position), and the element lies in the source
// image at
//     b + channel * b_channel + b_tap[tap] + image * b_image + b_position[position].
// W[m][k] is the weight, at w + m * w_row + channel * w_channel + w_tap[tap], and Y[m][j] the result, at
// y + m * y_row + image * y_image + y_position[position]. So any stride, dilation, flip or subset of taps and positions
// is a matter of tables. The source is padded beforehand, so there are no bounds to check. Positions whose taps fall on
// padding form products of their own, with fewer taps and the same weights.
//
//     multiply:        Y (+)= W P       a convolution; its gradient by the input, with the two images exchanged
//     weight_gradient: W (+)= Y P^T     the gradient by the weights
//
// Blocking follows BLIS (Van Zee & van de Geijn 2015). From the outside in, the loops of `multiply` are:
//
//     columns of Y, kWidth at a time                (BLIS: NC)  the chunk of P
//     k, kDepth at a time                           (KC)        packs a kDepth x kWidth block of P, which stays in L2
//     rows of W, tile_rows at a time                (MR)        this strip of W stays in L1
//     columns of the chunk, tile_columns at a time  (NR)        one panel of P
//     micro-kernel: an MR x NR tile of Y in registers, one rank-1 update for each k
//
// W is not packed: the micro-kernel broadcasts its elements one by one, so it reads them in place. P is read in place
// too where its columns form whole vectors; elsewhere it is packed into panels of tile_columns. Products with at most
// half a vector of columns have vectors along the weights instead; see skinny_gemm.h.
#pragma once

#include <cstdint>

#include "cpu/simd/isa.h"

namespace metagan {

struct Patches {
    const float* b = nullptr;
    int64_t b_channel = 0, b_image = 0;
    const int32_t* b_tap = nullptr;
    const int32_t* b_position = nullptr;
    int channels = 0, taps = 0, images = 0, positions = 0;
    int run = 1;  // length of the runs of adjacent positions, in the source and in Y

    int64_t depth() const { return int64_t{channels} * taps; }
    int64_t columns() const { return int64_t{images} * positions; }
};

struct Weights {
    const float* w = nullptr;
    int64_t w_row = 0, w_channel = 0;
    // The weights as bf16 pairs, converted beforehand by GemmKernels::to_bf16_pairs; null: not converted.
    const float* pairs = nullptr;
    int64_t pairs_row = 0, pairs_channel = 0;
    // Tap count that fixes the summation order when the products of one result are computed in several calls; 0: as
    // many as the products given read.
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

constexpr int64_t kDepth = 256;  // depth of a block (KC): steps of k between two accesses to an element of the result
constexpr int64_t kWidth = 512;  // columns of a chunk (NC) of `multiply`
constexpr int64_t kChunk = 384;  // most columns of W in one call of `weight_gradient`
constexpr int64_t kPackFloats = kDepth * kWidth;

// Half-open interval [first, last).
struct Interval {
    int64_t first, last;
};

// Destinations of weights converted to bf16 pairs: W as it is, and with rows and channels exchanged; null: not wanted.
// Rows are GemmKernels::pairs_row() floats apart.
struct Bf16PairTables {
    float* pairs = nullptr;
    int64_t row = 0;
    float* exchanged = nullptr;
    int64_t exchanged_row = 0;
};

// Kernels of one instruction set and precision. The summation order of an element does not depend on how a product is
// divided into ranges.
struct GemmKernels {
    // Computes Y = bias + W P, or Y += W P when `accumulate`, for several products with the same rows of W and the same
    // number of channels. `panels` counts panels of tile_columns columns over all products in order; each product
    // begins a new panel. `bias` may be null. `pack` is scratch of kPackFloats, 64-byte aligned.
    void (*multiply)(const Product* products, int count, const Weights&, Interval rows, Interval panels,
                     const float* bias, bool accumulate, float* pack);
    // Computes W = Y P^T, or W += Y P^T when `accumulate`, for the first `rows` rows and at most kChunk columns. `out`
    // is dense with rows `out_row` apart; columns up to the next multiple of tile_columns are overwritten too.
    void (*weight_gradient)(const Patches&, const Result&, int64_t rows, Interval columns, bool accumulate, float* out,
                            int64_t out_row, float* pack);
    int tile_rows, tile_columns;  // MR and NR
    // Time of a tile one vector wide, relative to a vector of a full tile, which shares the broadcasts of W among two.
    double lone_vector;

    // Cost of a product; the unit is one tap of one vector of columns.
    double cost(int64_t taps, int64_t columns) const {
        double vectors = 2 * static_cast<double>(columns / tile_columns);
        if (const int64_t rest = columns % tile_columns) vectors += 2 * rest <= tile_columns ? lone_vector : 2;
        return static_cast<double>(taps) * vectors;
    }

    // Converts weights [rows][channels][taps] to bf16 pairs; null for float32 kernels. Both intervals begin at an even
    // number, and `w` is the element at their beginning; rows are w_row apart. Threads may convert different rows at
    // the same time.
    void (*to_bf16_pairs)(const float* w, int64_t w_row, Interval rows, Interval channels, int64_t taps,
                          const Bf16PairTables&);
    // Returns the distance between rows of bf16 pairs, in floats; null for float32 kernels.
    int64_t (*pairs_row)(int64_t channels, int64_t taps);
};

// Precision of the operands: float32, or rounded to bf16 (nearest, ties to even). Results and sums are float32 in both.
enum class Precision : int { float32, bf16 };

METAGAN_DECLARE_TABLES(GemmKernels, gemm_kernels);
METAGAN_DECLARE_TABLES(GemmKernels, gemm_bf16_kernels);
#if defined(__x86_64__)
extern const GemmKernels gemm_bf16_kernels_avx512_bf16;
#elif defined(__aarch64__)
extern const GemmKernels gemm_bf16_kernels_neon_bf16;
#endif

}  // namespace metagan
