// Permutations, sums and concatenation.
#include <algorithm>
#include <stdexcept>

#include "cpu/dispatch.h"
#include "cpu/runtime/profile.h"
#include "linear_operation.h"

namespace metagan {
namespace {

// A permutation of the elements of an image: out[j] = in[p[j]], where j counts (channel, position).
class Permute : public LinearOperation {
  public:
    Permute(const OperationPlan& plan, const PermutePlan& settings, const std::vector<Shape>& shapes)
        : LinearOperation(plan),
          in_(shapes[static_cast<size_t>(plan.inputs.at(0))]),
          out_(shapes[static_cast<size_t>(plan.output)]),
          order_(settings.order) {
        if (in_.elements() != out_.elements() ||
            (!order_.empty() && static_cast<int64_t>(order_.size()) != in_.elements()))
            throw std::invalid_argument(plan.name + ": expected " + std::to_string(in_.elements()) +
                                        " elements of the output and of the permutation");
        for (const int64_t j : order_)
            if (j < 0 || j >= in_.elements())
                throw std::invalid_argument(plan.name + ": expected elements below " + std::to_string(in_.elements()) +
                                            ", got " + std::to_string(j));
    }

  protected:
    void map(const Pass&, Activations& a, OperationState*, int64_t, Range images) const override {
        move(a, images.count, a.x(input(), images.first), a.x(output(), images.first), true);
    }

    void transpose(const Pass&, Activations& a, OperationState*, size_t, int64_t, Range images,
                   float* x_bar) const override {
        move(a, images.count, x_bar, a.bar(output(), images.first), false);
    }

  private:
    template <class In, class Out>
    void move(Activations& a, int64_t images, In* in, Out* out, bool forward) const {
        for (int64_t j = 0; j < out_.elements(); ++j) {
            const int64_t i = order_.empty() ? j : order_[static_cast<size_t>(j)];
            auto* const inside = in + i / in_.positions() * a.stride(input()) + i % in_.positions();
            auto* const outside = out + j / out_.positions() * a.stride(output()) + j % out_.positions();
            for (int64_t image = 0; image < images; ++image) {
                if (forward)
                    outside[image * out_.positions()] = inside[image * in_.positions()];
                else
                    inside[image * in_.positions()] = outside[image * out_.positions()];
            }
        }
    }

    Shape in_, out_;
    std::vector<int64_t> order_;
};

// y = sum over inputs of factor * input, plus a constant.
class Combine : public LinearOperation {
  public:
    Combine(const OperationPlan& plan, const CombinePlan& settings, const std::vector<Shape>& shapes)
        : LinearOperation(plan),
          shape_(shapes[static_cast<size_t>(plan.output)]),
          factors_(settings.factors.begin(), settings.factors.end()),
          constant_(static_cast<float>(settings.constant)) {
        if (factors_.size() != plan.inputs.size())
            throw std::invalid_argument(plan.name + ": expected " + std::to_string(plan.inputs.size()) +
                                        " factors, got " + std::to_string(factors_.size()));
    }

    void forward(const Pass&, Activations& a, OperationState*, Range images) const override {
        const Timed timed(Work::rearrange);
        sum(a, images, constant_);
    }

  protected:
    void map(const Pass&, Activations& a, OperationState*, int64_t, Range images) const override { sum(a, images, 0); }

    void transpose(const Pass&, Activations& a, OperationState*, size_t i, int64_t, Range images,
                   float* x_bar) const override {
        for (int64_t channel = 0; channel < shape_.channels; ++channel)
            layer_kernels().scale(images.count * shape_.positions(), factors_[i], 0,
                                  a.bar(output(), images.first) + channel * a.stride(output()),
                                  x_bar + channel * a.stride(output()));
    }

  private:
    void sum(Activations& a, Range images, float constant) const {
        const int64_t size = images.count * shape_.positions();
        for (int64_t channel = 0; channel < shape_.channels; ++channel) {
            float* const y = a.x(output(), images.first) + channel * a.stride(output());
            const auto x = [&](size_t i) { return a.x(input(i), images.first) + channel * a.stride(output()); };
            layer_kernels().scale(size, factors_[0], constant, x(0), y);
            for (size_t i = 1; i < plan().inputs.size(); ++i) layer_kernels().add(size, factors_[i], x(i), y);
        }
    }

    Shape shape_;
    std::vector<float> factors_;
    float constant_;
};

// Concatenation along the channels.
class Concatenate : public LinearOperation {
  public:
    Concatenate(const OperationPlan& plan, const ConcatenatePlan&, const std::vector<Shape>& shapes)
        : LinearOperation(plan) {
        int64_t channels = 0;
        for (const int value : plan.inputs) {
            first_.push_back(channels);
            channels += shapes[static_cast<size_t>(value)].channels;
        }
        if (channels != shapes[static_cast<size_t>(plan.output)].channels)
            throw std::invalid_argument(plan.name + ": expected an output of " + std::to_string(channels) +
                                        " channels, got " +
                                        std::to_string(shapes[static_cast<size_t>(plan.output)].channels));
    }

  protected:
    void map(const Pass&, Activations& a, OperationState*, int64_t, Range images) const override {
        for (size_t i = 0; i < plan().inputs.size(); ++i)
            copy(a, i, images.count, a.x(input(i), images.first), a.x(output(), images.first), true);
    }

    void transpose(const Pass&, Activations& a, OperationState*, size_t i, int64_t, Range images,
                   float* x_bar) const override {
        copy(a, i, images.count, x_bar, a.bar(output(), images.first), false);
    }

  private:
    void copy(const Activations& a, size_t i, int64_t images, float* in, float* out, bool forward) const {
        const Shape& shape = a.shape(input(i));
        for (int64_t channel = 0; channel < shape.channels; ++channel) {
            float* const inside = in + channel * a.stride(input(i));
            float* const outside = out + (first_[i] + channel) * a.stride(output());
            std::copy_n(forward ? inside : outside, images * shape.positions(), forward ? outside : inside);
        }
    }

    std::vector<int64_t> first_;  // output channel of each input's first channel
};

}  // namespace

std::unique_ptr<Operation> PermutePlan::make(const OperationPlan& plan, const std::vector<Shape>& shapes) const {
    return std::make_unique<Permute>(plan, *this, shapes);
}

std::unique_ptr<Operation> CombinePlan::make(const OperationPlan& plan, const std::vector<Shape>& shapes) const {
    return std::make_unique<Combine>(plan, *this, shapes);
}

std::unique_ptr<Operation> ConcatenatePlan::make(const OperationPlan& plan, const std::vector<Shape>& shapes) const {
    return std::make_unique<Concatenate>(plan, *this, shapes);
}

}  // namespace metagan
