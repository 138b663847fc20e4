// Max pooling, with the argmax positions of the forward pass.
#include <algorithm>
#include <limits>

#include "linear_operation.h"

namespace metagan {
namespace {

// Position of each output's maximum in the input.
struct ArgMax : OperationState {
    explicit ArgMax(size_t size) : positions(size) {}
    std::vector<int32_t> positions;  // laid out as the output: [channels][images][positions]
};

class MaxPool : public LinearOperation {
  public:
    MaxPool(const OperationPlan& plan, const MaxPoolPlan& settings, const std::vector<Shape>& shapes)
        : LinearOperation(plan),
          in_(shapes[static_cast<size_t>(plan.inputs.at(0))]),
          out_(shapes[static_cast<size_t>(plan.output)]),
          settings_(settings) {}

    std::unique_ptr<OperationState> state(const Activations& a) const override {
        return std::make_unique<ArgMax>(static_cast<size_t>(out_.elements() * a.images()));
    }

    int64_t state_bytes(int64_t images, int64_t, Cotangents, Precision) const override {
        return out_.elements() * images * static_cast<int64_t>(sizeof(int32_t));
    }

    void forward(const Pass& pass, Activations& a, OperationState* state, Range images) const override {
        for (int64_t channel = 0; channel < out_.channels; ++channel)
            for (int64_t image = images.first; image < images.end(); ++image)
                for (int64_t y = 0; y < out_.height; ++y)
                    for (int64_t x = 0; x < out_.width; ++x)
                        argmax(a, state, channel, image)[y * out_.width + x] =
                            static_cast<int32_t>(largest(a.x(input(), image) + channel * a.stride(input()), y, x));
        map(pass, a, state, images.first, images);
    }

  protected:
    void map(const Pass&, Activations& a, OperationState* state, int64_t primal, Range images) const override {
        for (int64_t channel = 0; channel < out_.channels; ++channel)
            for (int64_t i = 0; i < images.count; ++i) {
                const int32_t* const at = argmax(a, state, channel, primal + i);
                const float* const x = a.x(input(), images.first + i) + channel * a.stride(input());
                float* const y = a.x(output(), images.first + i) + channel * a.stride(output());
                for (int64_t o = 0; o < out_.positions(); ++o) y[o] = x[at[o]];
            }
    }

    void transpose(const Pass&, Activations& a, OperationState* state, size_t, int64_t primal, Range images,
                   float* x_bar) const override {
        for (int64_t channel = 0; channel < out_.channels; ++channel)
            for (int64_t i = 0; i < images.count; ++i) {
                const int32_t* const at = argmax(a, state, channel, primal + i);
                const float* const y = a.bar(output(), images.first + i) + channel * a.stride(output());
                float* const x = x_bar + channel * a.stride(input()) + i * in_.positions();
                std::fill_n(x, in_.positions(), 0.f);
                for (int64_t o = 0; o < out_.positions(); ++o) x[at[o]] += y[o];
            }
    }

  private:
    int32_t* argmax(const Activations& a, OperationState* state, int64_t channel, int64_t image) const {
        return static_cast<ArgMax*>(state)->positions.data() + (channel * a.images() + image) * out_.positions();
    }

    // Position of the window's maximum: the first of equal ones, or the first NaN, as in torch.
    int64_t largest(const float* x, int64_t row, int64_t column) const {
        float best = -std::numeric_limits<float>::infinity();
        int64_t at = -1;
        const Window &down = settings_.y, &across = settings_.x;
        for (int64_t k = 0; k < down.kernel; ++k)
            for (int64_t l = 0; l < across.kernel; ++l) {
                const int64_t i = row * down.stride - down.padding + k * down.dilation;
                const int64_t j = column * across.stride - across.padding + l * across.dilation;
                if (i < 0 || i >= in_.height || j < 0 || j >= in_.width) continue;
                const float value = x[i * in_.width + j];
                if (at >= 0 && !(value > best) && value == value) continue;
                best = value;
                at = i * in_.width + j;
                if (value != value) return at;
            }
        return at;
    }

    Shape in_, out_;
    MaxPoolPlan settings_;
};

}  // namespace

std::unique_ptr<Operation> MaxPoolPlan::make(const OperationPlan& plan, const std::vector<Shape>& shapes) const {
    return std::make_unique<MaxPool>(plan, *this, shapes);
}

}  // namespace metagan
