// Bindings of the fused ops over flat buffers, on a CPU and, if built with CUDA, on a GPU.
#include <string>

#include "bindings.h"
#ifdef METAGAN_WITH_CUDA
#include "cuda/kernels.h"
#endif
#include "ops/launch.h"

namespace metagan {
namespace {

// Item i of a tuple. A number out of range sets a Python error.
void* address(PyObject* tuple, Py_ssize_t i) { return PyLong_AsVoidPtr(PyTuple_GET_ITEM(tuple, i)); }
int64_t integer(PyObject* tuple, Py_ssize_t i) { return PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, i)); }

bool is_tuple(py::handle source, Py_ssize_t size) {
    return PyTuple_Check(source.ptr()) && PyTuple_GET_SIZE(source.ptr()) == size;
}

// Clears the Python error; true if there was none.
bool without_error() {
    if (!PyErr_Occurred()) return true;
    PyErr_Clear();
    return false;
}

}  // namespace
}  // namespace metagan

// Hand-written casters: on small buffers, converting the arguments dominates the cost of a call.
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

template <>
struct type_caster<metagan::Number> {
    PYBIND11_TYPE_CASTER(metagan::Number, const_name("float | tuple[int]"));

    bool load(handle source, bool) {
        if (metagan::is_tuple(source, 1))
            value = metagan::Number(static_cast<const double*>(metagan::address(source.ptr(), 0)));
        else
            value = PyFloat_AsDouble(source.ptr());
        return metagan::without_error();
    }
};

#ifdef METAGAN_WITH_CUDA
template <>
struct type_caster<metagan::cuda::Queue> {
    PYBIND11_TYPE_CASTER(metagan::cuda::Queue, const_name("tuple[int, int]"));

    bool load(handle source, bool) {
        if (!metagan::is_tuple(source, 2)) return false;
        value = {static_cast<int>(metagan::integer(source.ptr(), 0)), metagan::address(source.ptr(), 1)};
        return metagan::without_error();
    }
};
#endif

}  // namespace pybind11::detail

namespace metagan {
namespace {

// Ops with the same arguments on CPU and GPU, apart from `where`: a thread count or a CUDA stream.
template <class To, class Where>
void define_ops(py::module_& module, const std::string& prefix) {
    const auto no_gil = py::call_guard<py::gil_scoped_release>();
    const auto named = [&](const char* op) { return prefix + op; };

    module.def(
        named("sgd_step").c_str(),
        [](DType dtype, int64_t rows, int64_t columns, Where where, Matrix params, Matrix grads, Matrix momentum_buffer,
           Matrix params_out, Matrix momentum_buffer_out, const LearningRate& lr, double momentum, double dampening,
           double weight_decay, bool nesterov) {
            sgd_step(To{dtype, rows, columns, where}, params, grads, momentum_buffer, params_out, momentum_buffer_out,
                     lr, {momentum, dampening, weight_decay, nesterov});
        },
        no_gil);

    module.def(
        named("adam_step").c_str(),
        [](DType dtype, int64_t rows, int64_t columns, Where where, Matrix params, Matrix grads, Matrix exp_avg,
           Matrix exp_avg_sq, Matrix params_out, Matrix exp_avg_out, Matrix exp_avg_sq_out, const LearningRate& lr,
           double beta1, double beta2, Number inverse_bias1, Number inverse_bias2, double eps, double eps_root,
           double weight_decay, bool decoupled) {
            adam_step(To{dtype, rows, columns, where}, params, grads, exp_avg, exp_avg_sq, params_out, exp_avg_out,
                      exp_avg_sq_out, lr,
                      {beta1, beta2, inverse_bias1, inverse_bias2, eps, eps_root, weight_decay, decoupled});
        },
        no_gil);

    module.def(
        named("rmsprop_step").c_str(),
        [](DType dtype, int64_t rows, int64_t columns, Where where, Matrix params, Matrix grads, Matrix square_avg,
           Matrix momentum_buffer, Matrix grad_avg, Matrix params_out, Matrix square_avg_out,
           Matrix momentum_buffer_out, Matrix grad_avg_out, const LearningRate& lr, double alpha, double eps,
           double weight_decay, double momentum) {
            rmsprop_step(To{dtype, rows, columns, where}, params, grads, square_avg, momentum_buffer, grad_avg,
                         params_out, square_avg_out, momentum_buffer_out, grad_avg_out, lr,
                         {alpha, eps, weight_decay, momentum});
        },
        no_gil);

    module.def(
        named("reptile_interpolate").c_str(),
        [](DType dtype, int64_t tasks, int64_t columns, Where where, uintptr_t initial, Matrix adapted,
           uintptr_t weights, uintptr_t out, Number step_size) {
            reptile_interpolate(To{dtype, tasks, columns, where}, pointer(initial), adapted, pointer(weights),
                                pointer(out), step_size);
        },
        no_gil);

    module.def(
        named("reptile_gradient").c_str(),
        [](DType dtype, int64_t tasks, int64_t columns, Where where, uintptr_t initial, Matrix adapted,
           uintptr_t weights, uintptr_t out) {
            reptile_gradient(To{dtype, tasks, columns, where}, pointer(initial), adapted, pointer(weights),
                             pointer(out));
        },
        no_gil);

    module.def(
        named("meta_adam_step").c_str(),
        [](DType dtype, int64_t tasks, int64_t columns, Where where, uintptr_t params, Matrix adapted,
           uintptr_t weights, uintptr_t exp_avg, uintptr_t exp_avg_sq, uintptr_t params_out, uintptr_t exp_avg_out,
           uintptr_t exp_avg_sq_out, const LearningRate& lr, double beta1, double beta2, Number inverse_bias1,
           Number inverse_bias2, double eps, double weight_decay, bool decoupled) {
            meta_adam_step(To{dtype, tasks, columns, where}, pointer(params), adapted, pointer(weights),
                           pointer(exp_avg), pointer(exp_avg_sq), pointer(params_out), pointer(exp_avg_out),
                           pointer(exp_avg_sq_out), lr,
                           {beta1, beta2, inverse_bias1, inverse_bias2, eps, 0, weight_decay, decoupled});
        },
        no_gil);

    module.def(
        named("ema_update").c_str(),
        [](DType dtype, int64_t rows, int64_t columns, Where where, Matrix average, Matrix params, Matrix average_out,
           double decay) { ema_update(To{dtype, rows, columns, where}, average, params, average_out, decay); },
        no_gil);
}

#ifdef METAGAN_WITH_CUDA
void define_cuda(py::module_& module) {
    define_ops<cuda::DeviceLaunch, cuda::Queue>(module, "cuda_");
    module.def("cuda_clip_grad_norm_parts", &cuda::clip_grad_norm_parts);
    module.def(
        "cuda_clip_grad_norm",
        [](DType dtype, int64_t rows, int64_t columns, cuda::Queue where, Matrix grads, Matrix grads_out,
           uintptr_t norms_out, double max_norm, uintptr_t sums) {
            cuda::clip_grad_norm({dtype, rows, columns, where}, grads, grads_out, pointer(norms_out), max_norm,
                                 static_cast<double*>(pointer(sums)));
        },
        py::call_guard<py::gil_scoped_release>());
    module.def("cuda_problem", &cuda::cuda_problem);
}
#else
void define_cuda(py::module_& module) {
    module.def("cuda_problem", [] { return "the extension was built without CUDA: install it where nvcc is found"; });
}
#endif

}  // namespace

void define_updates(py::module_& module) {
    module.attr("FLOAT32") = static_cast<int>(DType::float32);
    module.attr("BFLOAT16") = static_cast<int>(DType::bfloat16);
    module.attr("FLOAT64") = static_cast<int>(DType::float64);

    define_ops<Launch, int>(module, "");
    module.def(
        "clip_grad_norm",
        [](DType dtype, int64_t rows, int64_t columns, int threads, Matrix grads, Matrix grads_out, uintptr_t norms_out,
           double max_norm) {
            clip_grad_norm({dtype, rows, columns, threads}, grads, grads_out, pointer(norms_out), max_norm);
        },
        py::call_guard<py::gil_scoped_release>());
    define_cuda(module);
}

}  // namespace metagan
