// Element-wise activations, and PReLU with its slopes.
#include <algorithm>
#include <stdexcept>

#include "cpu/dispatch.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/profile.h"
#include "engine/network.h"
#include "engine/scratch.h"

namespace metagan {
namespace {

class ActivationOperation : public Operation {
  public:
    ActivationOperation(const OperationPlan& plan, const ActivationPlan& settings, const std::vector<Shape>& shapes)
        : Operation(plan),
          shape_(shapes[static_cast<size_t>(plan.output)]),
          slope_(settings.slope),
          slopes_(settings.slopes) {
        const std::vector<double>& constants = settings.constants;
        options_.function = settings.function;
        if (!constants.empty()) options_.a = static_cast<float>(constants[0]);
        if (constants.size() > 1) options_.b = static_cast<float>(constants[1]);
        if (is_prelu() && (!slope_.exists() || (slopes_ != 1 && slopes_ != shape_.channels)))
            throw std::invalid_argument(plan.name + ": expected a slope, 1 or " + std::to_string(shape_.channels) +
                                        " numbers, got " + std::to_string(slope_.exists() ? slopes_ : 0));
    }

    void forward(const Pass& pass, Activations& a, OperationState*, Range images) const override {
        for_each_part(pass, a, images.count, [&](const ActivationOptions& options, Rows rows, int64_t at) {
            layer_kernels().activation(options, rows, a.x(input(), images.first) + at,
                                       a.x(output(), images.first) + at);
        });
    }

    void tangent(const Pass& pass, Activations& a, OperationState*, Range primal, Range tangent) const override {
        for_each_part(pass, a, primal.count, [&](const ActivationOptions& options, Rows rows, int64_t at) {
            layer_kernels().activation_tangent(options, rows, a.x(input(), primal.first) + at,
                                               a.x(input(), tangent.first) + at, a.x(output(), tangent.first) + at);
        });
    }

    void reverse(const Pass& pass, Activations& a, OperationState*, const Reverse& r, float* const* x_bar,
                 float* const* x_tilde) const override {
        if (x_bar[0]) {
            const int64_t before = r.primal.count ? r.primal.first - r.images.first : r.images.count;
            plain(pass, a, r, 0, before, x_bar[0]);
            if (r.primal.count) {
                const float* const x_dot = a.x(input(), r.tangent.first);
                const float* const y_tilde = a.bar(output(), r.tangent.first);
                for_each_part(pass, a, r.primal.count, [&](const ActivationOptions& options, Rows rows, int64_t at) {
                    layer_kernels().activation_reverse(options, rows, a.x(input(), r.primal.first) + at, x_dot + at,
                                                       a.bar(output(), r.primal.first) + at, y_tilde + at,
                                                       x_bar[0] + before * shape_.positions() + at,
                                                       x_tilde[0] ? x_tilde[0] + at : nullptr);
                });
                plain(pass, a, r, before + r.primal.count, r.images.count, x_bar[0]);
            }
        }
        if (r.gradients && is_prelu()) slope_gradient(pass, a, r);
    }

  private:
    bool is_prelu() const { return options_.function == Activation::prelu; }

    // Reverse pass of images [first, last) of r.images, which have no tangent.
    void plain(const Pass& pass, Activations& a, const Reverse& r, int64_t first, int64_t last, float* x_bar) const {
        if (first >= last) return;
        Pass without = pass;
        without.params_dot = nullptr;
        const int64_t offset = first * shape_.positions();
        for_each_part(without, a, last - first, [&](const ActivationOptions& options, Rows rows, int64_t at) {
            layer_kernels().activation_reverse(options, rows, a.x(input(), r.x_first) + offset + at, nullptr,
                                               a.bar(output(), r.images.first) + offset + at, nullptr,
                                               x_bar + offset + at, nullptr);
        });
    }

    // Calls body(options, rows, offset) for parts of the channels, on several threads.
    template <class Body>
    void for_each_part(const Pass& pass, const Activations& a, int64_t images, const Body& body) const {
        const int64_t stride = a.stride(output()), length = images * shape_.positions();
        parallel_parts(shape_.channels, shape_.channels * length, pass.threads, [&](int64_t first, int64_t last) {
            const Timed timed(Work::activation);
            ActivationOptions options = options_;
            if (is_prelu()) {
                options.slope_stride = slopes_ == 1 ? 0 : 1;
                const ParameterOffset at{slope_.value + first * options.slope_stride};
                options.slopes = at.in(pass.params);
                options.slopes_dot = at.in(pass.params_dot);
            }
            body(options, Rows{last - first, length, stride}, first * stride);
        });
    }

    void slope_gradient(const Pass& pass, Activations& a, const Reverse& r) const {
        const Timed timed(Work::activation);
        float* const gradient = thread_scratch(shape_.channels);
        std::fill_n(gradient, shape_.channels, 0.f);
        const int64_t stride = a.stride(output());
        const auto add = [&](int64_t first, int64_t last, bool paired) {
            if (first >= last) return;
            const int64_t i = first - r.primal.first, length = (last - first) * shape_.positions();
            const float *const x = a.x(input(), first), *const y_bar = a.bar(output(), first);
            const float* const x_dot = paired ? a.x(input(), r.tangent.first + i) : nullptr;
            const float* const y_tilde = paired ? a.bar(output(), r.tangent.first + i) : nullptr;
            parallel_parts(shape_.channels, shape_.channels * length, pass.threads, [&](int64_t begin, int64_t end) {
                const Timed timed(Work::activation);
                const int64_t at = begin * stride;
                layer_kernels().prelu_slopes({end - begin, length, stride}, x + at, paired ? x_dot + at : nullptr,
                                             y_bar + at, paired ? y_tilde + at : nullptr, gradient + begin);
            });
        };
        if (r.primal.count) {
            add(r.images.first, r.primal.first, false);
            add(r.primal.first, r.primal.end(), true);
            add(r.primal.end(), r.images.end(), false);
        } else {
            add(r.images.first, r.images.end(), false);
        }
        if (slopes_ == 1) {
            double sum = 0;
            for (int64_t channel = 0; channel < shape_.channels; ++channel)
                sum += static_cast<double>(gradient[channel]);
            gradient[0] = static_cast<float>(sum);
        }
        r.gradients->take(slope_.value, 1, slopes_, slopes_, gradient, slopes_);
    }

    Shape shape_;
    ActivationOptions options_;
    ParameterOffset slope_;
    int64_t slopes_;
};

}  // namespace

std::unique_ptr<Operation> ActivationPlan::make(const OperationPlan& plan, const std::vector<Shape>& shapes) const {
    return std::make_unique<ActivationOperation>(plan, *this, shapes);
}

}  // namespace metagan
