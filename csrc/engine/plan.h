// Plans of networks: the settings of each kind of operation, by name. The kinds and fields are those of
// metagan_fast/executors/native/lowering/types.py, which says what they mean.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "cpu/layers/layer_kernels.h"
#include "ops/names.h"

namespace metagan {

struct Shape {
    int64_t channels = 0, height = 0, width = 0;

    int64_t positions() const { return height * width; }
    int64_t elements() const { return channels * positions(); }
};

// Offset of a parameter in the flat buffer; negative: the operation has none.
struct ParameterOffset {
    int64_t value = -1;

    bool exists() const { return value >= 0; }
    // The parameter in a flat buffer, null without a buffer or a parameter.
    const float* in(const float* params) const { return params && exists() ? params + value : nullptr; }
};

// Window that slides along one axis.
struct Window {
    int64_t kernel = 1, stride = 1, padding = 0, dilation = 1;

    template <class Self, class Visit>
    static void fields(Self& self, const Visit& visit) {
        visit("kernel", self.kernel);
        visit("stride", self.stride);
        visit("padding", self.padding);
        visit("dilation", self.dilation);
    }
};

class Operation;
struct OperationPlan;

// Each kind of operation has a name, a visitor of its fields, and makes its Operation (in csrc/engine/ops). `fields`
// calls visit(name, field), or visit(name, field, names) for an enumeration with this table of names.

struct ConvolutionPlan {
    static constexpr const char* kind = "convolution";
    Window y, x;
    ParameterOffset weight, bias;
    bool transposed = false;

    std::unique_ptr<Operation> make(const OperationPlan&, const std::vector<Shape>&) const;
    template <class Self, class Visit>
    static void fields(Self& self, const Visit& visit) {
        visit("y", self.y);
        visit("x", self.x);
        visit("weight", self.weight);
        visit("bias", self.bias);
        visit("transposed", self.transposed);
    }
};

enum class Granularity { channel, element };
constexpr Named<Granularity> kGranularities[] = {{"channel", Granularity::channel}, {"element", Granularity::element}};

struct NormalizationPlan {
    static constexpr const char* kind = "normalization";
    int64_t channels_a_set = 1, positions_a_set = 1;
    bool across_images = false;
    double eps = 0;
    ParameterOffset weight, bias;
    Granularity granularity = Granularity::channel;
    int64_t numel = 0;

    std::unique_ptr<Operation> make(const OperationPlan&, const std::vector<Shape>&) const;
    template <class Self, class Visit>
    static void fields(Self& self, const Visit& visit) {
        visit("channels_a_set", self.channels_a_set);
        visit("positions_a_set", self.positions_a_set);
        visit("across_images", self.across_images);
        visit("eps", self.eps);
        visit("weight", self.weight);
        visit("bias", self.bias);
        visit("granularity", self.granularity, kGranularities);
        visit("numel", self.numel);
    }
};

struct ActivationPlan {
    static constexpr const char* kind = "activation";
    Activation function = Activation::relu;
    std::vector<double> constants;
    ParameterOffset slope;
    int64_t slopes = 0;

    std::unique_ptr<Operation> make(const OperationPlan&, const std::vector<Shape>&) const;
    template <class Self, class Visit>
    static void fields(Self& self, const Visit& visit) {
        visit("function", self.function, kActivations);
        visit("constants", self.constants);
        visit("slope", self.slope);
        visit("slopes", self.slopes);
    }
};

struct ResamplePlan {
    static constexpr const char* kind = "resample";
    std::vector<int64_t> offsets, columns;
    std::vector<double> weights;

    std::unique_ptr<Operation> make(const OperationPlan&, const std::vector<Shape>&) const;
    template <class Self, class Visit>
    static void fields(Self& self, const Visit& visit) {
        visit("offsets", self.offsets);
        visit("columns", self.columns);
        visit("weights", self.weights);
    }
};

struct PermutePlan {
    static constexpr const char* kind = "permute";
    std::vector<int64_t> order;

    std::unique_ptr<Operation> make(const OperationPlan&, const std::vector<Shape>&) const;
    template <class Self, class Visit>
    static void fields(Self& self, const Visit& visit) {
        visit("order", self.order);
    }
};

struct MaxPoolPlan {
    static constexpr const char* kind = "max_pool";
    Window y, x;

    std::unique_ptr<Operation> make(const OperationPlan&, const std::vector<Shape>&) const;
    template <class Self, class Visit>
    static void fields(Self& self, const Visit& visit) {
        visit("y", self.y);
        visit("x", self.x);
    }
};

struct CombinePlan {
    static constexpr const char* kind = "combine";
    std::vector<double> factors;
    double constant = 0;

    std::unique_ptr<Operation> make(const OperationPlan&, const std::vector<Shape>&) const;
    template <class Self, class Visit>
    static void fields(Self& self, const Visit& visit) {
        visit("factors", self.factors);
        visit("constant", self.constant);
    }
};

struct ConcatenatePlan {
    static constexpr const char* kind = "concatenate";

    std::unique_ptr<Operation> make(const OperationPlan&, const std::vector<Shape>&) const;
    template <class Self, class Visit>
    static void fields(Self&, const Visit&) {}
};

using OperationSettings = std::variant<ConvolutionPlan, NormalizationPlan, ActivationPlan, ResamplePlan, PermutePlan,
                                       MaxPoolPlan, CombinePlan, ConcatenatePlan>;

struct OperationPlan {
    std::string name;  // of the layer
    std::vector<int> inputs;
    int output = 0;
    OperationSettings settings;
};

struct NetworkPlan {
    std::vector<Shape> values;
    std::vector<OperationPlan> operations;
    int input = 0, output = 0;
    int64_t numel = 0;
};

}  // namespace metagan
