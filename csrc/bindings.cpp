// The Python face of the kernels; metagan_fast/_core.pyi documents every argument.
#include <pybind11/pybind11.h>

#include <cstdlib>
#include <string>

#include "cpu/isa.h"
#include "kernels.h"

namespace py = pybind11;

namespace metagan {
namespace {

// Reads item i of a tuple. Numbers that do not fit leave a Python error behind.
void* address(PyObject* tuple, Py_ssize_t i) { return PyLong_AsVoidPtr(PyTuple_GET_ITEM(tuple, i)); }
int64_t integer(PyObject* tuple, Py_ssize_t i) { return PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, i)); }

bool is_tuple(py::handle source, Py_ssize_t size) {
    return PyTuple_Check(source.ptr()) && PyTuple_GET_SIZE(source.ptr()) == size;
}

bool without_error() {
    if (!PyErr_Occurred()) return true;
    PyErr_Clear();
    return false;
}

}  // namespace
}  // namespace metagan

// What a call costs is mostly its arguments, so these are read by hand.
namespace pybind11::detail {

template <>
struct type_caster<metagan::DType> {
    PYBIND11_TYPE_CASTER(metagan::DType, const_name("int"));

    bool load(handle source, bool) {
        const long code = PyLong_AsLong(source.ptr());
        value = static_cast<metagan::DType>(code);
        return metagan::without_error() && code >= 0 && code <= static_cast<long>(metagan::DType::float64);
    }
};

template <>
struct type_caster<metagan::Matrix> {
    PYBIND11_TYPE_CASTER(metagan::Matrix, const_name("tuple[int, int] | None"));

    bool load(handle source, bool) {
        if (source.is_none()) return true;
        if (!metagan::is_tuple(source, 2)) return false;
        value = {metagan::address(source.ptr(), 0), metagan::integer(source.ptr(), 1)};
        return metagan::without_error();
    }
};

template <>
struct type_caster<metagan::LearningRate> {
    PYBIND11_TYPE_CASTER(metagan::LearningRate, const_name("float | tuple[int, int, int, int, int, int]"));

    bool load(handle source, bool) {
        PyObject* const tuple = source.ptr();
        if (metagan::is_tuple(source, 6)) {
            value.data = metagan::address(tuple, 0);
            value.row_stride = metagan::integer(tuple, 1);
            value.segment_stride = metagan::integer(tuple, 2);
            value.element_stride = metagan::integer(tuple, 3);
            value.segment_ends = static_cast<const int64_t*>(metagan::address(tuple, 4));
            value.segments = metagan::integer(tuple, 5);
        } else {
            value.value = PyFloat_AsDouble(tuple);
        }
        return metagan::without_error() && (value.element_stride == 0 || value.element_stride == 1);
    }
};

}  // namespace pybind11::detail

namespace metagan {
namespace {

void* pointer(uintptr_t address) { return reinterpret_cast<void*>(address); }

py::list available_isas() {
    py::list names;
    for (const Isa isa : kIsas)
        if (is_available(isa)) names.append(name(isa));
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
    module.def("isa", [] { return name(current_isa()); });
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
        [](DType dtype, int64_t rows, int64_t columns, int threads, Matrix params, Matrix grads, Matrix momentum_buffer,
           Matrix params_out, Matrix momentum_buffer_out, const LearningRate& lr, double momentum, double dampening,
           double weight_decay, bool nesterov) {
            sgd_step({dtype, rows, columns, threads}, params, grads, momentum_buffer, params_out, momentum_buffer_out,
                     lr, {momentum, dampening, weight_decay, nesterov});
        },
        no_gil);

    module.def(
        "adam_step",
        [](DType dtype, int64_t rows, int64_t columns, int threads, Matrix params, Matrix grads, Matrix exp_avg,
           Matrix exp_avg_sq, Matrix params_out, Matrix exp_avg_out, Matrix exp_avg_sq_out, const LearningRate& lr,
           double beta1, double beta2, double inverse_bias1, double inverse_bias2, double eps, double eps_root,
           double weight_decay, bool decoupled) {
            adam_step({dtype, rows, columns, threads}, params, grads, exp_avg, exp_avg_sq, params_out, exp_avg_out,
                      exp_avg_sq_out, lr,
                      {beta1, beta2, inverse_bias1, inverse_bias2, eps, eps_root, weight_decay, decoupled});
        },
        no_gil);

    module.def(
        "rmsprop_step",
        [](DType dtype, int64_t rows, int64_t columns, int threads, Matrix params, Matrix grads, Matrix square_avg,
           Matrix momentum_buffer, Matrix grad_avg, Matrix params_out, Matrix square_avg_out,
           Matrix momentum_buffer_out, Matrix grad_avg_out, const LearningRate& lr, double alpha, double eps,
           double weight_decay, double momentum) {
            rmsprop_step({dtype, rows, columns, threads}, params, grads, square_avg, momentum_buffer, grad_avg,
                         params_out, square_avg_out, momentum_buffer_out, grad_avg_out, lr,
                         {alpha, eps, weight_decay, momentum});
        },
        no_gil);

    module.def(
        "reptile_interpolate",
        [](DType dtype, int64_t tasks, int64_t columns, int threads, uintptr_t initial, Matrix adapted,
           uintptr_t weights, uintptr_t out, double step_size) {
            reptile_interpolate({dtype, tasks, columns, threads}, pointer(initial), adapted, pointer(weights),
                                pointer(out), step_size);
        },
        no_gil);

    module.def(
        "reptile_gradient",
        [](DType dtype, int64_t tasks, int64_t columns, int threads, uintptr_t initial, Matrix adapted,
           uintptr_t weights, uintptr_t out) {
            reptile_gradient({dtype, tasks, columns, threads}, pointer(initial), adapted, pointer(weights),
                             pointer(out));
        },
        no_gil);

    module.def(
        "meta_adam_step",
        [](DType dtype, int64_t tasks, int64_t columns, int threads, uintptr_t params, Matrix adapted,
           uintptr_t weights, uintptr_t exp_avg, uintptr_t exp_avg_sq, uintptr_t params_out, uintptr_t exp_avg_out,
           uintptr_t exp_avg_sq_out, const LearningRate& lr, double beta1, double beta2, double inverse_bias1,
           double inverse_bias2, double eps, double weight_decay, bool decoupled) {
            meta_adam_step({dtype, tasks, columns, threads}, pointer(params), adapted, pointer(weights),
                           pointer(exp_avg), pointer(exp_avg_sq), pointer(params_out), pointer(exp_avg_out),
                           pointer(exp_avg_sq_out), lr,
                           {beta1, beta2, inverse_bias1, inverse_bias2, eps, 0, weight_decay, decoupled});
        },
        no_gil);

    module.def(
        "clip_grad_norm",
        [](DType dtype, int64_t rows, int64_t columns, int threads, Matrix grads, Matrix grads_out, uintptr_t norms_out,
           double max_norm) {
            clip_grad_norm({dtype, rows, columns, threads}, grads, grads_out, pointer(norms_out), max_norm);
        },
        no_gil);

    module.def(
        "ema_update",
        [](DType dtype, int64_t rows, int64_t columns, int threads, Matrix average, Matrix params, Matrix average_out,
           double decay) { ema_update({dtype, rows, columns, threads}, average, params, average_out, decay); },
        no_gil);
}
