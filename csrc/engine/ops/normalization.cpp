// Layer, instance, group and batch norm: one operation over sets of elements that share a mean and a variance.
#include <algorithm>
#include <stdexcept>

#include "cpu/dispatch.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/profile.h"
#include "engine/scratch.h"
#include "operations.h"

namespace metagan {
namespace {

// Statistics of each set, from the forward and tangent passes to the reverse pass.
struct Statistics : OperationState {
    explicit Statistics(size_t size) : sets(size) {}
    std::vector<NormStatistics> sets;  // [image][channel group][position group]; batch norm copies them to each image
};

class Normalization : public Operation {
  public:
    Normalization(const OperationPlan& plan, const std::vector<Shape>& shapes)
        : Operation(plan), shape_(shapes[static_cast<size_t>(plan.output)]) {
        if (plan.integers.size() != 5 || plan.numbers.size() != 1)
            throw std::invalid_argument(plan.name + ": expected 5 integers and 1 number, got " +
                                        std::to_string(plan.integers.size()) + " and " +
                                        std::to_string(plan.numbers.size()));
        channels_ = plan.integers[0];
        positions_ = plan.integers[1];
        across_images_ = plan.integers[2] != 0;
        affine_ = static_cast<Affine>(plan.integers[3]);
        numel_ = plan.integers[4];
        if (channels_ < 1 || positions_ < 1 || shape_.channels % channels_ || shape_.positions() % positions_)
            throw std::invalid_argument(plan.name + ": expected sets that divide channels and positions");
        channel_groups_ = shape_.channels / channels_;
        position_groups_ = shape_.positions() / positions_;
    }

    std::unique_ptr<OperationState> state(const Activations& a) const override {
        return std::make_unique<Statistics>(static_cast<size_t>(a.images() * sets()));
    }

    int64_t state_bytes(int64_t images, Cotangents, Precision) const override {
        return images * sets() * static_cast<int64_t>(sizeof(NormStatistics));
    }

    bool mixes_images() const override { return across_images_; }

    void forward(const Pass& pass, Activations& a, OperationState* state, Range images) const override {
        const float eps = static_cast<float>(plan().numbers[0]);
        for_each_set(pass, a, images,
                     [&](int64_t image, int64_t images_of_set, int64_t group, const NormSet& set, int64_t at) {
                         NormStatistics* const s = statistics(state, image, group);
                         layer_kernels().norm_statistics(set, a.x(input(), image) + at, eps, s);
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
        if (r.gradients && affine_ != Affine::none) parameter_gradient(pass, a, state, r);
    }

  private:
    enum class Affine { none, per_channel, per_element };

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
        return affine_ == Affine::per_channel ? channel : (channel * shape_.positions() + position) % numel_;
    }

    NormSet set(const Pass& pass, const Activations& a, int64_t images, int64_t channel, int64_t position) const {
        NormSet set{};
        set.channels = channels_;
        set.images = images;
        set.length = positions_;
        set.channel_stride = a.stride(output());
        set.image_stride = shape_.positions();
        if (affine_ == Affine::none) return set;
        set.weight_channel = affine_ == Affine::per_channel ? 1 : shape_.positions();
        set.weight_step = affine_ == Affine::per_channel ? 0 : 1;
        const auto at = [&](const float* params, size_t i) -> const float* {
            const int64_t offset = plan().parameters[i];
            return params && offset >= 0 ? params + offset + parameter_offset(channel, position) : nullptr;
        };
        set.weight = at(pass.params, 0);
        set.bias = at(pass.params, 1);
        set.weight_dot = at(pass.params_dot, 0);
        set.bias_dot = at(pass.params_dot, 1);
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
        const int64_t own = affine_ == Affine::per_channel ? 1 : shape_.positions();  // parameters per channel
        const bool shared = affine_ == Affine::per_element && numel_ < shape_.channels * own;
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
        const int64_t weight = plan().parameters[0], bias = plan().parameters[1];
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
                        positions_, affine_ == Affine::per_channel ? 0 : 1, *statistics(state, image, group),
                        a.x(input(), image) + at, pair < 0 ? nullptr : a.x(input(), pair) + at,
                        a.bar(output(), image) + at, pair < 0 ? nullptr : a.bar(output(), pair) + at,
                        weight < 0 ? nullptr : gradient + offset, bias < 0 ? nullptr : gradient + size + offset);
                }
        if (weight >= 0) r.gradients->take(weight + start, 1, size, size, gradient, size);
        if (bias >= 0) r.gradients->take(bias + start, 1, size, size, gradient + size, size);
    }

    Shape shape_;
    int64_t channels_, positions_, channel_groups_, position_groups_, numel_;
    bool across_images_;
    Affine affine_;
};

}  // namespace

std::unique_ptr<Operation> make_normalization(const OperationPlan& plan, const std::vector<Shape>& shapes) {
    return std::make_unique<Normalization>(plan, shapes);
}

}  // namespace metagan
