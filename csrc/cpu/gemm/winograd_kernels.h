// Transforms of Winograd's minimal convolution along rows (Winograd 1980; Lavin & Gray 2016): four outputs of a kernel
// 5 wide from eight products instead of twenty, or of one 3 wide from six instead of twelve. Polynomials are evaluated
// at 0, 1, -1, 2, -2, for the wider kernel 1/2 and -1/2, and infinity. Errors of float32 are two to three times those
// of the plain sum of products.
//
//     y = A^T ((G w) * (B^T x)),   x adjacent pixels, as many as points, y the outputs at the first four of them.
#pragma once

#include <cstdint>

namespace metagan {

constexpr int kTileOutputs = 4;
constexpr int kMostPoints = 8;

// Products of a tile for a kernel so wide, or 0 where there are no transforms.
constexpr int winograd_points(int64_t width) { return width == 5 ? 8 : width == 3 ? 6 : 0; }

// Transformed arrays have one plane a point, `stride` apart.
struct WinogradKernels {
    // `rows` rows of a kernel, `width` adjacent taps each, in reverse if `reversed`: plane[row].
    void (*weights)(int width, bool reversed, int64_t rows, const float* w, float* planes, int64_t stride);
    // The transpose of `weights`, not reversed.
    void (*weights_gradient)(int width, int64_t rows, const float* planes, int64_t stride, float* w);
    // `rows` adjacent rows of an image, `pitch` tiles apart, of which the first `tiles` are wanted: plane[row *
    // row_tiles
    // + tile]. A few vectors behind the last row are read.
    void (*input)(int width, int64_t rows, int64_t tiles, int64_t pitch, const float* x, float* planes,
                  int64_t row_tiles, int64_t stride);
    // The same for the transpose of `output`, whose tiles do not overlap.
    void (*output_cotangent)(int width, int64_t rows, int64_t tiles, int64_t pitch, const float* y, float* planes,
                             int64_t row_tiles, int64_t stride);
    // The other way for one row of each image, `tiles` wide, from plane[image * tiles + tile]; added to y, or to a
    // bias.
    void (*output)(int width, int64_t images, int64_t tiles, const float* planes, int64_t stride, float bias, bool add,
                   float* y, int64_t image_stride);
};

extern const WinogradKernels winograd_kernels_portable;
extern const WinogradKernels winograd_kernels_avx2;
extern const WinogradKernels winograd_kernels_avx512;

}  // namespace metagan
