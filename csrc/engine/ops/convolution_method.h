// Interface of the methods that compute a convolution: implicit GEMM and Winograd's. A method serves one direction:
// gather, from the large image to the small one, or spread, from small to large. Convolution pads the images and
// chooses the method.
#pragma once

#include "cpu/gemm/gemm.h"
#include "cpu/runtime/array.h"
#include "engine/network.h"

namespace metagan {

// View of images: image 0 of channel 0, and the strides of channels and images.
template <class T>
struct Images {
    T* data;
    int64_t channel, image;

    Images from(int64_t first) const { return {data + first * image, channel, image}; }
};

// y (+)= W x + bias, for padded images x.
struct Filtering {
    int threads;
    Precision precision;
    const float* weights;  // [small channels][large channels][taps]
    int64_t version;       // of the weights, under which their converted form is cached; 0: it is not
    bool reused;           // several products read this version
    const float* bias;     // null: 0
    bool accumulate;
    int64_t images;
    Images<const float> x;
    Images<float> y;
};

// Gradient by the weights: small (patches of large)^T, for padded large images.
struct FilterGradient {
    int threads;
    Precision precision;
    int64_t images;
    Images<const float> large;
    Images<float> small;
    int64_t offset;  // of the weights in the flat parameters
    GradientSink& sink;
};

// Weights of both directions in the form that a method reads.
struct ConvertedWeights {
    struct Cache {
        Array<float> weights;
        int64_t version = 0;  // 0: empty
    };
    Cache gather, spread;

    Cache& of(bool spreads) { return spreads ? spread : gather; }
};

class ConvolutionMethod {
  public:
    virtual ~ConvolutionMethod() = default;

    // Size of the converted weights of this direction.
    virtual int64_t converted_floats(Precision) const = 0;
    // Size of the scratch of `apply` and `weight_gradient`.
    virtual int64_t scratch_floats(int64_t images, int threads, Precision) const = 0;
    virtual int64_t gradient_scratch_floats(int64_t images) const = 0;

    virtual void apply(const Filtering&, ConvertedWeights& cache, float* scratch) const = 0;
    // Passes the gradient to the sink in parts. Only the method of the gather direction has it.
    virtual void weight_gradient(const FilterGradient&, float* scratch) const = 0;
};

}  // namespace metagan
