// Bindings of the optimizers: reads the tensors of a parameter group in one pass and runs steps on their addresses.
#include <algorithm>
#include <string>
#include <vector>

#include "arguments.h"
#include "bindings.h"
#include "dlpack.h"
#include "ops/launch.h"

namespace metagan {
namespace {

// Buffers of one optimizer step. Keeps the tensors alive, so that the step can run without the GIL.
struct OptimizerBatch {
    std::vector<Piece> pieces;
    std::vector<dlpack::Tensor> steps;  // step counters of the parameters
    py::list written;                   // parameters and state, without `steps`
    py::list rest;                      // parameters with a gradient that the kernels cannot update
    py::list read;                      // gradients and `steps`

    // Increments all step counters. Needs the GIL, because other threads may read these tensors.
    void count_step() const;
};

// Reads plain tensors of a framework, given its tensor classes and its table of DLPack functions.
class TensorReader {
  public:
    TensorReader(const py::capsule& exchange_api, py::type tensor, py::type parameter);

    // Gathers the parameters that have a gradient. One is eligible if it, its gradient and the tensors `keys` of its
    // state (a dict of `state`; key None: no such tensor) are plain CPU tensors of one supported dtype, with equal
    // dense strides. With `counted`, state "step" is the number of steps before this one.
    OptimizerBatch gather(const py::list& params, const py::dict& state, const py::tuple& keys, bool counted) const;

  private:
    bool read(PyObject* object, dlpack::Tensor& out) const;
    bool add(OptimizerBatch& batch, PyObject* param, PyObject* grad, PyObject* state, const py::tuple& keys,
             bool counted) const;

    const dlpack::ExchangeApi* api_;
    py::type tensor_, parameter_;
    py::str grad_ = "grad", step_ = "step", is_neg_ = "is_neg";
};

constexpr int kMostDims = 16;

int64_t numel(const dlpack::Tensor& tensor) {
    int64_t count = 1;
    for (int i = 0; i < tensor.ndim; ++i) count *= tensor.shape[i];
    return count;
}

void* address(const dlpack::Tensor& tensor) { return static_cast<char*>(tensor.data) + tensor.byte_offset; }

bool dtype_of(const dlpack::Tensor& tensor, DType& dtype) {
    const auto is = [&](uint8_t code, uint8_t bits) { return tensor.code == code && tensor.bits == bits; };
    if (tensor.lanes != 1) return false;
    if (is(dlpack::kFloat, 32)) return dtype = DType::float32, true;
    if (is(dlpack::kFloat, 64)) return dtype = DType::float64, true;
    if (is(dlpack::kBFloat, 16)) return dtype = DType::bfloat16, true;
    return false;
}

// Whether the tensor is dense: contiguous for some order of its dimensions.
bool is_dense(const dlpack::Tensor& tensor) {
    int order[kMostDims], dims = 0;
    for (int i = 0; i < tensor.ndim; ++i)
        if (tensor.shape[i] != 1) order[dims++] = i;
    int64_t expected = 1;
    for (int i = dims - 1; i >= 0; --i) {
        if (tensor.strides[order[i]] != expected) break;
        expected *= tensor.shape[order[i]];
        if (i == 0) return true;
    }
    std::sort(order, order + dims, [&](int a, int b) { return tensor.strides[a] < tensor.strides[b]; });
    expected = 1;
    for (int i = 0; i < dims; ++i) {
        if (tensor.strides[order[i]] != expected) return false;
        expected *= tensor.shape[order[i]];
    }
    return true;
}

bool is_like(const dlpack::Tensor& a, const dlpack::Tensor& b) {
    if (a.ndim != b.ndim || a.code != b.code || a.bits != b.bits || a.lanes != b.lanes) return false;
    for (int i = 0; i < a.ndim; ++i)
        if (a.shape[i] != b.shape[i] || (a.shape[i] != 1 && a.strides[i] != b.strides[i])) return false;
    return true;
}

double count_of(const dlpack::Tensor& step) {
    return step.bits == 64 ? *static_cast<double*>(address(step)) : *static_cast<float*>(address(step));
}

int64_t bytes_of(const Piece& piece) {
    return piece.size * (piece.dtype == DType::bfloat16 ? 2 : piece.dtype == DType::float64 ? 8 : 4);
}

// Appends `next` to `last` if it follows directly in every buffer; returns whether it did.
bool extend(Piece& last, const Piece& next) {
    if (last.dtype != next.dtype || last.step != next.step) return false;
    const int64_t bytes = bytes_of(last);
    const auto follows = [=](const void* a, const void* b) { return static_cast<const char*>(a) + bytes == b; };
    if (!follows(last.params, next.params) || !follows(last.grads, next.grads)) return false;
    for (int i = 0; i < kMostState; ++i)
        if (last.state[i] && !follows(last.state[i], next.state[i])) return false;
    last.size += next.size;
    return true;
}

// Whether parameters overlap in memory, as views of one tensor may, which would be a data race between threads.
bool any_overlap(const std::vector<Piece>& pieces) {
    std::vector<std::pair<const char*, const char*>> spans;
    spans.reserve(pieces.size());
    for (const Piece& piece : pieces) {
        const char* const begin = static_cast<const char*>(piece.params);
        spans.emplace_back(begin, begin + bytes_of(piece));
    }
    std::sort(spans.begin(), spans.end());
    for (size_t i = 1; i < spans.size(); ++i)
        if (spans[i].first < spans[i - 1].second) return true;
    return false;
}

void OptimizerBatch::count_step() const {
    for (const dlpack::Tensor& step : steps) {
        if (step.bits == 64)
            *static_cast<double*>(address(step)) += 1;
        else
            *static_cast<float*>(address(step)) += 1;
    }
}

TensorReader::TensorReader(const py::capsule& exchange_api, py::type tensor, py::type parameter)
    : api_(exchange_api.get_pointer<dlpack::ExchangeApi>()),
      tensor_(std::move(tensor)),
      parameter_(std::move(parameter)) {
    const std::string name = exchange_api.name() ? exchange_api.name() : "";
    if (name != dlpack::kCapsule || api_->major_version != dlpack::kMajorVersion || !api_->read)
        throw py::value_error("expected a DLPack exchange API of version 1 that can read tensors, got '" + name + "'");
}

OptimizerBatch TensorReader::gather(const py::list& params, const py::dict& state, const py::tuple& keys,
                                    bool counted) const {
    OptimizerBatch batch;
    std::vector<py::object> with_grad;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(params.ptr()); ++i) {
        const auto param = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(params.ptr(), i));
        const auto grad = py::reinterpret_steal<py::object>(PyObject_GetAttr(param.ptr(), grad_.ptr()));
        if (!grad) throw py::error_already_set();
        if (grad.is_none()) continue;
        const bool wanted = counted || PyTuple_GET_SIZE(keys.ptr()) > 0;
        PyObject* const of_param = wanted ? PyDict_GetItemWithError(state.ptr(), param.ptr()) : nullptr;
        if (!of_param && PyErr_Occurred()) throw py::error_already_set();
        if (!add(batch, param.ptr(), grad.ptr(), of_param, keys, counted)) batch.rest.append(param);
        with_grad.push_back(param);
    }
    if (!any_overlap(batch.pieces)) return batch;
    OptimizerBatch none;
    for (const py::object& param : with_grad) none.rest.append(param);
    return none;
}

bool TensorReader::read(PyObject* object, dlpack::Tensor& out) const {
    PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(object));
    if (type != tensor_.ptr() && type != parameter_.ptr()) return false;
    if (api_->read(object, &out) != 0) {  // it has no strides, no storage or a dtype that DLPack lacks
        PyErr_Clear();
        return false;
    }
    return out.device_type == dlpack::kCpu && out.ndim <= kMostDims && (out.data || numel(out) == 0);
}

bool TensorReader::add(OptimizerBatch& batch, PyObject* param, PyObject* grad, PyObject* state, const py::tuple& keys,
                       bool counted) const {
    Piece piece{};
    dlpack::Tensor p, g, step;
    if (!read(param, p) || !read(grad, g) || !dtype_of(p, piece.dtype) || !is_like(p, g)) return false;
    piece.size = numel(p);
    if (piece.size > 0 && !is_dense(p)) return false;
    if (piece.size == 1) {  // only at this size can imag() of a lazy conjugate, whose sign is not in its bits, be dense
        const auto is_neg = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(grad, is_neg_.ptr()));
        if (!is_neg) throw py::error_already_set();
        if (is_neg.ptr() != Py_False) return false;
    }
    piece.params = address(p);
    piece.grads = address(g);

    const Py_ssize_t count = PyTuple_GET_SIZE(keys.ptr());
    PyObject* tensors[kMostState] = {};
    if ((count || counted) && !(state && PyDict_Check(state))) return false;
    for (Py_ssize_t i = 0; i < count; ++i) {
        PyObject* const key = PyTuple_GET_ITEM(keys.ptr(), i);
        if (key == Py_None) continue;
        tensors[i] = PyDict_GetItemWithError(state, key);
        if (!tensors[i] && PyErr_Occurred()) throw py::error_already_set();
        dlpack::Tensor s;
        if (!tensors[i] || !read(tensors[i], s) || !is_like(p, s)) return false;
        piece.state[i] = address(s);
    }
    if (counted) {
        PyObject* const counter = PyDict_GetItemWithError(state, step_.ptr());
        if (!counter && PyErr_Occurred()) throw py::error_already_set();
        if (!counter || !read(counter, step) || step.ndim != 0) return false;
        if (step.code != dlpack::kFloat || (step.bits != 32 && step.bits != 64)) return false;
        piece.step = count_of(step) + 1;
        batch.steps.push_back(step);
        batch.read.append(py::handle(counter));
    }
    batch.read.append(py::handle(grad));
    batch.written.append(py::handle(param));
    for (Py_ssize_t i = 0; i < count; ++i)
        if (piece.state[i]) batch.written.append(py::handle(tensors[i]));
    if (batch.pieces.empty() || !extend(batch.pieces.back(), piece)) batch.pieces.push_back(piece);
    return true;
}

// Binds an optimizer's step. All step counters are incremented before any parameter is updated.
template <class Options>
void define_step(py::class_<OptimizerBatch>& batches, const char* name,
                 void (*step)(const std::vector<Piece>&, int threads, bool maximize, double lr, const Options&)) {
    batches.def(name, [step](OptimizerBatch& batch, int threads, bool maximize, double lr, const Options& options) {
        batch.count_step();
        const py::gil_scoped_release release;
        step(batch.pieces, threads, maximize, lr, options);
    });
}

}  // namespace

void define_optimizers(py::module_& module) {
    py::class_<OptimizerBatch> batches(module, "OptimizerBatch");
    batches.def_readonly("written", &OptimizerBatch::written).def_readonly("rest", &OptimizerBatch::rest);
    define_step(batches, "sgd_step", sgd_steps);
    define_step(batches, "adam_step", adam_steps);
    define_step(batches, "rmsprop_step", rmsprop_steps);
    py::class_<TensorReader>(module, "TensorReader")
        .def(py::init<const py::capsule&, py::type, py::type>())
        .def("gather", &TensorReader::gather);
}

}  // namespace metagan
