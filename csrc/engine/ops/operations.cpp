#include "operations.h"

#include <algorithm>
#include <stdexcept>

#include "cpu/runtime/array.h"
#include "engine/scratch.h"

namespace metagan {

std::unique_ptr<Operation> make_operation(const OperationPlan& plan, const std::vector<Shape>& shapes) {
    const auto known = [&](int value) { return value >= 0 && value < static_cast<int>(shapes.size()); };
    const auto check = [&](int value) {
        if (!known(value))
            throw std::invalid_argument(plan.name + ": expected values 0 to " + std::to_string(shapes.size()) +
                                        " (exclusive), got " + std::to_string(value));
    };
    for (const int value : plan.inputs) check(value);
    check(plan.output);
    if (plan.inputs.empty()) throw std::invalid_argument(plan.name + ": expected an input, got none");
    if (plan.kind == "convolution") return make_convolution(plan, shapes, false);
    if (plan.kind == "transposed_convolution") return make_convolution(plan, shapes, true);
    if (plan.kind == "normalization") return make_normalization(plan, shapes);
    if (plan.kind == "activation") return make_activation(plan, shapes);
    if (plan.kind == "resample") return make_resample(plan, shapes);
    if (plan.kind == "permute") return make_permute(plan, shapes);
    if (plan.kind == "max_pool") return make_max_pool(plan, shapes);
    if (plan.kind == "combine") return make_combine(plan, shapes);
    if (plan.kind == "concatenate") return make_concatenate(plan, shapes);
    throw std::invalid_argument(plan.name + ": unknown kind of operation '" + plan.kind + "'");
}

float* thread_scratch(int64_t floats) {
    thread_local Array<float> array;
    return array.at_least(std::max(floats, kScratchFloats));
}

const int32_t* thread_iota(int64_t size) {
    thread_local std::vector<int32_t> table;
    while (static_cast<int64_t>(table.size()) < size) table.push_back(static_cast<int32_t>(table.size()));
    return table.data();
}

}  // namespace metagan
