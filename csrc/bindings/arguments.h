// Conversion of the ops' arguments from Python, and the binding of an op by the type of its function. Converters are
// hand-written: on small buffers, converting the arguments dominates the cost of a call.
#pragma once

#include <tuple>
#include <type_traits>

#include "bindings.h"
#include "cuda/kernels.h"
#include "ops/launch.h"

namespace metagan::arguments {

// Address operand, of any type.
struct Address {
    void* value;

    template <class T>
    operator T*() const {
        return static_cast<T*>(value);
    }
};

// Types of arguments: the text for error messages, and for structs, tuples in Python, the members in order.
template <class T>
struct Argument {};
template <>
struct Argument<Address> {
    static constexpr auto text = py::detail::const_name("int");
};
template <>
struct Argument<cuda::Queue> {
    static auto members(cuda::Queue& x) { return std::tie(x.device, x.stream); }
};
template <>
struct Argument<Launch> {
    static constexpr auto text = py::detail::const_name("Launch(dtype, rows, columns, threads)");
    static auto members(Launch& x) { return std::tie(x.dtype, x.rows, x.columns, x.threads); }
};
template <>
struct Argument<cuda::DeviceLaunch> {
    static constexpr auto text = py::detail::const_name("DeviceLaunch(dtype, rows, columns, (device, stream))");
    static auto members(cuda::DeviceLaunch& x) { return std::tie(x.dtype, x.rows, x.columns, x.queue); }
};
template <>
struct Argument<Matrix> {
    static constexpr auto text = py::detail::const_name("Matrix(address, row_stride) | None");
    static auto members(Matrix& x) { return std::tie(x.data, x.row_stride); }
};
template <>
struct Argument<LearningRate> {
    static constexpr auto text = py::detail::const_name(
        "float | LearningRate(address, row_stride, segment_stride, element_stride, segment_ends, segments)");
    static auto members(LearningRate& x) {
        return std::tie(x.data, x.row_stride, x.segment_stride, x.element_stride, x.segment_ends, x.segments);
    }
};
template <>
struct Argument<Number> {
    static constexpr auto text = py::detail::const_name("float | Number(address,)");
    static auto members(Number& x) { return std::tie(x.data); }
};
template <>
struct Argument<SgdOptions> {
    static constexpr auto text = py::detail::const_name("SgdOptions(momentum, dampening, weight_decay, nesterov)");
    static auto members(SgdOptions& x) { return std::tie(x.momentum, x.dampening, x.weight_decay, x.nesterov); }
};
template <>
struct Argument<AdamOptions> {
    static constexpr auto text = py::detail::const_name(
        "AdamOptions(beta1, beta2, inverse_bias1, inverse_bias2, eps, eps_root, weight_decay, decoupled)");
    static auto members(AdamOptions& x) {
        return std::tie(x.beta1, x.beta2, x.inverse_bias1, x.inverse_bias2, x.eps, x.eps_root, x.weight_decay,
                        x.decoupled);
    }
};
template <>
struct Argument<RmspropOptions> {
    static constexpr auto text = py::detail::const_name("RmspropOptions(alpha, eps, weight_decay, momentum)");
    static auto members(RmspropOptions& x) { return std::tie(x.alpha, x.eps, x.weight_decay, x.momentum); }
};

// Conversions of one object. They return false, perhaps with a Python error set, for a wrong type or a number out of
// range.
inline bool read(PyObject* source, int64_t& out) {
    out = PyLong_AsLongLong(source);
    return out != -1 || !PyErr_Occurred();
}
inline bool read(PyObject* source, int& out) {
    int64_t wide;
    if (!read(source, wide)) return false;
    out = static_cast<int>(wide);
    return out == wide;
}
inline bool read(PyObject* source, DType& out) {
    int code;
    if (!read(source, code)) return false;
    out = static_cast<DType>(code);
    return code >= 0 && out <= DType::float64;
}
inline bool read(PyObject* source, double& out) {
    out = PyFloat_AsDouble(source);
    return out != -1 || !PyErr_Occurred();
}
inline bool read(PyObject* source, bool& out) {
    py::detail::make_caster<bool> caster;
    if (!caster.load(source, true)) return false;
    out = py::detail::cast_op<bool>(caster);
    return true;
}
template <class T>
bool read(PyObject* source, T*& out) {
    out = static_cast<T*>(PyLong_AsVoidPtr(source));
    return out || !PyErr_Occurred();
}
inline bool read(PyObject* source, Address& out) { return read(source, out.value); }

inline bool read(PyObject* source, Number& out);
template <class T>
bool read(PyObject* source, T& out);

template <class T>
bool read_tuple(PyObject* source, T& out) {
    const auto read_items = [source](auto&... members) {
        Py_ssize_t i = 0;
        return PyTuple_Check(source) && PyTuple_GET_SIZE(source) == static_cast<Py_ssize_t>(sizeof...(members)) &&
               (read(PyTuple_GET_ITEM(source, i++), members) && ...);
    };
    return std::apply(read_items, Argument<T>::members(out));
}

template <class T>
bool read(PyObject* source, T& out) {
    return read_tuple(source, out);
}
inline bool read(PyObject* source, Matrix& out) { return source == Py_None || read_tuple(source, out); }
inline bool read(PyObject* source, Number& out) {
    return PyTuple_Check(source) ? read_tuple(source, out) : read(source, out.value);
}
inline bool read(PyObject* source, LearningRate& out) {
    if (!PyTuple_Check(source)) return read(source, out.value);
    return read_tuple(source, out) && (out.element_stride == 0 || out.element_stride == 1);
}

}  // namespace metagan::arguments

namespace pybind11::detail {

template <class T>
struct type_caster<T, std::void_t<decltype(metagan::arguments::Argument<T>::text)>> {
    PYBIND11_TYPE_CASTER(T, metagan::arguments::Argument<T>::text);

    bool load(handle source, bool) {
        if (metagan::arguments::read(source.ptr(), value)) return true;
        PyErr_Clear();
        return false;
    }
};

}  // namespace pybind11::detail

namespace metagan::arguments {

// Type of an operand as it comes from Python.
template <class T>
using FromPython = std::conditional_t<std::is_pointer_v<T>, Address, T>;

// Binds a function whose first argument is the launch. It runs without the GIL.
template <class To, class... Operands>
void define_op(py::module_& module, const char* name, void (*op)(const To&, Operands...)) {
    module.def(
        name, [op](const To& launch, FromPython<Operands>... operands) { op(launch, operands...); },
        py::call_guard<py::gil_scoped_release>());
}

}  // namespace metagan::arguments
