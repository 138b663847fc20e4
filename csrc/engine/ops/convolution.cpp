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
#include "engine/network.h"
#include "engine/scratch.h"
#include "geometry.h"
#include "indirection.h"
#include "winograd.h"

namespace metagan {
namespace {

struct ConvolutionState : OperationState {
    Array<float> input;  // padded images
    // Caches of a version of the weights: bf16 pairs, and Winograd transforms for reverse passes.
    Array<float> gather_pairs, spread_pairs, transformed;
    int64_t pairs_version = 0, transformed_version = 0;
};

class Convolution : public Operation {
  public:
    Convolution(const OperationPlan& plan, const ConvolutionPlan& settings, const std::vector<Shape>& shapes)
        : Operation(plan), transposed_(settings.transposed), weight_(settings.weight), bias_(settings.bias) {
        if (!weight_.exists()) throw std::invalid_argument(plan.name + ": expected a weight, got none");
        const Shape& in = shapes[static_cast<size_t>(plan.inputs.at(0))];
        const Shape& out = shapes[static_cast<size_t>(plan.output)];
        const Shape &large = transposed_ ? out : in, &small = transposed_ ? in : out;
        geometry_ = {{settings.y, large.height, small.height},
                     {settings.x, large.width, small.width},
                     large.channels,
                     small.channels};
        large_border_ = gather::border(geometry_);
        small_border_ = spread::border(geometry_);
        one_pixel_ = large.positions() == 1 && small.positions() == 1 && geometry_.taps() == 1 &&
                     !large_border_.needed && !small_border_.needed;
        for (const Grouping grouping : kGroupings) {
            add_way(gather_, gather::groups(geometry_, large_border_, grouping));
            add_way(spread_, spread::groups(geometry_, small_border_, grouping));
        }
        gradient_table_ = gather::all(geometry_, large_border_);
        gather_winograd_ = Winograd(geometry_, large_border_, false);
        spread_winograd_ = Winograd(geometry_, small_border_, true);
    }

    std::unique_ptr<OperationState> state(const Activations& a) const override {
        auto state = std::make_unique<ConvolutionState>();
        state->input = Array<float>(padded_floats(transposed_, a.images()));
        return state;
    }

    int64_t state_bytes(int64_t images, Cotangents cotangents, Precision precision) const override {
        int64_t floats = padded_floats(transposed_, images);
        for (const bool spreads : {false, true})
            if (keeps_bf16_pairs(precision)) floats += pairs_row(spreads) * rows(spreads);
        const Winograd& back = transposed_ ? gather_winograd_ : spread_winograd_;
        if (cotangents == Cotangents::kept && back.suits(images, precision, true))
            floats += back.weights_floats(precision);
        return floats * int64_t{sizeof(float)};
    }

    int64_t scratch_floats(int64_t images) const override {
        int64_t floats = 0;
        for (const Winograd* winograd : {&gather_winograd_, &spread_winograd_})
            if (winograd->suits(images, Precision::float32, true))
                floats = std::max(floats,
                                  winograd->scratch_floats(images, 1) + winograd->weights_floats(Precision::float32));
        if (gather_winograd_.suits_gradient(images))
            floats = std::max(floats, gather_winograd_.gradient_scratch_floats(images));
        return floats;
    }

    int64_t border_floats(int64_t images) const override { return padded_floats(!transposed_, images); }

    // The weight gradient reads the input; a convolution with a border keeps a padded copy of it.
    bool rereads(size_t) const override { return transposed_ || !large_border_.needed; }

    void forward(const Pass& pass, Activations& a, OperationState* state, Range images) const override {
        const Source source = padded(pass, a, state, transposed_, a.x(input(), 0), a.stride(input()), images);
        apply(pass, a, state, source, images, pass.params, bias_.in(pass.params), false, a.x(output(), images.first),
              output(), true);
    }

    void tangent(const Pass& pass, Activations& a, OperationState* state, Range primal, Range tangent) const override {
        const Source of_tangent = padded(pass, a, state, transposed_, a.x(input(), 0), a.stride(input()), tangent);
        float* const y = a.x(output(), tangent.first);
        if (pass.params_dot) {
            const Source of_primal = source_at(a, state, transposed_, a.x(input(), 0), a.stride(input()));
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
        Source source{};
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
    // Source images of a product: image 0 of channel 0, and the strides.
    struct Source {
        const float* b;
        int64_t channel, image;
    };

    const Border& border(bool small) const { return small ? small_border_ : large_border_; }

    int64_t padded_floats(bool small, int64_t images) const {
        return border(small).needed ? rows(!small) * images * border(small).plane() : 0;
    }

    // The padded input is kept for the weight gradient; the padded cotangent of the output is not.
    Source source_at(Activations& a, OperationState* state, bool small, const float* images, int64_t stride) const {
        if (!border(small).needed)
            return {images, stride,
                    (small ? geometry_.y.small * geometry_.x.small : geometry_.y.large * geometry_.x.large)};
        const float* const padded = small == transposed_ ? static_cast<ConvolutionState*>(state)->input.data()
                                                         : a.border(border_floats(a.images()));
        return {padded, a.images() * border(small).plane(), border(small).plane()};
    }

    // Pads the images of a range, if they need a border.
    Source padded(const Pass& pass, Activations& a, OperationState* state, bool small, const float* images,
                  int64_t stride, Range range) const {
        const Border& border = this->border(small);
        const Source source = source_at(a, state, small, images, stride);
        if (!border.needed) return source;
        const int64_t height = small ? geometry_.y.small : geometry_.y.large;
        const int64_t width = small ? geometry_.x.small : geometry_.x.large;
        parallel_for(rows(!small), pass.threads, [&](int64_t channel) {
            const Timed timed(Work::pack);
            float* const to = const_cast<float*>(source.b) + channel * source.channel + range.first * source.image;
            if (small != transposed_)
                std::fill_n(to, range.count * source.image, 0.f);  // border() is shared with other operations
            layer_kernels().pad(range.count, height, width, images + channel * stride + range.first * height * width,
                                to + border.top * border.width + border.left, border.width, source.image);
        });
        return source;
    }

    // y (+)= W applied to a range of the source; y has the layout of `value`, which also tells gather from spread.
    // Forward values (`primal`) are plain sums, derivatives may use Winograd's transforms: rounding errors in values
    // move activations across their kinks, which sets inner loops apart (docs/tuning.md#winograd-forward-values).
    void apply(const Pass& pass, Activations& a, OperationState* state, const Source& source, Range range,
               const float* params, const float* bias, bool accumulate, float* y, int value,
               bool primal = false) const {
        const bool spreads = (value == output()) == transposed_;
        const Shape& shape = a.shape(value);
        const Winograd& winograd = spreads ? spread_winograd_ : gather_winograd_;
        const bool kept = keeps_transformed(a, value) && params == pass.params && pass.version != 0;
        if (!primal && winograd.suits(range.count, pass.precision, kept)) {
            const int64_t for_images = winograd.scratch_floats(range.count, pass.threads);
            float* const scratch = a.scratch(for_images + winograd.weights_floats(pass.precision));
            const float* const weights = transformed(
                pass, winograd, params, kept ? static_cast<ConvolutionState*>(state) : nullptr, scratch + for_images);
            return winograd.apply(pass.threads, pass.precision,
                                  {source.b + range.first * source.image, source.channel, source.image}, range.count,
                                  weights, bias, accumulate, {y, a.stride(value), shape.positions()}, scratch);
        }
        const Groups& groups = cheapest(spreads ? spread_ : gather_, [&](const IndirectionTable& t) {
            return gemm_kernels(pass.precision)
                .cost(static_cast<int64_t>(t.b_tap.size()), range.count * static_cast<int64_t>(t.b_position.size()));
        });
        const bool uncovered =
            std::any_of(groups.begin(), groups.end(), [](const IndirectionTable& t) { return t.b_tap.empty(); });
        if (uncovered && !accumulate) {  // no tap reaches some positions
            for (int64_t channel = 0; channel < shape.channels; ++channel)
                std::fill_n(y + channel * a.stride(value), range.count * shape.positions(), bias ? bias[channel] : 0.f);
            accumulate = true;
        }
        Weights weights = weights_of(params, spreads);
        if (params == pass.params && pass.version != 0 && keeps_bf16_pairs(pass.precision)) {
            weights.pairs = pairs(pass, *static_cast<ConvolutionState*>(state), spreads);
            weights.pairs_row = pairs_row(spreads);
            weights.pairs_channel = geometry_.taps();
        }
        thread_local std::vector<Product> products;  // reuses its memory
        products.clear();
        for (const IndirectionTable& t : groups) {
            if (t.b_tap.empty()) continue;
            Product product{patches_of(t, source, range, channels(spreads)),
                            t.w_tap.data(),
                            {y, a.stride(value), shape.positions(), t.y_position.data()}};
            if (one_pixel_) product.result.y_position = product.patches.b_position;
            products.push_back(product);
        }
        if (!products.empty()) multiply(pass, products, weights, shape.channels, bias, accumulate);
    }

    // Rows and channels of the weight matrix of a gather or a spread.
    int64_t rows(bool spreads) const { return spreads ? geometry_.large_channels : geometry_.small_channels; }
    int64_t channels(bool spreads) const { return rows(!spreads); }

    Weights weights_of(const float* params, bool spreads) const {
        Weights weights;
        weights.w = params + weight_.value;
        weights.w_row = spreads ? geometry_.taps() : geometry_.weights_of_small();
        weights.w_channel = spreads ? geometry_.weights_of_small() : geometry_.taps();
        return weights;
    }

    // With a penalty, three reverse products read the same version of the weights.
    bool keeps_transformed(const Activations& a, int value) const {
        return value != output() && a.cotangents() == Cotangents::kept;
    }

    const float* transformed(const Pass& pass, const Winograd& winograd, const float* params, ConvolutionState* state,
                             float* uncached) const {
        if (state && state->transformed_version == pass.version) return state->transformed.data();
        float* const to = state ? state->transformed.at_least(winograd.weights_floats(pass.precision)) : uncached;
        winograd.transform_weights(pass.threads, pass.precision, params + weight_.value, to);
        if (state) state->transformed_version = pass.version;
        return to;
    }

    // Weights of one tap are converted while packing: they are few, or are multiplied by as few columns.
    bool keeps_bf16_pairs(Precision precision) const { return precision == Precision::bf16 && geometry_.taps() > 1; }
    int64_t pairs_row(bool spreads) const {
        return gemm_kernels(Precision::bf16).pairs_row(channels(spreads), geometry_.taps());
    }

    const float* pairs(const Pass& pass, ConvolutionState& state, bool spreads) const {
        if (state.pairs_version != pass.version) {
            const int64_t rows = geometry_.small_channels, share = 32;  // whole cache lines in both tables
            const Bf16PairTables to{state.gather_pairs.at_least(rows * pairs_row(false)), pairs_row(false),
                                    state.spread_pairs.at_least(geometry_.large_channels * pairs_row(true)),
                                    pairs_row(true)};
            parallel_for((rows + share - 1) / share, pass.threads, [&](int64_t part) {
                const Timed timed(Work::pack);
                const Interval some{part * share, std::min(rows, (part + 1) * share)};
                gemm_kernels(pass.precision)
                    .to_bf16_pairs(pass.params + weight_.value + some.first * geometry_.weights_of_small(),
                                   geometry_.weights_of_small(), some, {0, geometry_.large_channels}, geometry_.taps(),
                                   to);
            });
            state.pairs_version = pass.version;
        }
        return (spreads ? state.spread_pairs : state.gather_pairs).data();
    }

    Patches patches_of(const IndirectionTable& t, const Source& source, Range range, int64_t channels) const {
        Patches p;
        p.b = source.b + range.first * source.image;
        p.b_channel = source.channel;
        p.b_tap = t.b_tap.data();
        p.channels = static_cast<int>(channels);
        p.taps = static_cast<int>(t.b_tap.size());
        if (one_pixel_) {  // images are adjacent and take the place of positions
            p.b_position = thread_iota(range.count);
            p.images = 1;
            p.positions = p.run = static_cast<int>(range.count);
        } else {
            p.b_image = source.image;
            p.b_position = t.b_position.data();
            p.images = static_cast<int>(range.count);
            p.positions = static_cast<int>(t.b_position.size());
            p.run = t.run;
        }
        return p;
    }

    // Divides columns among threads, or rows where columns are few: then each thread packs all columns, but reads only
    // its part of the weights, which matters if they must be converted.
    static void multiply(const Pass& pass, const std::vector<Product>& products, const Weights& weights, int64_t rows,
                         const float* bias, bool accumulate) {
        const GemmKernels& kernels = gemm_kernels(pass.precision);
        const int64_t threads = pass.threads;
        int64_t panels = 0;
        for (const Product& product : products)
            panels += (product.patches.columns() + kernels.tile_columns - 1) / kernels.tile_columns;
        const bool by_columns =
            weights.pairs ? panels >= threads : panels * kernels.tile_columns >= threads * (kWidth / 2);
        const int64_t size = by_columns ? panels : rows;
        const int64_t share = share_of(size, threads, by_columns ? 1 : kernels.tile_rows);
        parallel_for((size + share - 1) / share, pass.threads, [&](int64_t piece) {
            const Timed timed(Work::multiply);
            const Interval part{piece * share, std::min(size, (piece + 1) * share)};
            kernels.multiply(products.data(), static_cast<int>(products.size()), weights,
                             by_columns ? Interval{0, rows} : part, by_columns ? part : Interval{0, panels}, bias,
                             accumulate, thread_scratch(kPackFloats));
        });
    }

    void weight_gradient(const Pass& pass, Activations& a, OperationState* state, Range range,
                         GradientSink& gradients) const {
        const int large_value = transposed_ ? output() : input(), small_value = transposed_ ? input() : output();
        const float* const large = transposed_ ? a.bar(large_value, 0) : a.x(large_value, 0);
        float* const small = transposed_ ? a.x(small_value, range.first) : a.bar(small_value, range.first);
        const Source source = source_at(a, state, false, large, a.stride(large_value));
        if (gather_winograd_.suits_gradient(range.count)) {
            return gather_winograd_.weight_gradient(
                pass.threads, pass.precision, {source.b + range.first * source.image, source.channel, source.image},
                {small, a.stride(small_value), a.shape(small_value).positions()}, range.count, gradients, weight_.value,
                a.scratch(gather_winograd_.gradient_scratch_floats(range.count)));
        }
        const Patches patches = patches_of(gradient_table_, source, range, geometry_.large_channels);
        Result result{small, a.stride(small_value), a.shape(small_value).positions(),
                      gradient_table_.y_position.data()};
        if (one_pixel_) result.y_position = patches.b_position;
        const int64_t rows = geometry_.small_channels, columns = geometry_.weights_of_small();
        const GemmKernels& kernels = gemm_kernels(pass.precision);
        // Chunks as large as the cache holds, but enough of them to divide among the threads.
        const int64_t fits = std::min(kChunk, kPackFloats / rows), share = columns / (4 * pass.threads);
        const int64_t even = std::max<int64_t>(kChunk / 3, pass.threads > 1 ? std::min(fits, share) : fits);
        const int64_t wanted = std::min(even, columns);
        const int64_t unit = kernels.tile_columns, chunk = (wanted + unit - 1) / unit * unit;
        parallel_for((columns + chunk - 1) / chunk, pass.threads, [&](int64_t index) {
            const Timed timed(Work::weight_gradient);
            const int64_t first = index * chunk, last = std::min(columns, first + chunk);
            float* const pack = thread_scratch(kPackFloats + rows * chunk);
            float* const out = pack + kPackFloats;
            kernels.weight_gradient(patches, result, rows, {first, last}, false, out, chunk, pack);
            gradients.take(weight_.value + first, rows, last - first, columns, out, chunk);
        });
    }

    bool transposed_, one_pixel_;
    ParameterOffset weight_, bias_;
    Geometry geometry_;
    Border large_border_, small_border_;
    std::vector<Groups> gather_, spread_;
    IndirectionTable gradient_table_;
    Winograd gather_winograd_, spread_winograd_;
};

}  // namespace

std::unique_ptr<Operation> ConvolutionPlan::make(const OperationPlan& plan, const std::vector<Shape>& shapes) const {
    return std::make_unique<Convolution>(plan, *this, shapes);
}

}  // namespace metagan
