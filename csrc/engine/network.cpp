#include "network.h"

#include <algorithm>
#include <atomic>
#include <set>
#include <stdexcept>
#include <type_traits>

#include "cpu/dispatch.h"

namespace metagan {
namespace {

bool stopped(const Pass& pass) { return pass.stop && (*pass.stop)(); }

std::unique_ptr<Operation> make_operation(const OperationPlan& plan, const std::vector<Shape>& shapes) {
    const auto check = [&](int value) {
        if (value < 0 || value >= static_cast<int>(shapes.size()))
            throw std::invalid_argument(plan.name + ": expected values 0 to " + std::to_string(shapes.size()) +
                                        " (exclusive), got " + std::to_string(value));
    };
    for (const int value : plan.inputs) check(value);
    check(plan.output);
    if (plan.inputs.empty()) throw std::invalid_argument(plan.name + ": expected an input, got none");
    return std::visit([&](const auto& settings) { return settings.make(plan, shapes); }, plan.settings);
}

template <class Body>
void for_each_parameter(const OperationPlan& plan, const Body& body) {
    const auto visit_field = [&](const char*, const auto& field, const auto&...) {
        if constexpr (std::is_same_v<decltype(field), const ParameterOffset&>)
            if (field.exists()) body(field.value);
    };
    std::visit([&](const auto& settings) { settings.fields(settings, visit_field); }, plan.settings);
}

}  // namespace

int64_t new_version() {
    static std::atomic<int64_t> last{0};
    return ++last;
}

Activations::Activations(const std::vector<Shape>& shapes, Placement placement, int64_t images, Cotangents cotangents,
                         TransientArena& arena)
    : shapes_(shapes), placement_(std::move(placement)), images_(images), cotangents_(cotangents), arena_(arena) {
    for (const int64_t floats : placement_.own) own_.emplace_back(floats);
    arena_.allocate();
}

Workspace::Workspace(const Network& network, int64_t images, Cotangents cotangents, TransientArena& arena)
    : activations(network.plan_.values, network.place(images, cotangents, 1, arena), images, cotangents, arena),
      extra_(network.plan_.values.size()) {
    for (const auto& operation : network.operations_) states_.push_back(operation->state(activations));
    for (size_t value = 0; value < extra_.size(); ++value)
        if (network.readers_[value] > 1) extra_[value] = Array<float>(network.plan_.values[value].elements() * images);
}

Network::Network(const NetworkPlan& plan) : plan_(plan), readers_(plan.values.size()) {
    std::set<int64_t> parameters;
    for (const OperationPlan& operation : plan.operations) {
        operations_.push_back(make_operation(operation, plan.values));
        mixes_images_ = mixes_images_ || operations_.back()->mixes_images();
        for (const int value : operation.inputs) ++readers_[static_cast<size_t>(value)];
        for_each_parameter(operation, [&](int64_t offset) {
            if (!parameters.insert(offset).second) shares_parameters_ = true;
        });
    }
}

// The live range of a transient value is from its operation to its last reader, that of a cotangent the reverse. The
// network's input and output have arrays of their own: callers access them before and after a pass.
Placement Network::place(int64_t images, Cotangents cotangents, int threads, TransientArena& arena) const {
    const size_t count = plan_.values.size();
    const auto index = [](int value) { return static_cast<size_t>(value); };
    const auto floats = [&](size_t value) { return plan_.values[value].elements() * images; };
    std::vector<bool> own_value(count), own_cotangent(count, cotangents == Cotangents::kept);
    for (const int value : {plan_.input, plan_.output}) own_value[index(value)] = own_cotangent[index(value)] = true;
    std::vector<size_t> last_reader(count, operations_.size());
    for (size_t i = 0; i < operations_.size(); ++i)
        for (size_t j = 0; j < operations_[i]->plan().inputs.size(); ++j) {
            const size_t value = index(operations_[i]->plan().inputs[j]);
            if (operations_[i]->rereads(j)) own_value[value] = true;
            last_reader[value] = i;
        }
    Placement placement;
    placement.values.resize(count);
    placement.cotangents.resize(count);
    for (size_t value = 0; value < count; ++value) {
        if (own_value[value]) placement.values[value] = placement.add_own(floats(value));
        if (own_cotangent[value]) placement.cotangents[value] = placement.add_own(floats(value));
    }
    for (const auto& operation : operations_) {
        arena.border_floats = std::max(arena.border_floats, operation->border_floats(images));
        arena.scratch_floats = std::max(arena.scratch_floats, operation->scratch_floats(images, threads));
    }
    LivenessAllocator values(arena);
    for (size_t i = 0; i < operations_.size(); ++i) {
        const size_t output = index(operations_[i]->plan().output);
        if (!own_value[output]) placement.values[output] = values.begin(floats(output));
        for (const int input : operations_[i]->plan().inputs)
            if (!own_value[index(input)] && last_reader[index(input)] == i) values.end(placement.values[index(input)]);
    }
    LivenessAllocator transient_cotangents(arena);
    std::vector<bool> begun = own_cotangent;
    for (size_t i = operations_.size(); i-- > 0;) {
        const size_t output = index(operations_[i]->plan().output);
        if (!begun[output]) continue;
        for (const int input : operations_[i]->plan().inputs) {
            if (begun[index(input)]) continue;
            begun[index(input)] = true;
            placement.cotangents[index(input)] = transient_cotangents.begin(floats(index(input)));
        }
        if (!own_cotangent[output]) transient_cotangents.end(placement.cotangents[output]);
    }
    return placement;
}

int64_t Network::workspace_bytes(int64_t images, int64_t in_pass, Cotangents cotangents, Precision precision,
                                 int threads, TransientArena& arena) const {
    int64_t floats = 0, bytes = 0;
    for (const int64_t of_array : place(images, cotangents, threads, arena).own) floats += of_array;
    for (size_t value = 0; value < plan_.values.size(); ++value)
        if (readers_[value] > 1) floats += plan_.values[value].elements() * images;
    for (const auto& operation : operations_) bytes += operation->state_bytes(images, in_pass, cotangents, precision);
    return bytes + floats * int64_t{sizeof(float)};
}

void Network::forward(const Pass& pass, Workspace& workspace, Range images) const {
    for (size_t i = 0; i < operations_.size() && !stopped(pass); ++i)
        operations_[i]->forward(pass, workspace.activations, workspace.states_[i].get(), images);
}

void Network::tangent(const Pass& pass, Workspace& workspace, Range primal, Range tangent) const {
    for (size_t i = 0; i < operations_.size() && !stopped(pass); ++i)
        operations_[i]->tangent(pass, workspace.activations, workspace.states_[i].get(), primal, tangent);
}

// Operations run in reverse order. The first that reads a value writes its cotangent; the others write addends to
// extra_.
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
