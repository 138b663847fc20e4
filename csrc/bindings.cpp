// The Python face of the kernels; metagan_fast/_core.pyi documents every argument.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "cpu/isa.h"
#include "kernels.h"

namespace py = pybind11;

namespace metagan {
namespace {

using MatrixArgument = std::pair<uintptr_t, int64_t>;
using RateArgument = std::variant<double, std::tuple<uintptr_t, int64_t, int64_t, int64_t, uintptr_t, int64_t>>;

template <class T = void>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

Matrix matrix(const std::optional<MatrixArgument>& argument) {
    return argument ? Matrix{pointer(argument->first), argument->second} : Matrix{};
}

LearningRate learning_rate(const RateArgument& argument) {
    LearningRate lr;
    if (const double* value = std::get_if<double>(&argument)) {
        lr.value = *value;
        return lr;
    }
    uintptr_t data, segment_ends;
    std::tie(data, lr.row_stride, lr.segment_stride, lr.element_stride, segment_ends, lr.segments) =
        std::get<1>(argument);
    if (lr.element_stride != 0 && lr.element_stride != 1)
        throw py::value_error("element_stride must be 0 or 1, got " + std::to_string(lr.element_stride));
    lr.data = pointer<const void>(data);
    lr.segment_ends = pointer<const int64_t>(segment_ends);
    return lr;
}

Launch launch(int dtype, int64_t rows, int64_t columns, int threads) {
    if (dtype < 0 || dtype > static_cast<int>(DType::float64))
        throw py::value_error("dtype must be FLOAT32, BFLOAT16 or FLOAT64, got " + std::to_string(dtype));
    return {static_cast<DType>(dtype), rows, columns, threads};
}

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const Isa isa : kIsas)
        if (is_available(isa)) names.emplace_back(name(isa));
    return names;
}

void set_isa(const std::string& wanted) {
    std::string available;
    for (const Isa isa : kIsas) {
        if (!is_available(isa)) continue;
        if (wanted == name(isa)) return set_current_isa(isa);
        available += std::string(available.empty() ? "" : ", ") + name(isa);
    }
    throw py::value_error("instruction set must be one that this processor has (" + available + "), got '" + wanted +
                          "'");
}

}  // namespace
}  // namespace metagan

PYBIND11_MODULE(_core, module) {
    using namespace metagan;
    const auto no_gil = py::call_guard<py::gil_scoped_release>();

    module.attr("FLOAT32") = static_cast<int>(DType::float32);
    module.attr("BFLOAT16") = static_cast<int>(DType::bfloat16);
    module.attr("FLOAT64") = static_cast<int>(DType::float64);

    module.def("available_isas", &available_isas);
    module.def("isa", [] { return std::string(name(current_isa())); });
    module.def("set_isa", &set_isa);
    if (const char* wanted = std::getenv("METAGAN_FAST_ISA"); wanted && *wanted) {
        try {
            set_isa(wanted);
        } catch (const py::value_error& error) {
            throw py::import_error(std::string("METAGAN_FAST_ISA: ") + error.what());
        }
    }

    module.def(
        "sgd_step",
        [](int dtype, int64_t rows, int64_t columns, int threads, MatrixArgument params, MatrixArgument grads,
           std::optional<MatrixArgument> momentum_buffer, MatrixArgument params_out,
           std::optional<MatrixArgument> momentum_buffer_out, const RateArgument& lr, double momentum, double dampening,
           double weight_decay, bool nesterov) {
            sgd_step(launch(dtype, rows, columns, threads), matrix(params), matrix(grads), matrix(momentum_buffer),
                     matrix(params_out), matrix(momentum_buffer_out), learning_rate(lr),
                     {momentum, dampening, weight_decay, nesterov});
        },
        no_gil);

    module.def(
        "adam_step",
        [](int dtype, int64_t rows, int64_t columns, int threads, MatrixArgument params, MatrixArgument grads,
           MatrixArgument exp_avg, MatrixArgument exp_avg_sq, MatrixArgument params_out, MatrixArgument exp_avg_out,
           MatrixArgument exp_avg_sq_out, const RateArgument& lr, double beta1, double beta2, double inverse_bias1,
           double inverse_bias2, double eps, double eps_root, double weight_decay, bool decoupled) {
            adam_step(launch(dtype, rows, columns, threads), matrix(params), matrix(grads), matrix(exp_avg),
                      matrix(exp_avg_sq), matrix(params_out), matrix(exp_avg_out), matrix(exp_avg_sq_out),
                      learning_rate(lr),
                      {beta1, beta2, inverse_bias1, inverse_bias2, eps, eps_root, weight_decay, decoupled});
        },
        no_gil);

    module.def(
        "rmsprop_step",
        [](int dtype, int64_t rows, int64_t columns, int threads, MatrixArgument params, MatrixArgument grads,
           MatrixArgument square_avg, std::optional<MatrixArgument> momentum_buffer,
           std::optional<MatrixArgument> grad_avg, MatrixArgument params_out, MatrixArgument square_avg_out,
           std::optional<MatrixArgument> momentum_buffer_out, std::optional<MatrixArgument> grad_avg_out,
           const RateArgument& lr, double alpha, double eps, double weight_decay, double momentum) {
            rmsprop_step(launch(dtype, rows, columns, threads), matrix(params), matrix(grads), matrix(square_avg),
                         matrix(momentum_buffer), matrix(grad_avg), matrix(params_out), matrix(square_avg_out),
                         matrix(momentum_buffer_out), matrix(grad_avg_out), learning_rate(lr),
                         {alpha, eps, weight_decay, momentum});
        },
        no_gil);

    module.def(
        "reptile_interpolate",
        [](int dtype, int64_t tasks, int64_t columns, int threads, uintptr_t initial, MatrixArgument adapted,
           uintptr_t weights, uintptr_t out, double step_size) {
            reptile_interpolate(launch(dtype, tasks, columns, threads), pointer(initial), matrix(adapted),
                                pointer(weights), pointer(out), step_size);
        },
        no_gil);

    module.def(
        "reptile_gradient",
        [](int dtype, int64_t tasks, int64_t columns, int threads, uintptr_t initial, MatrixArgument adapted,
           uintptr_t weights, uintptr_t out) {
            reptile_gradient(launch(dtype, tasks, columns, threads), pointer(initial), matrix(adapted),
                             pointer(weights), pointer(out));
        },
        no_gil);

    module.def(
        "meta_adam_step",
        [](int dtype, int64_t tasks, int64_t columns, int threads, uintptr_t params, MatrixArgument adapted,
           uintptr_t weights, uintptr_t exp_avg, uintptr_t exp_avg_sq, uintptr_t params_out, uintptr_t exp_avg_out,
           uintptr_t exp_avg_sq_out, const RateArgument& lr, double beta1, double beta2, double inverse_bias1,
           double inverse_bias2, double eps, double weight_decay, bool decoupled) {
            meta_adam_step(launch(dtype, tasks, columns, threads), pointer(params), matrix(adapted), pointer(weights),
                           pointer(exp_avg), pointer(exp_avg_sq), pointer(params_out), pointer(exp_avg_out),
                           pointer(exp_avg_sq_out), learning_rate(lr),
                           {beta1, beta2, inverse_bias1, inverse_bias2, eps, 0, weight_decay, decoupled});
        },
        no_gil);

    module.def(
        "clip_grad_norm",
        [](int dtype, int64_t rows, int64_t columns, int threads, MatrixArgument grads, MatrixArgument grads_out,
           uintptr_t norms_out, double max_norm) {
            clip_grad_norm(launch(dtype, rows, columns, threads), matrix(grads), matrix(grads_out), pointer(norms_out),
                           max_norm);
        },
        no_gil);

    module.def(
        "ema_update",
        [](int dtype, int64_t rows, int64_t columns, int threads, MatrixArgument average, MatrixArgument params,
           MatrixArgument average_out, double decay) {
            ema_update(launch(dtype, rows, columns, threads), matrix(average), matrix(params), matrix(average_out),
                       decay);
        },
        no_gil);
}
