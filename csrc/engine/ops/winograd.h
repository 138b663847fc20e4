// Convolutions of stride 1 by Winograd's minimal filtering along rows, with a plain sum over the rows of the kernel. In
// bf16 the transformed pixels and weights are rounded (docs/tuning.md#winograd-rounding-in-bf16).
#pragma once

#include <vector>

#include "convolution_method.h"
#include "cpu/gemm/winograd_kernels.h"
#include "geometry.h"
#include "indirection.h"

namespace metagan {

class Winograd final : public ConvolutionMethod {
  public:
    // `spreads`: from the small image to the large one, else the reverse. The border is the source image's.
    Winograd(const Geometry&, const Border&, bool spreads);

    // Whether the transform exists and is faster than plain products for this number of images. `reused`: several
    // calls share the transformed weights.
    bool suits(int64_t images, Precision, bool reused) const;
    bool suits_gradient(int64_t images, Precision) const;

    int64_t converted_floats(Precision) const override;
    int64_t scratch_floats(int64_t images, int threads, Precision) const override;
    int64_t gradient_scratch_floats(int64_t images) const override;
    void apply(const Filtering&, ConvertedWeights& cache, float* scratch) const override;
    void weight_gradient(const FilterGradient&, float* scratch) const override;

  private:
    // Rows [first, last) of the result and the kernel rows that contribute to them.
    struct RowGroup {
        int64_t first, last;
        std::vector<int32_t> taps;  // kernel rows
        int64_t source;             // padded source row of the first row's first tap
    };

    int64_t tiles() const { return width_ / kTileOutputs; }
    // Images of a round that fit into the cache block, each transformed to this number of floats.
    int64_t batch(int64_t images, int64_t floats) const;
    int64_t batch_of_result(int64_t images, int threads) const;
    int64_t batch_of_gradient(int64_t images) const;
    int64_t planes_floats(int64_t images, int threads) const;
    int64_t weights_plane(Precision) const;
    int64_t pairs_row() const;
    const float* transformed_weights(const Filtering&, ConvertedWeights& cache, float* uncached) const;
    void transform_weights(int threads, Precision, const float* weights, float* transformed) const;
    void transform_to_bf16_pairs(int threads, const float* weights, float* pairs) const;
    int64_t plane(int64_t images) const;  // size of a transformed padded channel
    int64_t small_plane(int64_t images) const;
    int64_t steps() const { return source_channels_ * kernel_height_; }
    int64_t gradient_row() const;
    int64_t gradient_plane() const;

    int points_ = 0, kernel_width_ = 0;
    bool spreads_ = false;
    int64_t height_ = 0, width_ = 0, channels_ = 0, source_channels_ = 0, kernel_height_ = 0;
    int64_t source_width_ = 0, source_offset_ = 0;  // width of a padded row; offset of the first pixel read
    std::vector<std::vector<RowGroup>> groupings_;
};

}  // namespace metagan
