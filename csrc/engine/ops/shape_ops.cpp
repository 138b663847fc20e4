// Operations without parameters: resampling, permutation, max pooling, sums and concatenation. All are linear, max
// pooling for fixed argmax positions, so that the tangent pass maps tangents as the forward pass maps images.
#include <algorithm>
#include <limits>
#include <stdexcept>

#include "cpu/dispatch.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/profile.h"
#include "operations.h"

namespace metagan {
namespace {

// An operation that maps each image linearly; max pooling's map depends on the primal image.
class LinearOperation : public Operation {
  public:
    using Operation::Operation;

    bool rereads(size_t) const override { return false; }

    void forward(const Pass& pass, Activations& a, OperationState* state, Range images) const override {
        const Timed timed(Work::rearrange);
        map(pass, a, state, images.first, images);
    }

    void tangent(const Pass& pass, Activations& a, OperationState* state, Range primal, Range tangent) const override {
        const Timed timed(Work::rearrange);
        map(pass, a, state, primal.first, tangent);
    }

    void reverse(const Pass& pass, Activations& a, OperationState* state, const Reverse& r, float* const* x_bar,
                 float* const* x_tilde) const override {
        const Timed timed(Work::rearrange);
        for (size_t i = 0; i < plan().inputs.size(); ++i) {
            if (x_bar[i]) transpose(pass, a, state, i, r.x_first, r.images, x_bar[i]);
            if (x_tilde[i]) transpose(pass, a, state, i, r.primal.first, r.tangent, x_tilde[i]);
        }
    }

  protected:
    // `primal`: first of the images that determine the map (MaxPool), whose tangents or values `images` are.
    virtual void map(const Pass&, Activations&, OperationState*, int64_t primal, Range images) const = 0;
    virtual void transpose(const Pass&, Activations&, OperationState*, size_t i, int64_t primal, Range images,
                           float* x_bar) const = 0;
};

// A sparse linear map of positions, the same for every channel: average pooling, interpolation, padding.
class Resample : public LinearOperation {
  public:
    Resample(const OperationPlan& plan, const std::vector<Shape>& shapes)
        : LinearOperation(plan),
          in_(shapes[static_cast<size_t>(plan.inputs.at(0))]),
          out_(shapes[static_cast<size_t>(plan.output)]) {
        const auto outputs = static_cast<size_t>(out_.positions());
        if (plan.integers.size() < outputs + 1 || plan.integers.size() != outputs + 1 + plan.numbers.size())
            throw std::invalid_argument(plan.name + ": expected " + std::to_string(outputs + 1) +
                                        " offsets and one column for each weight");
        offsets_.assign(plan.integers.begin(), plan.integers.begin() + static_cast<int64_t>(outputs) + 1);
        columns_.assign(plan.integers.begin() + static_cast<int64_t>(outputs) + 1, plan.integers.end());
        weights_.assign(plan.numbers.begin(), plan.numbers.end());
        for (const int64_t column : columns_)
            if (column < 0 || column >= in_.positions())
                throw std::invalid_argument(plan.name + ": expected columns below " + std::to_string(in_.positions()) +
                                            ", got " + std::to_string(column));
        find_blocks();
    }

  protected:
    void map(const Pass& pass, Activations& a, OperationState*, int64_t, Range images) const override {
        const float* const x = a.x(input(), images.first);
        float* const y = a.x(output(), images.first);
        for_each_channel(pass, [&](int64_t channel) {
            const float* const from = x + channel * a.stride(input());
            float* const to = y + channel * a.stride(output());
            if (pools_) {
                layer_kernels().sum_blocks(images.count, out_.height, out_.width, block_y_, block_x_, weights_[0], from,
                                           to);
            } else if (spreads_) {
                layer_kernels().spread_blocks(images.count, in_.height, in_.width, block_y_, block_x_, weights_[0],
                                              from, to);
            } else {
                for (int64_t image = 0; image < images.count; ++image)
                    for (int64_t o = 0; o < out_.positions(); ++o) {
                        float sum = 0;
                        for (int64_t k = offsets_[static_cast<size_t>(o)]; k < offsets_[static_cast<size_t>(o) + 1];
                             ++k)
                            sum += weights_[static_cast<size_t>(k)] *
                                   from[image * in_.positions() + columns_[static_cast<size_t>(k)]];
                        to[image * out_.positions() + o] = sum;
                    }
            }
        });
    }

    void transpose(const Pass& pass, Activations& a, OperationState*, size_t, int64_t, Range images,
                   float* x_bar) const override {
        const float* const y_bar = a.bar(output(), images.first);
        for_each_channel(pass, [&](int64_t channel) {
            const float* const from = y_bar + channel * a.stride(output());
            float* const to = x_bar + channel * a.stride(input());
            if (pools_) {
                layer_kernels().spread_blocks(images.count, out_.height, out_.width, block_y_, block_x_, weights_[0],
                                              from, to);
            } else if (spreads_) {
                layer_kernels().sum_blocks(images.count, in_.height, in_.width, block_y_, block_x_, weights_[0], from,
                                           to);
            } else {
                std::fill_n(to, images.count * in_.positions(), 0.f);
                for (int64_t image = 0; image < images.count; ++image)
                    for (int64_t o = 0; o < out_.positions(); ++o)
                        for (int64_t k = offsets_[static_cast<size_t>(o)]; k < offsets_[static_cast<size_t>(o) + 1];
                             ++k)
                            to[image * in_.positions() + columns_[static_cast<size_t>(k)]] +=
                                weights_[static_cast<size_t>(k)] * from[image * out_.positions() + o];
            }
        });
    }

  private:
    template <class Body>
    void for_each_channel(const Pass& pass, const Body& body) const {
        const int64_t parts = std::min<int64_t>(in_.channels, pass.threads == 1 ? 1 : 4 * pass.threads);
        parallel_for(parts, pass.threads, [&](int64_t part) {
            const Timed timed(Work::rearrange);
            for (int64_t channel = in_.channels * part / parts; channel < in_.channels * (part + 1) / parts; ++channel)
                body(channel);
        });
    }

    // Detects averages over blocks (average pooling) and their transpose, copies to blocks (nearest upsampling).
    void find_blocks() {
        const auto blocks = [&](const Shape& large, const Shape& small) {
            if (small.positions() == 0 || large.height % small.height || large.width % small.width) return false;
            block_y_ = static_cast<int>(large.height / small.height);
            block_x_ = static_cast<int>(large.width / small.width);
            return std::all_of(weights_.begin(), weights_.end(), [&](float w) { return w == weights_[0]; });
        };
        const auto small_of = [&](const Shape& large, const Shape& small, int64_t position) {
            return position / large.width / block_y_ * small.width + position % large.width / block_x_;
        };
        if (weights_.empty()) return;
        if (blocks(in_, out_) && static_cast<int64_t>(columns_.size()) == in_.positions()) {
            pools_ = true;
            std::vector<bool> seen(columns_.size());
            for (int64_t o = 0; o < out_.positions(); ++o)
                for (int64_t k = offsets_[static_cast<size_t>(o)]; k < offsets_[static_cast<size_t>(o) + 1]; ++k) {
                    const int64_t column = columns_[static_cast<size_t>(k)];
                    pools_ = pools_ && small_of(in_, out_, column) == o && !seen[static_cast<size_t>(column)];
                    seen[static_cast<size_t>(column)] = true;
                }
        } else if (blocks(out_, in_) && static_cast<int64_t>(columns_.size()) == out_.positions()) {
            spreads_ = true;
            for (int64_t o = 0; o < out_.positions(); ++o)
                spreads_ = spreads_ && offsets_[static_cast<size_t>(o)] == o &&
                           columns_[static_cast<size_t>(o)] == small_of(out_, in_, o);
        }
    }

    Shape in_, out_;
    std::vector<int64_t> offsets_, columns_;
    std::vector<float> weights_;
    int block_y_ = 1, block_x_ = 1;
    bool pools_ = false, spreads_ = false;
};

// A permutation of the elements of an image: out[j] = in[p[j]], where j counts (channel, position).
class Permute : public LinearOperation {
  public:
    Permute(const OperationPlan& plan, const std::vector<Shape>& shapes)
        : LinearOperation(plan),
          in_(shapes[static_cast<size_t>(plan.inputs.at(0))]),
          out_(shapes[static_cast<size_t>(plan.output)]),
          order_(plan.integers) {
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

// Position of each output's maximum in the input.
struct ArgMax : OperationState {
    explicit ArgMax(size_t size) : positions(size) {}
    std::vector<int32_t> positions;  // laid out as the output: [channels][images][positions]
};

class MaxPool : public LinearOperation {
  public:
    MaxPool(const OperationPlan& plan, const std::vector<Shape>& shapes)
        : LinearOperation(plan),
          in_(shapes[static_cast<size_t>(plan.inputs.at(0))]),
          out_(shapes[static_cast<size_t>(plan.output)]),
          v_(plan.integers) {
        if (v_.size() != 8)
            throw std::invalid_argument(plan.name + ": expected 8 integers, got " + std::to_string(v_.size()));
    }

    std::unique_ptr<OperationState> state(const Activations& a) const override {
        return std::make_unique<ArgMax>(static_cast<size_t>(out_.elements() * a.images()));
    }

    int64_t state_bytes(int64_t images, Cotangents, Precision) const override {
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
        for (int64_t k = 0; k < v_[0]; ++k)
            for (int64_t l = 0; l < v_[1]; ++l) {
                const int64_t i = row * v_[2] - v_[4] + k * v_[6], j = column * v_[3] - v_[5] + l * v_[7];
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
    std::vector<int64_t> v_;
};

// y = sum over inputs of coefficient * input, plus a constant.
class Combine : public LinearOperation {
  public:
    Combine(const OperationPlan& plan, const std::vector<Shape>& shapes)
        : LinearOperation(plan), shape_(shapes[static_cast<size_t>(plan.output)]) {
        if (plan.numbers.size() != plan.inputs.size() + 1)
            throw std::invalid_argument(plan.name + ": expected " + std::to_string(plan.inputs.size()) +
                                        " coefficients and a constant, got " + std::to_string(plan.numbers.size()) +
                                        " numbers");
    }

    void forward(const Pass&, Activations& a, OperationState*, Range images) const override {
        const Timed timed(Work::rearrange);
        sum(a, images, static_cast<float>(plan().numbers.back()));
    }

  protected:
    void map(const Pass&, Activations& a, OperationState*, int64_t, Range images) const override { sum(a, images, 0); }

    void transpose(const Pass&, Activations& a, OperationState*, size_t i, int64_t, Range images,
                   float* x_bar) const override {
        for (int64_t channel = 0; channel < shape_.channels; ++channel)
            layer_kernels().scale(images.count * shape_.positions(), coefficient(i), 0,
                                  a.bar(output(), images.first) + channel * a.stride(output()),
                                  x_bar + channel * a.stride(output()));
    }

  private:
    float coefficient(size_t i) const { return static_cast<float>(plan().numbers[i]); }

    void sum(Activations& a, Range images, float constant) const {
        const int64_t size = images.count * shape_.positions();
        for (int64_t channel = 0; channel < shape_.channels; ++channel) {
            float* const y = a.x(output(), images.first) + channel * a.stride(output());
            const auto x = [&](size_t i) { return a.x(input(i), images.first) + channel * a.stride(output()); };
            layer_kernels().scale(size, coefficient(0), constant, x(0), y);
            for (size_t i = 1; i < plan().inputs.size(); ++i) layer_kernels().add(size, coefficient(i), x(i), y);
        }
    }

    Shape shape_;
};

// Concatenation along the channels.
class Concatenate : public LinearOperation {
  public:
    Concatenate(const OperationPlan& plan, const std::vector<Shape>& shapes) : LinearOperation(plan) {
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

std::unique_ptr<Operation> make_resample(const OperationPlan& plan, const std::vector<Shape>& shapes) {
    return std::make_unique<Resample>(plan, shapes);
}

std::unique_ptr<Operation> make_permute(const OperationPlan& plan, const std::vector<Shape>& shapes) {
    return std::make_unique<Permute>(plan, shapes);
}

std::unique_ptr<Operation> make_max_pool(const OperationPlan& plan, const std::vector<Shape>& shapes) {
    return std::make_unique<MaxPool>(plan, shapes);
}

std::unique_ptr<Operation> make_combine(const OperationPlan& plan, const std::vector<Shape>& shapes) {
    return std::make_unique<Combine>(plan, shapes);
}

std::unique_ptr<Operation> make_concatenate(const OperationPlan& plan, const std::vector<Shape>& shapes) {
    return std::make_unique<Concatenate>(plan, shapes);
}

}  // namespace metagan
