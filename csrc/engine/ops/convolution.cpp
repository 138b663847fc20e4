// Convolution, transposed convolution and linear layers.
//
// Each relates two images: a large one, and the small one that is its convolution. Weights are
// [small channels][large channels][taps]. A convolution gathers: its input is the large image. A transposed convolution
// spreads: its input is the small image. Either is the other's gradient by the input, and the gradient by the weights
// is the same product for both. A linear layer is a convolution of one pixel.
#include <algorithm>
#include <stdexcept>

#include "cpu/dispatch.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/profile.h"
#include "engine/scratch.h"
#include "geometry.h"
#include "implicit_gemm.h"
#include "indirection.h"
#include "winograd.h"

namespace metagan {
namespace {

struct ConvolutionState : OperationState {
    Array<float> input;  // padded images
    ConvertedWeights pairs, transforms;
};

// The methods of one direction.
struct Methods {
    ImplicitGemm gemm;
    Winograd winograd;

    Methods(const Geometry& g, const Border& source, bool spreads)
        : gemm(g, source, spreads), winograd(g, source, spreads) {}
};

Geometry geometry_of(const OperationPlan& plan, const ConvolutionPlan& settings, const std::vector<Shape>& shapes) {
    const Shape& in = shapes[static_cast<size_t>(plan.inputs.at(0))];
    const Shape& out = shapes[static_cast<size_t>(plan.output)];
    const Shape &large = settings.transposed ? out : in, &small = settings.transposed ? in : out;
    return {{settings.y, large.height, small.height},
            {settings.x, large.width, small.width},
            large.channels,
            small.channels};
}

class Convolution : public Operation {
  public:
    Convolution(const OperationPlan& plan, const ConvolutionPlan& settings, const std::vector<Shape>& shapes)
        : Operation(plan),
          transposed_(settings.transposed),
          weight_(settings.weight),
          bias_(settings.bias),
          geometry_(geometry_of(plan, settings, shapes)),
          large_border_(gather::border(geometry_)),
          small_border_(spread::border(geometry_)),
          gather_(geometry_, large_border_, false),
          spread_(geometry_, small_border_, true) {
        if (!weight_.exists()) throw std::invalid_argument(plan.name + ": expected a weight, got none");
    }

    std::unique_ptr<OperationState> state(const Activations& a) const override {
        auto state = std::make_unique<ConvolutionState>();
        state->input = Array<float>(padded_floats(transposed_, a.images()));
        return state;
    }

    int64_t state_bytes(int64_t images, int64_t in_pass, Cotangents cotangents, Precision precision) const override {
        const Winograd& reverse = methods(!transposed_).winograd;
        int64_t floats = padded_floats(transposed_, images);
        floats += gather_.gemm.converted_floats(precision) + spread_.gemm.converted_floats(precision);
        if (cotangents == Cotangents::kept && reverse.suits(in_pass, precision, true))
            floats += reverse.converted_floats(precision);
        return floats * int64_t{sizeof(float)};
    }

    int64_t scratch_floats(int64_t images, int threads) const override {
        int64_t floats = gradient_method(images, Precision::float32).gradient_scratch_floats(images);
        for (const Winograd* winograd : {&gather_.winograd, &spread_.winograd})
            if (winograd->suits(images, Precision::float32, true))
                floats = std::max(floats, winograd->scratch_floats(images, threads, Precision::float32));
        return floats;
    }

    int64_t border_floats(int64_t images) const override { return padded_floats(!transposed_, images); }

    // The weight gradient reads the input; a convolution with a border keeps a padded copy of it.
    bool rereads(size_t) const override { return transposed_ || !large_border_.needed; }

    void forward(const Pass& pass, Activations& a, OperationState* state, Range images) const override {
        const Images<const float> source =
            padded(pass, a, state, transposed_, a.x(input(), 0), a.stride(input()), images);
        apply(pass, a, state, source, images, pass.params, bias_.in(pass.params), false, a.x(output(), images.first),
              output(), true);
    }

    void tangent(const Pass& pass, Activations& a, OperationState* state, Range primal, Range tangent) const override {
        const Images<const float> of_tangent =
            padded(pass, a, state, transposed_, a.x(input(), 0), a.stride(input()), tangent);
        float* const y = a.x(output(), tangent.first);
        if (pass.params_dot) {
            const Images<const float> of_primal = source_at(a, state, transposed_, a.x(input(), 0), a.stride(input()));
            apply(pass, a, state, of_primal, primal, pass.params_dot, bias_.in(pass.params_dot), false, y, output());
        }
        apply(pass, a, state, of_tangent, tangent, pass.params, nullptr, pass.params_dot != nullptr, y, output());
    }

    void reverse(const Pass& pass, Activations& a, OperationState* state, const Reverse& r, float* const* x_bar,
                 float* const* x_tilde) const override {
        const bool paired = r.primal.count > 0;
        // The tangents' cotangents follow the primal ones: one product propagates both.
        const Range all{r.images.first, r.images.count + (paired ? r.tangent.count : 0)};
        const bool large_needed = transposed_ && r.gradients;  // the weight gradient reads it padded, with the tangents
        Images<const float> source{};
        if (x_bar[0] || large_needed)
            source = padded(pass, a, state, !transposed_, a.bar(output(), 0), a.stride(output()),
                            x_tilde[0] || large_needed ? all : r.images);
        if (x_bar[0]) {
            const bool adjacent = x_tilde[0] == x_bar[0] + r.images.count * a.shape(input()).positions();
            apply(pass, a, state, source, adjacent ? all : r.images, pass.params, nullptr, false, x_bar[0], input());
            if (x_tilde[0] && !adjacent)
                apply(pass, a, state, source, r.tangent, pass.params, nullptr, false, x_tilde[0], input());
            if (paired && pass.params_dot) {
                if (!x_tilde[0] && !large_needed)
                    source = padded(pass, a, state, !transposed_, a.bar(output(), 0), a.stride(output()), r.tangent);
                const int64_t first = r.primal.first - r.images.first;
                apply(pass, a, state, source, r.tangent, pass.params_dot, nullptr, true,
                      x_bar[0] + first * a.shape(input()).positions(), input());
            }
        }
        if (!r.gradients) return;
        weight_gradient(pass, a, state, all, *r.gradients);
        if (bias_.exists()) {
            const Shape& shape = a.shape(output());
            const int64_t length = r.images.count * shape.positions(), stride = a.stride(output());
            const float* const y_bar = a.bar(output(), r.images.first);
            float* const sums = thread_scratch(shape.channels);
            std::fill_n(sums, shape.channels, 0.f);
            parallel_parts(shape.channels, shape.channels * length, pass.threads, [&](int64_t first, int64_t last) {
                layer_kernels().row_sums({last - first, length, stride}, y_bar + first * stride, sums + first);
            });
            r.gradients->take(bias_.value, 1, shape.channels, shape.channels, sums, shape.channels);
        }
    }

  private:
    const Methods& methods(bool spreads) const { return spreads ? spread_ : gather_; }
    const Border& border(bool small) const { return small ? small_border_ : large_border_; }

    int64_t padded_floats(bool small, int64_t images) const {
        return border(small).needed ? geometry_.shape(small).channels * images * border(small).plane() : 0;
    }

    // The padded input is kept for the weight gradient; the padded cotangent of the output is not.
    Images<const float> source_at(Activations& a, OperationState* state, bool small, const float* images,
                                  int64_t stride) const {
        if (!border(small).needed) return {images, stride, geometry_.shape(small).positions()};
        const float* const padded = small == transposed_ ? static_cast<ConvolutionState*>(state)->input.data()
                                                         : a.border(border_floats(a.images()));
        return {padded, a.images() * border(small).plane(), border(small).plane()};
    }

    // Pads the images of a range, if they need a border.
    Images<const float> padded(const Pass& pass, Activations& a, OperationState* state, bool small, const float* images,
                               int64_t stride, Range range) const {
        const Border& border = this->border(small);
        const Images<const float> source = source_at(a, state, small, images, stride);
        if (!border.needed) return source;
        const Shape shape = geometry_.shape(small);
        parallel_for(shape.channels, pass.threads, [&](int64_t channel) {
            const Timed timed(Work::pack);
            float* const to = const_cast<float*>(source.data) + channel * source.channel + range.first * source.image;
            if (small != transposed_)
                std::fill_n(to, range.count * source.image, 0.f);  // border() is shared with other operations
            layer_kernels().pad(range.count, shape.height, shape.width,
                                images + channel * stride + range.first * shape.positions(),
                                to + border.top * border.width + border.left, border.width, source.image);
        });
        return source;
    }

    // y (+)= W applied to a range of the source; y has the layout of `value`, which also tells gather from spread.
    // Forward values (`primal`) are plain sums, derivatives may use Winograd's transforms: rounding errors in values
    // move activations across their kinks, which sets inner loops apart (docs/tuning.md#winograd-forward-values).
    void apply(const Pass& pass, Activations& a, OperationState* state, const Images<const float>& source, Range range,
               const float* params, const float* bias, bool accumulate, float* y, int value,
               bool primal = false) const {
        const int64_t version = params == pass.params ? pass.version : 0;
        // With a penalty, three reverse products read the same version of the weights.
        const bool reused = version != 0 && value != output() && a.cotangents() == Cotangents::kept;
        const Methods& methods = this->methods((value == output()) == transposed_);
        const bool transforms = !primal && methods.winograd.suits(range.count, pass.precision, reused);
        const ConvolutionMethod& method =
            transforms ? static_cast<const ConvolutionMethod&>(methods.winograd) : methods.gemm;
        auto& own = *static_cast<ConvolutionState*>(state);
        const Filtering filtering{pass.threads,
                                  pass.precision,
                                  weight_.in(params),
                                  version,
                                  reused,
                                  bias,
                                  accumulate,
                                  range.count,
                                  source.from(range.first),
                                  {y, a.stride(value), a.shape(value).positions()}};
        method.apply(filtering, transforms ? own.transforms : own.pairs,
                     a.scratch(method.scratch_floats(range.count, pass.threads, pass.precision)));
    }

    const ConvolutionMethod& gradient_method(int64_t images, Precision precision) const {
        if (gather_.winograd.suits_gradient(images, precision)) return gather_.winograd;
        return gather_.gemm;
    }

    void weight_gradient(const Pass& pass, Activations& a, OperationState* state, Range range,
                         GradientSink& gradients) const {
        const int large_value = transposed_ ? output() : input(), small_value = transposed_ ? input() : output();
        const float* const large = transposed_ ? a.bar(large_value, 0) : a.x(large_value, 0);
        float* const small = transposed_ ? a.x(small_value, range.first) : a.bar(small_value, range.first);
        const FilterGradient gradient{pass.threads,
                                      pass.precision,
                                      range.count,
                                      source_at(a, state, false, large, a.stride(large_value)).from(range.first),
                                      {small, a.stride(small_value), a.shape(small_value).positions()},
                                      weight_.value,
                                      gradients};
        const ConvolutionMethod& method = gradient_method(range.count, pass.precision);
        method.weight_gradient(gradient, a.scratch(method.gradient_scratch_floats(range.count)));
    }

    bool transposed_;
    ParameterOffset weight_, bias_;
    Geometry geometry_;
    Border large_border_, small_border_;
    Methods gather_, spread_;
};

}  // namespace

std::unique_ptr<Operation> ConvolutionPlan::make(const OperationPlan& plan, const std::vector<Shape>& shapes) const {
    return std::make_unique<Convolution>(plan, *this, shapes);
}

}  // namespace metagan
