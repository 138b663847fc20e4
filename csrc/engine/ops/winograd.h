// Convolutions of stride 1 with fewer multiplications: Winograd's along rows, the usual sum over the rows of a kernel.
// In bf16 it is transformed pixels and weights that are rounded. That makes four times the error of rounding the pixels
// themselves (1e-2 of a derivative on random numbers), but leaves inner steps as far from float32's as they are without
// transforms: 5.2e-2 of the change after one step of FIGR's generator, as without; 8.4e-2 and 7.9e-2 after three.
#pragma once

#include <vector>

#include "cpu/gemm/winograd_kernels.h"
#include "engine/network.h"
#include "geometry.h"
#include "indirection.h"

namespace metagan {

// Images as arrays have them: image 0 of channel 0, and the distances.
template <class T>
struct Images {
    T* data;
    int64_t channel, image;
};

class Winograd {
  public:
    Winograd() = default;
    // From the small image to the large one, or the other way; `border` is that of the source.
    Winograd(const Geometry&, const Border&, bool spreads);

    // Whether it can, and is faster for so many images than the products themselves in that precision; `kept`: with
    // weights that are transformed for several calls.
    bool suits(int64_t images, Precision, bool kept) const;
    bool suits_gradient(int64_t images) const;
    // Weights [small channels][large channels][taps] as `apply` reads them: in bf16 as words.
    int64_t weights_floats(Precision) const;
    void transform_weights(int threads, Precision, const float* weights, float* transformed) const;
    int64_t scratch_floats(int64_t images, int threads) const;
    // y (+)= the convolution of images in their border.
    void apply(int threads, Precision, const Images<const float>& source, int64_t images, const float* transformed,
               const float* bias, bool accumulate, const Images<float>& y, float* scratch) const;

    int64_t gradient_scratch_floats(int64_t images) const;
    // The gradient by the weights, from the large image in its border and the small one; handed to the sink, whose
    // parameter begins at `offset`.
    void weight_gradient(int threads, Precision, const Images<const float>& large, const Images<const float>& small,
                         int64_t images, GradientSink& gradients, int64_t offset, float* scratch) const;

  private:
    // Rows [first, last) of the result, to which these rows of the kernel contribute.
    struct RowGroup {
        int64_t first, last;
        std::vector<int32_t> taps;  // of the kernel
        int64_t source;             // row of the source, of those in its border, of the first row's first tap
    };

    int64_t tiles() const { return width_ / kTileOutputs; }
    // How many images at a time, so many floats being made of each: as many as stay in a cache.
    int64_t batch(int64_t images, int64_t floats) const;
    int64_t batch_of_result(int64_t images, int threads) const;
    int64_t batch_of_gradient(int64_t images) const;
    int64_t weights_plane(Precision) const;
    int64_t pairs_row() const;
    void transform_to_bf16_pairs(int threads, const float* weights, float* pairs) const;
    int64_t plane(int64_t images) const;  // of a transformed channel in its border
    int64_t small_plane(int64_t images) const;
    int64_t steps() const { return source_channels_ * kernel_height_; }
    int64_t gradient_row() const;
    int64_t gradient_plane() const;

    int points_ = 0, kernel_width_ = 0;
    bool spreads_ = false;
    int64_t height_ = 0, width_ = 0, channels_ = 0, source_channels_ = 0, kernel_height_ = 0;
    int64_t source_width_ = 0, source_offset_ = 0;  // of a row in its border; of the first pixel of all
    std::vector<std::vector<RowGroup>> ways_;
};

}  // namespace metagan
