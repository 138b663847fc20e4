// Transforms of Winograd's minimal filtering along rows (Winograd 1980; Lavin & Gray 2016): F(4, 5), four outputs of a
// kernel 5 wide from eight products instead of twenty, and F(4, 3), six products instead of twelve. The interpolation
// points are 0, 1, -1, 2, -2 and infinity, for F(4, 5) also 1/2 and -1/2. Rounding errors in float32 are two to three
// times those of the direct sum of products.
//
//     y = A^T ((G w) * (B^T x)),   x: one pixel for each point, adjacent; y: the outputs at the first four of them.
#pragma once

#include <cstdint>

#include "cpu/simd/isa.h"

namespace metagan {

constexpr int kTileOutputs = 4;

// Number of interpolation points for a kernel width, which is the products of a tile; 0: no transform.
constexpr int winograd_points(int64_t width) { return width == 5 ? 8 : width == 3 ? 6 : 0; }

// Transforms of one instruction set. Transformed arrays have one plane for each point, `stride` apart.
struct WinogradKernels {
    // G w: transforms `rows` kernel rows of `width` adjacent taps, flipped if `reversed`, to plane[row].
    void (*weights)(int width, bool reversed, int64_t rows, const float* w, float* planes, int64_t stride);
    // G^T u: the transpose of `weights`, not flipped.
    void (*weights_gradient)(int width, int64_t rows, const float* planes, int64_t stride, float* w);
    // B^T x: transforms the first `tiles` tiles of `rows` adjacent image rows, `pitch` tiles apart, to
    // plane[row * row_tiles + tile]. Reads a few vectors past the last row.
    void (*input)(int width, int64_t rows, int64_t tiles, int64_t pitch, const float* x, float* planes,
                  int64_t row_tiles, int64_t stride);
    // A y: the transpose of `output`, in the layout of `input`; its tiles do not overlap.
    void (*output_cotangent)(int width, int64_t rows, int64_t tiles, int64_t pitch, const float* y, float* planes,
                             int64_t row_tiles, int64_t stride);
    // A^T s: transforms plane[image * tiles + tile] back to one row of each image, `tiles` tiles wide; adds to y if
    // `add`, else to the bias.
    void (*output)(int width, int64_t images, int64_t tiles, const float* planes, int64_t stride, float bias, bool add,
                   float* y, int64_t image_stride);
};

METAGAN_DECLARE_TABLES(WinogradKernels, winograd_kernels);

}  // namespace metagan
