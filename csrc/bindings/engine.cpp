// Bindings of the engine: dictionaries to plans and arguments, and the passes of a single network for tests.
#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "bindings.h"
#include "engine/engine.h"

namespace metagan {
namespace {

using namespace pybind11::literals;

// Field of a dictionary, by name.
template <class T>
T field(const py::dict& fields, const char* name) {
    if (!fields.contains(name)) throw py::value_error(std::string("expected a field '") + name + "', got none");
    return fields[name].cast<T>();
}

template <class T = float>
T* address(const py::dict& fields, const char* name) {
    return static_cast<T*>(pointer(field<uintptr_t>(fields, name)));
}

template <class T>
std::vector<T> list(const py::handle& sequence) {
    std::vector<T> values;
    for (const py::handle item : sequence) values.push_back(item.cast<T>());
    return values;
}

// Enumerator of a name. `what`: the kind of name, for the error.
template <class Enum, size_t count>
Enum one_of(const Named<Enum> (&table)[count], const std::string& name, const char* what) {
    std::string known;
    for (const Named<Enum>& row : table) {
        if (name == row.name) return row.value;
        known += (known.empty() ? "'" : ", '") + std::string(row.name) + "'";
    }
    throw py::value_error(std::string("unknown ") + what + " '" + name + "'; expected one of " + known);
}

void read(const py::handle& from, int64_t& to) { to = from.cast<int64_t>(); }
void read(const py::handle& from, double& to) { to = from.cast<double>(); }
void read(const py::handle& from, bool& to) { to = from.cast<bool>(); }
void read(const py::handle& from, ParameterOffset& to) { to.value = from.is_none() ? -1 : from.cast<int64_t>(); }
template <class T>
void read(const py::handle& from, std::vector<T>& to) {
    to = list<T>(from);
}
template <class Enum, size_t size>
void read(const py::handle& from, Enum& to, const Named<Enum> (&names)[size]) {
    to = one_of(names, from.cast<std::string>(), "value");
}

// Reads a struct whose fields have a visitor, by name, from a dictionary with exactly these fields.
template <class Struct>
void read(const py::handle& from, Struct& to) {
    const auto fields = from.cast<py::dict>();
    std::vector<std::string> known;
    Struct::fields(to, [&](const char* name, auto& value, const auto&... names) {
        const auto item = field<py::object>(fields, name);
        try {
            read(item, value, names...);
        } catch (const py::cast_error&) {
            throw py::value_error("expected another type of '" + std::string(name) + "', got " +
                                  py::repr(item).cast<std::string>());
        } catch (const py::value_error& error) {
            throw py::value_error(std::string(name) + ": " + error.what());
        }
        known.emplace_back(name);
    });
    for (const auto& entry : fields)
        if (const auto name = entry.first.cast<std::string>();
            std::find(known.begin(), known.end(), name) == known.end())
            throw py::value_error("unknown field '" + name + "'");
}

// Settings of the kind of operation with this name; `i` counts the kinds that had another.
template <size_t i = 0>
OperationSettings settings_of(const std::string& kind, const py::handle& fields) {
    if constexpr (i < std::variant_size_v<OperationSettings>) {
        std::variant_alternative_t<i, OperationSettings> settings;
        if (kind != settings.kind) return settings_of<i + 1>(kind, fields);
        read(fields, settings);
        return settings;
    } else {
        throw py::value_error("unknown kind of operation '" + kind + "'");
    }
}

OperationPlan operation_plan(const py::dict& fields) {
    const auto name = field<std::string>(fields, "name");
    try {
        return {name, list<int>(field<py::object>(fields, "inputs")), field<int>(fields, "output"),
                settings_of(field<std::string>(fields, "kind"), field<py::object>(fields, "settings"))};
    } catch (const py::value_error& error) {
        throw py::value_error(name + ": " + error.what());
    }
}

NetworkPlan network_plan(const py::dict& fields) {
    NetworkPlan plan;
    for (const py::handle shape : fields["values"]) {
        const std::vector<int64_t> sides = list<int64_t>(shape);
        if (sides.size() != 3)
            throw py::value_error("expected shapes (channels, height, width), got one of " +
                                  std::to_string(sides.size()) + " sizes");
        plan.values.push_back({sides[0], sides[1], sides[2]});
    }
    for (const py::handle item : fields["operations"])
        plan.operations.push_back(operation_plan(py::reinterpret_borrow<py::dict>(item)));
    plan.input = field<int>(fields, "input");
    plan.output = field<int>(fields, "output");
    plan.numel = field<int64_t>(fields, "numel");
    return plan;
}

Term term(const py::dict& loss, const char* name) {
    const auto fields = field<py::tuple>(loss, name);
    return {one_of(Term::kKinds, fields[0].cast<std::string>(), "term of a loss"), fields[1].cast<double>(),
            fields[2].cast<double>()};
}

LossPlan loss_plan(const py::dict& fields) {
    LossPlan loss;
    loss.real = term(fields, "real");
    loss.fake = term(fields, "fake");
    loss.generator = term(fields, "generator");
    loss.relative = one_of(LossPlan::kRelatives, field<std::string>(fields, "relative"), "relative scores");
    loss.separate_batches = field<int>(fields, "separate_batches") != 0;
    loss.clip = field<double>(fields, "clip");
    if (const auto penalty = field<py::object>(fields, "penalty"); !penalty.is_none()) {
        const auto values = penalty.cast<py::tuple>();
        loss.penalty = one_of(LossPlan::kPenalties, values[0].cast<std::string>(), "penalty");
        loss.penalty_weight = values[1].cast<double>();
        loss.location = one_of(LossPlan::kLocations, values[2].cast<std::string>(), "location of a penalty");
    }
    return loss;
}

OptimizerPlan optimizer_plan(const py::dict& inner) {
    OptimizerPlan optimizer;
    optimizer.kind = one_of(OptimizerPlan::kKinds, field<std::string>(inner, "optimizer"), "inner optimizer");
    optimizer.momentum = field<double>(inner, "momentum");
    optimizer.beta1 = field<double>(inner, "beta1");
    optimizer.beta2 = field<double>(inner, "beta2");
    optimizer.eps = field<double>(inner, "eps");
    optimizer.alpha = field<double>(inner, "alpha");
    optimizer.weight_decay = field<double>(inner, "weight_decay");
    return optimizer;
}

Precision precision_of(const std::string& name) { return one_of(kPrecisions, name, "precision"); }

std::unique_ptr<Engine> make_engine(const py::dict& generator, const py::dict& discriminator, const py::dict& loss,
                                    const py::dict& inner, const std::string& precision) {
    EnginePlan plan;
    plan.precision = precision_of(precision);
    plan.generator = network_plan(generator);
    plan.discriminator = network_plan(discriminator);
    plan.loss = loss_plan(loss);
    plan.optimizer = optimizer_plan(inner);
    plan.critic_steps = field<int64_t>(inner, "critic_steps");
    plan.generator_steps = field<int64_t>(inner, "generator_steps");
    return std::make_unique<Engine>(std::move(plan));
}

TaskData task_data(const py::dict& fields) {
    TaskData data;
    data.tasks = field<int64_t>(fields, "tasks");
    data.shots = field<int64_t>(fields, "shots");
    data.steps = field<int64_t>(fields, "steps");
    data.update = {field<int64_t>(fields, "batch"), field<int64_t>(fields, "generated")};
    data.threads = field<int64_t>(fields, "threads");
    data.generator_lrs = list<double>(fields["generator_lrs"]);
    data.discriminator_lrs = list<double>(fields["discriminator_lrs"]);
    const auto steps = static_cast<size_t>(data.steps);
    if (data.generator_lrs.size() != steps || data.discriminator_lrs.size() != steps)
        throw py::value_error("expected one learning rate of each network a step, for " + std::to_string(steps) +
                              " steps");
    data.initial_generator = address(fields, "initial_generator");
    data.initial_discriminator = address(fields, "initial_discriminator");
    data.support = address(fields, "support");
    data.support_index = address<int64_t>(fields, "support_index");
    data.discriminator_latents = address(fields, "discriminator_latents");
    data.generator_latents = address(fields, "generator_latents");
    data.interpolation = address(fields, "interpolation");
    const auto updates = py::reinterpret_borrow<py::tuple>(fields["updates_done"]);
    data.generator_updates = updates[0].cast<int64_t>();
    data.discriminator_updates = updates[1].cast<int64_t>();
    data.metrics = address(fields, "metrics");
    data.step_losses = address(fields, "step_losses");
    data.added = field<int64_t>(fields, "added");
    data.summed = field<int64_t>(fields, "summed");
    return data;
}

QueryData query_data(const py::dict& fields) {
    QueryData data;
    data.query = field<int64_t>(fields, "query_count");
    data.evaluations = field<int64_t>(fields, "evaluations");
    data.images = address(fields, "query");
    data.discriminator_latents = address(fields, "query_discriminator_latents");
    data.generator_latents = address(fields, "query_generator_latents");
    data.interpolation = address(fields, "query_interpolation");
    data.adaptation_latents = address(fields, "query_adaptation_latents");
    data.adaptation_interpolation = address(fields, "query_adaptation_interpolation");
    return data;
}

Opponent opponent(const std::string& objective) { return one_of(kObjectives, objective, "objective"); }

Outputs outputs(const py::dict& fields, const std::string& network) {
    Outputs result;
    result.params = address(fields, network.c_str());
    for (const uintptr_t buffer : list<uintptr_t>(fields[(network + "_buffers").c_str()]))
        result.buffers.push_back(static_cast<float*>(pointer(buffer)));
    result.difference = address(fields, (network + "_difference").c_str());
    return result;
}

// Runs body(interrupted) without the GIL; interrupted() acquires it and checks for signals (Ctrl-C).
template <class Body>
void run(const Body& body) {
    bool completed;
    {
        const py::gil_scoped_release release;
        completed = body([] {
            const py::gil_scoped_acquire acquire;
            return PyErr_CheckSignals() != 0;
        });
    }
    if (!completed) throw py::error_already_set();
}

// Runs the four passes of a single network, for tests; names as in the equations of csrc/engine/network.h.
void network_passes(const py::dict& plan, const py::dict& fields, const std::string& precision) {
    const Network network(network_plan(plan));
    const auto images = field<int64_t>(fields, "images");
    const bool paired = field<int>(fields, "paired") != 0;
    TransientArena arena;
    Workspace workspace(network, paired ? 2 * images : images, Cotangents::transient, arena);
    Activations& a = workspace.activations;
    const Range primal{0, images}, tangent{images, images};
    const std::vector<Range> batches{primal};
    Pass pass;
    pass.params = address(fields, "params");
    pass.version = new_version();
    pass.precision = precision_of(precision);
    pass.threads = field<int>(fields, "threads");
    pass.batches = &batches;
    const auto copy = [&](int value, bool cotangent, int64_t first, const char* name, bool in) {
        const Shape& shape = a.shape(value);
        float* outside = address(fields, name);
        for (int64_t i = first; i < first + images; ++i)
            for (int64_t channel = 0; channel < shape.channels; ++channel, outside += shape.positions()) {
                float* const inside = (cotangent ? a.bar(value, i) : a.x(value, i)) + channel * a.stride(value);
                if (in)
                    std::copy_n(outside, shape.positions(), inside);
                else
                    std::copy_n(inside, shape.positions(), outside);
            }
    };
    const int input = network.plan().input, output = network.plan().output;
    copy(input, false, 0, "inputs", true);
    network.forward(pass, workspace, primal);
    Reverse reverse;
    reverse.images = primal;
    if (paired) {
        pass.params_dot = address(fields, "params_tangent");
        copy(input, false, images, "inputs_tangent", true);
        network.tangent(pass, workspace, primal, tangent);
        copy(output, false, images, "outputs_tangent", false);
        copy(output, true, images, "tangent_cotangent", true);
        reverse.primal = primal;
        reverse.tangent = tangent;
    }
    copy(output, false, 0, "outputs", false);
    copy(output, true, 0, "output_cotangent", true);
    Accumulate gradient(address(fields, "params_gradient"));
    reverse.gradients = &gradient;
    network.reverse(pass, workspace, reverse);
    copy(input, true, 0, "inputs_cotangent", false);
    if (paired) copy(input, true, images, "inputs_tangent_cotangent", false);
}

}  // namespace

void define_engine(py::module_& module) {
    module.def("network_passes", &network_passes, py::arg("network"), py::arg("arguments"),
               py::arg("precision") = "float32");

    py::class_<Engine>(module, "Engine")
        .def(py::init(&make_engine))
        .def("inner_loop",
             [](Engine& engine, const py::dict& fields) {
                 const TaskData data = task_data(fields);
                 const Outputs generator = outputs(fields, "generator"),
                               discriminator = outputs(fields, "discriminator");
                 run([&](auto interrupted) { return engine.inner_loop(data, generator, discriminator, interrupted); });
             })
        .def("query_gradient",
             [](Engine& engine, const py::dict& fields) {
                 const TaskData data = task_data(fields);
                 const QueryData query = query_data(fields);
                 const QueryObjective objective{
                     list<double>(fields["step_weights"]), field<int>(fields, "multi_step") != 0,
                     field<int>(fields, "first_order") != 0, opponent(field<std::string>(fields, "objective")),
                     field<int64_t>(fields, "segment")};
                 if (objective.opponent == Opponent::on_query && !query.adaptation_latents)
                     throw py::value_error("expected query_adaptation_latents with objective 'query', got none");
                 if (objective.step_weights.size() != static_cast<size_t>(data.steps))
                     throw py::value_error("expected " + std::to_string(data.steps) + " step_weights, got " +
                                           std::to_string(objective.step_weights.size()));
                 float* const generator = address(fields, "generator_gradient");
                 float* const discriminator = address(fields, "discriminator_gradient");
                 run([&](auto interrupted) {
                     return engine.query_gradient(data, query, objective, generator, discriminator, interrupted);
                 });
             })
        .def("query_losses",
             [](Engine& engine, const py::dict& fields) {
                 TaskData data;
                 data.tasks = field<int64_t>(fields, "tasks");
                 data.threads = field<int64_t>(fields, "threads");
                 data.metrics = address(fields, "metrics");
                 const QueryData query = query_data(fields);
                 const float *generator = address(fields, "generator"),
                             *discriminator = address(fields, "discriminator");
                 run([&](auto interrupted) {
                     return engine.query_losses(data, query, generator, discriminator, interrupted);
                 });
             })
        .def("generate",
             [](Engine& engine, const py::dict& fields) {
                 const auto tasks = field<int64_t>(fields, "tasks"), count = field<int64_t>(fields, "count"),
                            threads = field<int64_t>(fields, "threads");
                 const float *generator = address(fields, "generator"), *latents = address(fields, "latents");
                 float* const images = address(fields, "images");
                 run([&](auto interrupted) {
                     return engine.generate(tasks, count, threads, generator, latents, images, interrupted);
                 });
             })
        .def("score",
             [](Engine& engine, const py::dict& fields) {
                 const auto tasks = field<int64_t>(fields, "tasks"), count = field<int64_t>(fields, "count"),
                            threads = field<int64_t>(fields, "threads");
                 const float *discriminator = address(fields, "discriminator"), *images = address(fields, "images");
                 float* const scores = address(fields, "scores");
                 run([&](auto interrupted) {
                     return engine.score(tasks, count, threads, discriminator, images, scores, interrupted);
                 });
             })
        .def("memory_use", [](const Engine& engine, const py::dict& fields) {
            TaskData data;
            data.tasks = field<int64_t>(fields, "tasks");
            data.threads = field<int64_t>(fields, "threads");
            data.steps = field<int64_t>(fields, "steps");
            data.update = {field<int64_t>(fields, "batch"), field<int64_t>(fields, "generated")};
            QueryData query;
            query.query = field<int64_t>(fields, "query_count");
            const auto objective = field<py::object>(fields, "objective");
            QueryObjective of_query;
            if (!objective.is_none()) {
                of_query.first_order = field<int>(fields, "first_order") != 0;
                of_query.opponent = opponent(objective.cast<std::string>());
                of_query.segment = field<int64_t>(fields, "segment");
            }
            const MemoryUse use = engine.memory_use(data, query, objective.is_none() ? nullptr : &of_query,
                                                    field<int>(fields, "rows") != 0);
            return py::dict("workers"_a = use.workers, "activations"_a = use.activations,
                            "optimizer_state"_a = use.optimizer_state, "adjoint"_a = use.adjoint,
                            "scratch"_a = use.scratch, "sums"_a = use.sums);
        });
}

}  // namespace metagan
