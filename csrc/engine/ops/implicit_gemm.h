// Convolutions as matrix products with patches of images (cpu/gemm/gemm.h), for any geometry and number of images.
#pragma once

#include <vector>

#include "convolution_method.h"
#include "geometry.h"
#include "indirection.h"

namespace metagan {

class ImplicitGemm final : public ConvolutionMethod {
  public:
    // `spreads`: from the small image to the large one, else the reverse. The border is the source image's.
    ImplicitGemm(const Geometry&, const Border&, bool spreads);

    int64_t converted_floats(Precision) const override;
    int64_t scratch_floats(int64_t, int, Precision) const override { return 0; }
    int64_t gradient_scratch_floats(int64_t) const override { return 0; }
    void apply(const Filtering&, ConvertedWeights& cache, float* scratch) const override;
    void weight_gradient(const FilterGradient&, float* scratch) const override;

  private:
    Weights weights_of(const Filtering&, ConvertedWeights& cache) const;
    // Weights of one tap are converted while packing: they are few, or are multiplied by as few columns.
    bool converts(Precision precision) const { return precision == Precision::bf16 && geometry_.taps() > 1; }
    int64_t pairs_row(bool spreads) const;
    void convert_to_bf16_pairs(const Filtering&, ConvertedWeights& cache) const;
    Patches patches_of(const IndirectionTable&, const Images<const float>& source, int64_t images) const;

    Geometry geometry_;
    bool spreads_, one_pixel_;
    int64_t rows_, channels_;        // of the weight matrix: channels of the result and of the source
    std::vector<Groups> groupings_;  // of the result's rows
    IndirectionTable gradient_table_;
};

}  // namespace metagan
