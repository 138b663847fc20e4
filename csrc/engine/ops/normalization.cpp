// Layer, instance, group and batch norm: one operation over sets of elements that share a mean and a variance.
#include <algorithm>
#include <stdexcept>

#include "cpu/dispatch.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/profile.h"
#include "engine/network.h"
#include "engine/scratch.h"

namespace metagan {
namespace {

// Statistics of each set, from the forward and tangent passes to the reverse pass.
struct Statistics : OperationState {
    explicit Statistics(size_t size) : sets(size) {}
    std::vector<NormStatistics> sets;  // [image][channel group][position group]; batch norm copies them to each image
};

class Normalization : public Operation {
  public:
    Normalization(const OperationPlan& plan, const NormalizationPlan& settings, const std::vector<Shape>& shapes)
        : Operation(plan),
          shape_(shapes[static_cast<size_t>(plan.output)]),
          channels_(settings.channels_a_set),
          positions_(settings.positions_a_set),
          numel_(settings.numel),
          across_images_(settings.across_images),
          per_element_(settings.granularity == Granularity::element),
          eps_(static_cast<float>(settings.eps)),
          weight_(settings.weight),
          bias_(settings.bias) {
        if (channels_ < 1 || positions_ < 1 || shape_.channels % channels_ || shape_.positions() % positions_)
            throw std::invalid_argument(plan.name + ": expected sets that divide channels and positions");
        if (per_element_ && has_parameters() && numel_ < 1)
            throw std::invalid_argument(plan.name + ": expected the size of its parameters, got " +
                                        std::to_string(numel_));
        channel_groups_ = shape_.channels / channels_;
        position_groups_ = shape_.positions() / positions_;
    }

    std::unique_ptr<OperationState> state(const Activations& a) const override {
        return std::make_unique<Statistics>(static_cast<size_t>(a.images() * sets()));
    }

    int64_t state_bytes(int64_t images, int64_t, Cotangents, Precision) const override {
        return images * sets() * static_cast<int64_t>(sizeof(NormStatistics));
    }

    bool mixes_images() const override { return across_images_; }

    void forward(const Pass& pass, Activations& a, OperationState* state, Range images) const override {
        for_each_set(pass, a, images,
                     [&](int64_t image, int64_t images_of_set, int64_t group, const NormSet& set, int64_t at) {
                         NormStatistics* const s = statistics(state, image, group);
                         layer_kernels().norm_statistics(set, a.x(input(), image) + at, eps_, s);
                         layer_kernels().norm(set, *s, a.x(input(), image) + at, a.x(output(), image) + at);
                         repeat(state, image, images_of_set, group);
                     });
    }

    void tangent(const Pass& pass, Activations& a, OperationState* state, Range primal, Range tangent) const override {
        for_each_set(pass, a, primal,
                     [&](int64_t image, int64_t images_of_set, int64_t group, const NormSet& set, int64_t at) {
                         const int64_t dot = image - primal.first + tangent.first;
                         layer_kernels().norm_tangent(set, statistics(state, image, group), a.x(input(), image) + at,
                                                      a.x(input(), dot) + at, a.x(output(), dot) + at);
                         repeat(state, image, images_of_set, group);
                     });
    }

    void reverse(const Pass& pass, Activations& a, OperationState* state, const Reverse& r, float* const* x_bar,
                 float* const* x_tilde) const override {
        if (x_bar[0]) {
            const Range values{r.x_first, r.images.count};
            for_each_set(pass, a, values, [&](int64_t image, int64_t, int64_t group, const NormSet& set, int64_t at) {
                const int64_t i = image - r.x_first;  // index of the cotangent
                const int64_t position = i * shape_.positions() + at;
                const int64_t pair = tangent_of(r, image);
                const float* const x_dot = pair < 0 ? nullptr : a.x(input(), pair) + at;
                const float* const y_tilde = pair < 0 ? nullptr : a.bar(output(), pair) + at;
                float* const tilde =
                    pair < 0 || !x_tilde[0] ? nullptr : x_tilde[0] + (pair - r.tangent.first) * shape_.positions() + at;
                layer_kernels().norm_reverse(set, *statistics(state, image, group), a.x(input(), image) + at, x_dot,
                                             a.bar(output(), r.images.first) + position, y_tilde, x_bar[0] + position,
                                             tilde);
            });
        }
        if (r.gradients && has_parameters()) parameter_gradient(pass, a, state, r);
    }

  private:
    bool has_parameters() const { return weight_.exists() || bias_.exists(); }
    int64_t sets() const { return channel_groups_ * position_groups_; }

    NormStatistics* statistics(OperationState* state, int64_t image, int64_t group) const {
        return &static_cast<Statistics*>(state)->sets[static_cast<size_t>(image * sets() + group)];
    }

    void repeat(OperationState* state, int64_t image, int64_t images_of_set, int64_t group) const {
        for (int64_t i = 1; i < images_of_set; ++i)
            *statistics(state, image + i, group) = *statistics(state, image, group);
    }

    // Index of an image's tangent, or -1.
    static int64_t tangent_of(const Reverse& r, int64_t image) {
        const int64_t i = image - r.primal.first;
        return i < 0 || i >= r.primal.count ? -1 : r.tangent.first + i;
    }

    int64_t parameter_offset(int64_t channel, int64_t position) const {
        return per_element_ ? (channel * shape_.positions() + position) % numel_ : channel;
    }

    NormSet set(const Pass& pass, const Activations& a, int64_t images, int64_t channel, int64_t position) const {
        NormSet set{};
        set.channels = channels_;
        set.images = images;
        set.length = positions_;
        set.channel_stride = a.stride(output());
        set.image_stride = shape_.positions();
        if (!has_parameters()) return set;
        set.weight_channel = per_element_ ? shape_.positions() : 1;
        set.weight_step = per_element_ ? 1 : 0;
        const int64_t offset = parameter_offset(channel, position);
        const auto at = [&](const ParameterOffset& parameter, const float* params) -> const float* {
            const float* const first = parameter.in(params);
            return first ? first + offset : nullptr;
        };
        set.weight = at(weight_, pass.params);
        set.bias = at(bias_, pass.params);
        set.weight_dot = at(weight_, pass.params_dot);
        set.bias_dot = at(bias_, pass.params_dot);
        return set;
    }

    // For each set calls body(first image, number of images, group, set, offset of its first element in the image).
    template <class Body>
    void for_each_set(const Pass& pass, const Activations& a, Range images, const Body& body) const {
        if (!across_images_) {
            parallel_for(images.count * sets(), pass.threads, [&](int64_t index) {
                const Timed timed(Work::normalization);
                one_set(pass, a, images.first + index / sets(), 1, index % sets(), body);
            });
            return;
        }
        for (const Range& batch : *pass.batches) {
            if (batch.first < images.first || batch.end() > images.end()) continue;
            parallel_for(sets(), pass.threads, [&](int64_t group) {
                const Timed timed(Work::normalization);
                one_set(pass, a, batch.first, batch.count, group, body);
            });
        }
    }

    template <class Body>
    void one_set(const Pass& pass, const Activations& a, int64_t image, int64_t images, int64_t group,
                 const Body& body) const {
        const int64_t channel = group / position_groups_ * channels_, position = group % position_groups_ * positions_;
        body(image, images, group, set(pass, a, images, channel, position), channel * a.stride(output()) + position);
    }

    // Divides channels among threads, unless they share parameters.
    void parameter_gradient(const Pass& pass, Activations& a, OperationState* state, const Reverse& r) const {
        const int64_t own = per_element_ ? shape_.positions() : 1;  // parameters per channel
        const bool shared = per_element_ && numel_ < shape_.channels * own;
        const int64_t numbers = r.images.count * shape_.elements();
        parallel_parts(shared ? 1 : shape_.channels, numbers, pass.threads, [&](int64_t first, int64_t last) {
            const Timed timed(Work::normalization);
            if (shared) return channels_gradient(a, state, r, {0, shape_.channels}, 0, numel_);
            channels_gradient(a, state, r, {first, last - first}, first * own, (last - first) * own);
        });
    }

    // Gradient of parameters [start, start + size), from these channels.
    void channels_gradient(Activations& a, OperationState* state, const Reverse& r, Range channels, int64_t start,
                           int64_t size) const {
        float* const gradient = thread_scratch(2 * size);
        std::fill_n(gradient, 2 * size, 0.f);
        for (int64_t channel = channels.first; channel < channels.end(); ++channel)
            for (int64_t image = r.images.first; image < r.images.end(); ++image)
                for (int64_t position = 0; position < shape_.positions(); position += positions_) {
                    const int64_t at = channel * a.stride(output()) + position;
                    const int64_t group = channel / channels_ * position_groups_ + position / positions_;
                    const int64_t offset = parameter_offset(channel, position) - start;
                    const int64_t pair = tangent_of(r, image);
                    layer_kernels().norm_parameters(
                        positions_, per_element_ ? 1 : 0, *statistics(state, image, group), a.x(input(), image) + at,
                        pair < 0 ? nullptr : a.x(input(), pair) + at, a.bar(output(), image) + at,
                        pair < 0 ? nullptr : a.bar(output(), pair) + at, weight_.exists() ? gradient + offset : nullptr,
                        bias_.exists() ? gradient + size + offset : nullptr);
                }
        if (weight_.exists()) r.gradients->take(weight_.value + start, 1, size, size, gradient, size);
        if (bias_.exists()) r.gradients->take(bias_.value + start, 1, size, size, gradient + size, size);
    }

    Shape shape_;
    int64_t channels_, positions_, numel_, channel_groups_ = 0, position_groups_ = 0;
    bool across_images_, per_element_;
    float eps_;
    ParameterOffset weight_, bias_;
};

}  // namespace

std::unique_ptr<Operation> NormalizationPlan::make(const OperationPlan& plan, const std::vector<Shape>& shapes) const {
    return std::make_unique<Normalization>(plan, *this, shapes);
}

}  // namespace metagan
