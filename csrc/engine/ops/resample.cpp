// Average pooling, interpolation and padding.
#include <algorithm>
#include <stdexcept>

#include "cpu/dispatch.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/profile.h"
#include "linear_operation.h"

namespace metagan {
namespace {

// A sparse linear map of positions, the same for every channel: average pooling, interpolation, padding.
class Resample : public LinearOperation {
  public:
    Resample(const OperationPlan& plan, const ResamplePlan& settings, const std::vector<Shape>& shapes)
        : LinearOperation(plan),
          in_(shapes[static_cast<size_t>(plan.inputs.at(0))]),
          out_(shapes[static_cast<size_t>(plan.output)]),
          offsets_(settings.offsets),
          columns_(settings.columns),
          weights_(settings.weights.begin(), settings.weights.end()) {
        const auto outputs = static_cast<size_t>(out_.positions());
        const auto entries = static_cast<int64_t>(columns_.size());
        if (offsets_.size() != outputs + 1 || offsets_.front() != 0 || offsets_.back() != entries ||
            !std::is_sorted(offsets_.begin(), offsets_.end()))
            throw std::invalid_argument(plan.name + ": expected " + std::to_string(outputs + 1) +
                                        " offsets from 0 to the number of columns, " + std::to_string(entries));
        if (columns_.size() != weights_.size())
            throw std::invalid_argument(plan.name + ": expected one column for each weight, got " +
                                        std::to_string(columns_.size()) + " and " + std::to_string(weights_.size()));
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

}  // namespace

std::unique_ptr<Operation> ResamplePlan::make(const OperationPlan& plan, const std::vector<Shape>& shapes) const {
    return std::make_unique<Resample>(plan, *this, shapes);
}

}  // namespace metagan
