// Factories of the operations, one for each kind of OperationPlan.
#pragma once

#include "engine/network.h"

namespace metagan {

std::unique_ptr<Operation> make_convolution(const OperationPlan&, const std::vector<Shape>&, bool transposed);
std::unique_ptr<Operation> make_normalization(const OperationPlan&, const std::vector<Shape>&);
std::unique_ptr<Operation> make_activation(const OperationPlan&, const std::vector<Shape>&);
std::unique_ptr<Operation> make_resample(const OperationPlan&, const std::vector<Shape>&);
std::unique_ptr<Operation> make_permute(const OperationPlan&, const std::vector<Shape>&);
std::unique_ptr<Operation> make_max_pool(const OperationPlan&, const std::vector<Shape>&);
std::unique_ptr<Operation> make_combine(const OperationPlan&, const std::vector<Shape>&);
std::unique_ptr<Operation> make_concatenate(const OperationPlan&, const std::vector<Shape>&);

}  // namespace metagan
