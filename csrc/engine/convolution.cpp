// Convolution, transposed convolution and linear layers.
//
// All are about two images: a large one and a small one, the small one being the convolution of the large one. Weights
// are [small channels][large channels][taps]. A convolution gathers: its input is the large image; a transposed one
// spreads: its input is the small image. The gradient by the input of either is the other, and the gradient by the
// weights is the same correlation for both. A linear layer is a convolution of one pixel.
#include <algorithm>
#include <stdexcept>

#include "../cpu/dispatch.h"
#include "../cpu/parallel.h"
#include "../cpu/profile.h"
#include "geometry.h"
#include "operations.h"
#include "scratch.h"
#include "winograd.h"

namespace metagan {
namespace {

// Offsets of a product's taps and positions; see gemm.h.
struct Tables {
    std::vector<int32_t> b_tap, w_tap, b_position, y_position;
    int run = 1;

    void finish() {  // positions come in runs: breaks are at multiples of `run`
        run = static_cast<int>(b_position.size());
        for (size_t i = 1; i < b_position.size(); ++i) {
            if (b_position[i] == b_position[i - 1] + 1 && y_position[i] == y_position[i - 1] + 1) continue;
            int64_t a = run, b = static_cast<int64_t>(i);
            while (b) std::swap(a %= b, b);
            run = static_cast<int>(a);
        }
    }
};

int64_t divide_down(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// Whether to take rows apart by the taps that fall on padding, so many being useful of all. Parts share the passage of
// the weights through the caches, so little is enough.
bool is_worth_it(int64_t useful, int64_t all) { return useful * 100 < all * 97; }

// Where taps reach from a small position, along one axis: large = small * stride - padding + tap * dilation.
struct Gather {
    static Border border(const Geometry& g) {
        const auto side = [](const Axis& a) {
            return std::max(a.large + a.padding, (a.small - 1) * a.stride + (a.kernel - 1) * a.dilation + 1);
        };
        Border b{g.y.padding, g.x.padding, side(g.y), side(g.x)};
        b.needed = b.top || b.left || b.height != g.y.large || b.width != g.x.large;
        if (b.needed) b.fill_tiles();
        return b;
    }

    // With `apart`, rows of the small image whose taps fall on different rows of padding are, where that saves enough.
    static std::vector<Tables> tables(const Geometry& g, const Border& b, bool apart) {
        const auto valid = [&](int64_t row) {
            std::pair<int64_t, int64_t> taps{g.y.kernel, 0};  // first, one past the last
            for (int64_t k = 0; k < g.y.kernel; ++k) {
                const int64_t large = row * g.y.stride - g.y.padding + k * g.y.dilation;
                if (large < 0 || large >= g.y.large) continue;
                taps.first = std::min(taps.first, k);
                taps.second = std::max(taps.second, k + 1);
            }
            return taps;
        };
        int64_t useful = 0;
        for (int64_t row = 0; row < g.y.small; ++row)
            useful += std::max<int64_t>(0, valid(row).second - valid(row).first);
        apart = apart && is_worth_it(useful, g.y.small * g.y.kernel);
        std::vector<Tables> groups;
        std::pair<int64_t, int64_t> last{-1, -1};
        for (int64_t row = 0; row < g.y.small; ++row) {
            const auto taps = apart ? valid(row) : std::pair<int64_t, int64_t>{0, g.y.kernel};
            if (taps != last) {
                last = taps;
                groups.emplace_back();
                for (int64_t k = taps.first; k < taps.second; ++k)
                    for (int64_t l = 0; l < g.x.kernel; ++l) {
                        groups.back().b_tap.push_back(
                            static_cast<int32_t>(k * g.y.dilation * b.width + l * g.x.dilation));
                        groups.back().w_tap.push_back(static_cast<int32_t>(k * g.x.kernel + l));
                    }
            }
            for (int64_t column = 0; column < g.x.small; ++column) {
                groups.back().b_position.push_back(
                    static_cast<int32_t>(row * g.y.stride * b.width + column * g.x.stride));
                groups.back().y_position.push_back(static_cast<int32_t>(row * g.x.small + column));
            }
        }
        for (Tables& group : groups) group.finish();
        return groups;
    }
};

// Which small positions reach a large one: small = (large + padding - tap * dilation) / stride, where that is whole.
// Large positions of one remainder by the stride have the same taps.
struct Spread {
    static Border border(const Geometry& g) {
        const auto before = [](const Axis& a) {
            return std::max<int64_t>(0, -divide_down(a.padding - (a.kernel - 1) * a.dilation, a.stride));
        };
        const auto side = [&](const Axis& a) {
            return before(a) + std::max(a.small, divide_down(a.large - 1 + a.padding, a.stride) + 1);
        };
        Border b{before(g.y), before(g.x), side(g.y), side(g.x)};
        b.needed = b.height != g.y.small || b.width != g.x.small;
        if (b.needed) b.fill_tiles();
        return b;
    }

    static std::vector<Tables> tables(const Geometry& g, const Border& b) {
        std::vector<Tables> groups;
        for (int64_t y = 0; y < std::min(g.y.stride, g.y.large); ++y)
            for (int64_t x = 0; x < std::min(g.x.stride, g.x.large); ++x) {
                const std::vector<Part> rows = parts(g.y, y);
                for (const Part& part : rows) groups.push_back(group(g, b, part, x));
            }
        for (Tables& group : groups) group.finish();
        return groups;
    }

  private:
    // Large rows of one remainder, and the taps that reach them from within the small image.
    struct Part {
        std::vector<int64_t> positions, taps;
    };

    static bool reaches(const Axis& a, int64_t position, int64_t tap) {
        return (position + a.padding - tap * a.dilation) % a.stride == 0;
    }

    static std::vector<Part> parts(const Axis& a, int64_t remainder) {
        std::vector<Part> parts;
        int64_t useful = 0, all = 0;
        for (int64_t position = remainder; position < a.large; position += a.stride) {
            std::vector<int64_t> taps;
            for (int64_t tap = 0; tap < a.kernel; ++tap) {
                if (!reaches(a, position, tap)) continue;
                ++all;
                const int64_t small = divide_down(position + a.padding - tap * a.dilation, a.stride);
                if (small < 0 || small >= a.small) continue;
                ++useful;
                taps.push_back(tap);
            }
            if (parts.empty() || parts.back().taps != taps) parts.push_back({{}, taps});
            parts.back().positions.push_back(position);
        }
        if (is_worth_it(useful, all)) return parts;
        Part whole;
        for (int64_t position = remainder; position < a.large; position += a.stride)
            whole.positions.push_back(position);
        for (int64_t tap = 0; tap < a.kernel; ++tap)
            if (reaches(a, remainder, tap)) whole.taps.push_back(tap);
        return {whole};
    }

    static Tables group(const Geometry& g, const Border& b, const Part& part, int64_t x) {
        Tables t;
        const auto small = [](const Axis& a, int64_t position, int64_t tap) {
            return divide_down(position + a.padding - tap * a.dilation, a.stride);
        };
        const int64_t y = part.positions.front();
        for (const int64_t k : part.taps)
            for (int64_t l = 0; l < g.x.kernel; ++l) {
                if (!reaches(g.x, x, l)) continue;
                t.b_tap.push_back(
                    static_cast<int32_t>((small(g.y, y, k) + b.top) * b.width + small(g.x, x, l) + b.left));
                t.w_tap.push_back(static_cast<int32_t>(k * g.x.kernel + l));
            }
        for (const int64_t row : part.positions)
            for (int64_t column = x; column < g.x.large; column += g.x.stride) {
                t.b_position.push_back(
                    static_cast<int32_t>((row - y) / g.y.stride * b.width + (column - x) / g.x.stride));
                t.y_position.push_back(static_cast<int32_t>(row * g.x.large + column));
            }
        return t;
    }
};

struct PaddedImages : OperationState {
    Array<float> large, small;
};

class Convolution : public Operation {
  public:
    Convolution(const OperationPlan& plan, const std::vector<Shape>& shapes, bool transposed)
        : Operation(plan), transposed_(transposed) {
        const Shape& in = shapes[static_cast<size_t>(plan.inputs.at(0))];
        const Shape& out = shapes[static_cast<size_t>(plan.output)];
        const Shape &large = transposed ? out : in, &small = transposed ? in : out;
        const std::vector<int64_t>& v = plan.integers;
        if (v.size() != 8) throw std::invalid_argument(plan.name + ": expected 8 integers");
        geometry_ = {{v[0], v[2], v[4], v[6], large.height, small.height},
                     {v[1], v[3], v[5], v[7], large.width, small.width},
                     large.channels,
                     small.channels};
        large_border_ = Gather::border(geometry_);
        small_border_ = Spread::border(geometry_);
        one_pixel_ = large.positions() == 1 && small.positions() == 1 && geometry_.taps() == 1 &&
                     !large_border_.needed && !small_border_.needed;
        gather_ = Gather::tables(geometry_, large_border_, true);
        spread_ = Spread::tables(geometry_, small_border_);
        correlate_ = Gather::tables(geometry_, large_border_, false).front();
        gather_winograd_ = Winograd(geometry_, large_border_, false);
        spread_winograd_ = Winograd(geometry_, small_border_, true);
    }

    std::unique_ptr<OperationState> state(const Activations& a) const override {
        auto state = std::make_unique<PaddedImages>();
        if (large_border_.needed)
            state->large = Array<float>(geometry_.large_channels * a.images() * large_border_.plane());
        if (small_border_.needed)
            state->small = Array<float>(geometry_.small_channels * a.images() * small_border_.plane());
        return state;
    }

    int64_t state_bytes(int64_t images) const override {
        int64_t floats = 0;
        if (large_border_.needed) floats += geometry_.large_channels * images * large_border_.plane();
        if (small_border_.needed) floats += geometry_.small_channels * images * small_border_.plane();
        return floats * int64_t{sizeof(float)};
    }

    int64_t scratch_bytes(int64_t images) const override {
        int64_t floats = 0;
        for (const Winograd* winograd : {&gather_winograd_, &spread_winograd_})
            if (winograd->suits(images, Precision::float32))
                floats = std::max(floats, winograd->scratch_floats(images, 1));
        if (gather_winograd_.suits_gradient(images))
            floats = std::max(floats, gather_winograd_.gradient_scratch_floats(images));
        return floats * int64_t{sizeof(float)};
    }

    void forward(const Pass& pass, Activations& a, OperationState* state, Range images) const override {
        const Source source = padded(pass, a, state, transposed_, a.x(input(), 0), a.stride(input()), images);
        apply(pass, a, source, images, pass.params, bias(pass.params), false, a.x(output(), images.first), output(),
              true);
    }

    void tangent(const Pass& pass, Activations& a, OperationState* state, Range primal, Range tangent) const override {
        const Source of_tangent = padded(pass, a, state, transposed_, a.x(input(), 0), a.stride(input()), tangent);
        float* const y = a.x(output(), tangent.first);
        if (pass.params_dot) {
            const Source of_primal = source_at(a, state, transposed_, a.x(input(), 0), a.stride(input()));
            apply(pass, a, of_primal, primal, pass.params_dot, bias(pass.params_dot), false, y, output());
        }
        apply(pass, a, of_tangent, tangent, pass.params, nullptr, pass.params_dot != nullptr, y, output());
    }

    void reverse(const Pass& pass, Activations& a, OperationState* state, const Reverse& r, float* const* x_bar,
                 float* const* x_tilde) const override {
        const bool paired = r.primal.count > 0;
        // The tangent's cotangents lie behind the others: both are carried back in one product.
        const Range all{r.images.first, r.images.count + (paired ? r.tangent.count : 0)};
        const bool large_needed = transposed_ && r.gradients;  // the correlation reads it padded, tangents and all
        Source source{};
        if (x_bar[0] || large_needed)
            source = padded(pass, a, state, !transposed_, a.bar(output(), 0), a.stride(output()),
                            x_tilde[0] || large_needed ? all : r.images);
        if (x_bar[0]) {
            const bool adjacent = x_tilde[0] == x_bar[0] + r.images.count * a.shape(input()).positions();
            apply(pass, a, source, adjacent ? all : r.images, pass.params, nullptr, false, x_bar[0], input());
            if (x_tilde[0] && !adjacent)
                apply(pass, a, source, r.tangent, pass.params, nullptr, false, x_tilde[0], input());
            if (paired && pass.params_dot) {
                if (!x_tilde[0] && !large_needed)
                    source = padded(pass, a, state, !transposed_, a.bar(output(), 0), a.stride(output()), r.tangent);
                const int64_t first = r.primal.first - r.images.first;
                apply(pass, a, source, r.tangent, pass.params_dot, nullptr, true,
                      x_bar[0] + first * a.shape(input()).positions(), input());
            }
        }
        if (!r.gradients) return;
        weight_gradient(pass, a, state, all, *r.gradients);
        if (plan().parameters[1] >= 0) {
            const Shape& shape = a.shape(output());
            float* const sums = thread_scratch(shape.channels);
            std::fill_n(sums, shape.channels, 0.f);
            layer_kernels().row_sums({shape.channels, r.images.count * shape.positions(), a.stride(output())},
                                     a.bar(output(), r.images.first), sums);
            r.gradients->take(plan().parameters[1], 1, shape.channels, shape.channels, sums, shape.channels);
        }
    }

  private:
    // Images as a product reads them: image 0 of channel 0, and the distances.
    struct Source {
        const float* b;
        int64_t channel, image;
    };

    const float* bias(const float* params) const {
        return plan().parameters[1] < 0 ? nullptr : params + plan().parameters[1];
    }

    Source source_at(Activations& a, OperationState* state, bool small, const float* images, int64_t stride) const {
        const Border& border = small ? small_border_ : large_border_;
        if (!border.needed)
            return {images, stride,
                    (small ? geometry_.y.small * geometry_.x.small : geometry_.y.large * geometry_.x.large)};
        auto* const own = static_cast<PaddedImages*>(state);
        return {(small ? own->small : own->large).data(), a.images() * border.plane(), border.plane()};
    }

    // Copies the images of a range into their border, if they need one.
    Source padded(const Pass& pass, Activations& a, OperationState* state, bool small, const float* images,
                  int64_t stride, Range range) const {
        const Border& border = small ? small_border_ : large_border_;
        const Source source = source_at(a, state, small, images, stride);
        if (!border.needed) return source;
        const int64_t height = small ? geometry_.y.small : geometry_.y.large;
        const int64_t width = small ? geometry_.x.small : geometry_.x.large;
        const int64_t channels = small ? geometry_.small_channels : geometry_.large_channels;
        auto* const to = const_cast<float*>(source.b) + border.top * border.width + border.left;
        parallel_for(channels, pass.threads, [&](int64_t channel) {
            const Timed timed(Work::pack);
            layer_kernels().pad(range.count, height, width, images + channel * stride + range.first * height * width,
                                to + channel * source.channel + range.first * source.image, border.width, source.image);
        });
        return source;
    }

    // y (+)= W applied to images of the source; into an array like that of `value`. The source's kind says which way.
    // Values themselves (`primal`) are summed as they are: which side of its kink an activation is on depends on them,
    // and a small step of errors there sets inner loops apart (on FIGR's DCGAN transforms took ten steps to twenty
    // times the plain loop's distance from float64, and to about its own where values are summed as they are).
    // Derivatives go through Winograd's transforms.
    void apply(const Pass& pass, Activations& a, const Source& source, Range range, const float* params,
               const float* bias, bool accumulate, float* y, int value, bool primal = false) const {
        const bool spreads = (value == output()) == transposed_;
        const Shape& shape = a.shape(value);
        const Winograd& winograd = spreads ? spread_winograd_ : gather_winograd_;
        if (!primal && winograd.suits(range.count, pass.precision)) {
            return winograd.apply(pass.threads, {source.b + range.first * source.image, source.channel, source.image},
                                  range.count, params + plan().parameters[0], bias, accumulate,
                                  {y, a.stride(value), shape.positions()},
                                  a.scratch(winograd.scratch_floats(range.count, pass.threads)));
        }
        const std::vector<Tables>& groups = spreads ? spread_ : gather_;
        const bool holes = std::any_of(groups.begin(), groups.end(), [](const Tables& t) { return t.b_tap.empty(); });
        if (holes && !accumulate) {
            for (int64_t channel = 0; channel < shape.channels; ++channel)
                std::fill_n(y + channel * a.stride(value), range.count * shape.positions(), bias ? bias[channel] : 0.f);
            accumulate = true;
        }
        const Weights weights{params + plan().parameters[0], spreads ? geometry_.taps() : geometry_.weights_of_small(),
                              spreads ? geometry_.weights_of_small() : geometry_.taps()};
        thread_local std::vector<Product> products;  // keeps its memory
        products.clear();
        for (const Tables& t : groups) {
            if (t.b_tap.empty()) continue;
            Product product{patches_of(t, source, range, spreads ? geometry_.small_channels : geometry_.large_channels),
                            t.w_tap.data(),
                            {y, a.stride(value), shape.positions(), t.y_position.data()}};
            if (one_pixel_) product.result.y_position = product.patches.b_position;
            products.push_back(product);
        }
        if (!products.empty()) multiply(pass, products, weights, shape.channels, bias, accumulate);
    }

    Patches patches_of(const Tables& t, const Source& source, Range range, int64_t channels) const {
        Patches p;
        p.b = source.b + range.first * source.image;
        p.b_channel = source.channel;
        p.b_tap = t.b_tap.data();
        p.channels = static_cast<int>(channels);
        p.taps = static_cast<int>(t.b_tap.size());
        if (one_pixel_) {  // images are adjacent, as positions are elsewhere
            p.b_position = thread_counting(range.count);
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

    // Threads share out columns, or rows where columns are few: then each reads its part of the weights only.
    static void multiply(const Pass& pass, const std::vector<Product>& products, const Weights& weights, int64_t rows,
                         const float* bias, bool accumulate) {
        const GemmKernels& kernels = gemm_kernels(pass.precision);
        const int threads = pass.threads;
        int64_t panels = 0;
        for (const Product& product : products)
            panels += (product.patches.columns() + kernels.tile_columns - 1) / kernels.tile_columns;
        const bool by_columns = panels * kernels.tile_columns >= threads * (kWidth / 2);
        const int64_t size = by_columns ? panels : rows, unit = by_columns ? 1 : kernels.tile_rows;
        const int64_t pieces = threads == 1 ? 1 : std::min<int64_t>((size + unit - 1) / unit, 4 * threads);
        const int64_t share = ((size + pieces - 1) / pieces + unit - 1) / unit * unit;
        parallel_for((size + share - 1) / share, threads, [&](int64_t piece) {
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
                pass.threads, {source.b + range.first * source.image, source.channel, source.image},
                {small, a.stride(small_value), a.shape(small_value).positions()}, range.count, gradients,
                plan().parameters[0], a.scratch(gather_winograd_.gradient_scratch_floats(range.count)));
        }
        const Patches patches = patches_of(correlate_, source, range, geometry_.large_channels);
        Result result{small, a.stride(small_value), a.shape(small_value).positions(), correlate_.y_position.data()};
        if (one_pixel_) result.y_position = patches.b_position;
        const int64_t rows = geometry_.small_channels, columns = geometry_.weights_of_small();
        const GemmKernels& kernels = gemm_kernels(pass.precision);
        // As large as a cache holds, but enough of them for the threads to share out.
        const int64_t fits = std::min(kChunk, kPackFloats / rows), share = columns / (4 * pass.threads);
        const int64_t even = std::max<int64_t>(kChunk / 3, pass.threads > 1 ? std::min(fits, share) : fits);
        const int64_t wanted = std::min(even, columns);
        const int64_t unit = kernels.tile_columns, chunk = (wanted + unit - 1) / unit * unit;
        parallel_for((columns + chunk - 1) / chunk, pass.threads, [&](int64_t index) {
            const Timed timed(Work::correlate);
            const int64_t first = index * chunk, last = std::min(columns, first + chunk);
            float* const pack = thread_scratch(kPackFloats + rows * chunk);
            float* const out = pack + kPackFloats;
            kernels.correlate(patches, result, rows, {first, last}, false, out, chunk, pack);
            gradients.take(plan().parameters[0] + first, rows, last - first, columns, out, chunk);
        });
    }

    bool transposed_, one_pixel_;
    Geometry geometry_;
    Border large_border_, small_border_;
    std::vector<Tables> gather_, spread_;
    Tables correlate_;
    Winograd gather_winograd_, spread_winograd_;
};

}  // namespace

std::unique_ptr<Operation> make_convolution(const OperationPlan& plan, const std::vector<Shape>& shapes,
                                            bool transposed) {
    return std::make_unique<Convolution>(plan, shapes, transposed);
}

}  // namespace metagan
