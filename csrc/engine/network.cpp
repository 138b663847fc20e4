#include "network.h"

#include <algorithm>
#include <atomic>
#include <set>

#include "../cpu/dispatch.h"

namespace metagan {
namespace {

bool stopped(const Pass& pass) { return pass.stop && (*pass.stop)(); }

}  // namespace

int64_t new_version() {
    static std::atomic<int64_t> last{0};
    return ++last;
}

Activations::Activations(const std::vector<Shape>& shapes, Placement cotangents, int64_t images)
    : shapes_(shapes), placement_(std::move(cotangents)), images_(images) {
    for (const Shape& shape : shapes_) values_.emplace_back(shape.elements() * images);
    for (const int64_t elements : placement_.elements) cotangents_.emplace_back(elements * images);
}

Workspace::Workspace(const Network& network, int64_t images, Cotangents cotangents)
    : activations(network.plan_.values, network.place(cotangents), images), extra_(network.plan_.values.size()) {
    for (const auto& operation : network.operations_) states_.push_back(operation->state(activations));
    for (size_t value = 0; value < extra_.size(); ++value)
        if (network.readers_[value] > 1) extra_[value] = Array<float>(network.plan_.values[value].elements() * images);
}

Network::Network(const NetworkPlan& plan) : plan_(plan), readers_(plan.values.size()) {
    std::set<int64_t> parameters;
    for (const OperationPlan& operation : plan.operations) {
        operations_.push_back(make_operation(operation, plan.values));
        for (const int value : operation.inputs) ++readers_[static_cast<size_t>(value)];
        for (const int64_t offset : operation.parameters)
            if (offset >= 0 && !parameters.insert(offset).second) shares_parameters_ = true;
    }
}

// A cotangent that passes lives from the last operation that reads its value to the one that makes the value.
Placement Network::place(Cotangents cotangents) const {
    Placement placement;
    const auto elements = [&](int value) { return plan_.values[static_cast<size_t>(value)].elements(); };
    if (cotangents == Cotangents::kept) {
        for (size_t value = 0; value < plan_.values.size(); ++value) {
            placement.array_of.push_back(value);
            placement.elements.push_back(elements(static_cast<int>(value)));
        }
        return placement;
    }
    std::vector<size_t> unused;
    std::vector<bool> placed(plan_.values.size());
    placement.array_of.resize(plan_.values.size());
    const auto begin = [&](int value) {
        if (placed[static_cast<size_t>(value)]) return;
        placed[static_cast<size_t>(value)] = true;
        if (unused.empty()) {
            unused.push_back(placement.elements.size());
            placement.elements.push_back(0);
        }
        const size_t array = unused.back();
        unused.pop_back();
        placement.array_of[static_cast<size_t>(value)] = array;
        placement.elements[array] = std::max(placement.elements[array], elements(value));
    };
    begin(plan_.output);
    for (size_t i = operations_.size(); i-- > 0;) {
        const OperationPlan& operation = operations_[i]->plan();
        if (!placed[static_cast<size_t>(operation.output)]) continue;
        for (const int value : operation.inputs) begin(value);
        unused.push_back(placement.array_of[static_cast<size_t>(operation.output)]);
    }
    return placement;
}

int64_t Network::workspace_bytes(int64_t images, Cotangents cotangents, Precision precision) const {
    int64_t elements = 0;
    for (size_t value = 0; value < plan_.values.size(); ++value)
        elements += plan_.values[value].elements() * (readers_[value] > 1 ? 2 : 1);
    for (const int64_t of_array : place(cotangents).elements) elements += of_array;
    int64_t bytes = elements * images * int64_t{sizeof(float)};
    int64_t scratch = 0;
    for (const auto& operation : operations_) {
        bytes += operation->state_bytes(images, precision);
        scratch = std::max(scratch, operation->scratch_bytes(images));
    }
    return bytes + scratch;
}

void Network::forward(const Pass& pass, Workspace& workspace, Range images) const {
    for (size_t i = 0; i < operations_.size() && !stopped(pass); ++i)
        operations_[i]->forward(pass, workspace.activations, workspace.states_[i].get(), images);
}

void Network::tangent(const Pass& pass, Workspace& workspace, Range primal, Range tangent) const {
    for (size_t i = 0; i < operations_.size() && !stopped(pass); ++i)
        operations_[i]->tangent(pass, workspace.activations, workspace.states_[i].get(), primal, tangent);
}

// Operations run backwards. The first to reach a value writes its cotangent, later ones write elsewhere and are added.
void Network::reverse(const Pass& pass, Workspace& workspace, const Reverse& reverse) const {
    Activations& a = workspace.activations;
    const bool tangents = reverse.primal.count > 0 && !reverse.tangent_known;
    std::vector<bool>& reached = workspace.reached_;
    std::vector<float*>&x_bar = workspace.x_bar_, &x_tilde = workspace.x_tilde_;
    std::vector<int>& again = workspace.again_;
    reached.assign(plan_.values.size(), false);
    reached[static_cast<size_t>(plan_.output)] = true;
    for (size_t i = operations_.size(); i-- > 0 && !stopped(pass);) {
        const std::vector<int>& inputs = operations_[i]->plan().inputs;
        if (!reached[static_cast<size_t>(operations_[i]->plan().output)]) continue;
        x_bar.assign(inputs.size(), nullptr);
        x_tilde.assign(inputs.size(), nullptr);
        again.clear();
        for (size_t j = 0; j < inputs.size(); ++j) {
            const auto value = static_cast<size_t>(inputs[j]);
            if (inputs[j] == plan_.input && !reverse.input_wanted) continue;
            const int64_t positions = plan_.values[value].positions();
            float* const base = reached[value] ? workspace.extra_[value].data() : a.bar(inputs[j], 0);
            x_bar[j] = base + reverse.images.first * positions;
            if (tangents) x_tilde[j] = base + reverse.tangent.first * positions;
            if (reached[value]) again.push_back(inputs[j]);
            reached[value] = true;
        }
        operations_[i]->reverse(pass, a, workspace.states_[i].get(), reverse, x_bar.data(), x_tilde.data());
        for (const int value : again) {
            const Shape& shape = a.shape(value);
            const auto add = [&](Range range) {
                for (int64_t channel = 0; channel < shape.channels; ++channel)
                    layer_kernels().add(range.count * shape.positions(), 1,
                                        workspace.extra_[static_cast<size_t>(value)].data() +
                                            range.first * shape.positions() + channel * a.stride(value),
                                        a.bar(value, range.first) + channel * a.stride(value));
            };
            add(reverse.images);
            if (tangents) add(reverse.tangent);
        }
    }
}

}  // namespace metagan
