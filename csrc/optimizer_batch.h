// The tensors of an optimizer's group: Python's objects in, addresses out, in one pass over the parameters.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "dlpack.h"
#include "kernels.h"

namespace metagan {

// What one step updates. Keeps the tensors alive, so that the step can run without the GIL.
struct OptimizerBatch {
    std::vector<Piece> pieces;
    std::vector<dlpack::Tensor> steps;  // the tensors that count each parameter's steps
    pybind11::list written;             // parameters and state, without `steps`
    pybind11::list rest;                // parameters with a gradient that do not fit here
    pybind11::list read;                // gradients and `steps`

    // Adds one to every count. Needs the GIL, as every tensor does that others may read meanwhile.
    void count_step() const;
};

// Reads plain tensors of one framework, known by its classes and its table of DLPack functions.
class TensorReader {
  public:
    TensorReader(const pybind11::capsule& exchange_api, pybind11::type tensor, pybind11::type parameter);

    // Takes the parameters that have a gradient. One fits where it, its gradient and the tensors `keys` of its state (a
    // dict of `state`; None: no such tensor) are plain tensors on a CPU, of one dtype that the kernels know, laid out
    // alike without gaps. With `counted`, state "step" is the number of the steps before this one.
    OptimizerBatch gather(const pybind11::list& params, const pybind11::dict& state, const pybind11::tuple& keys,
                          bool counted) const;

  private:
    bool read(PyObject* object, dlpack::Tensor& out) const;
    bool add(OptimizerBatch& batch, PyObject* param, PyObject* grad, PyObject* state, const pybind11::tuple& keys,
             bool counted) const;

    const dlpack::ExchangeApi* api_;
    pybind11::type tensor_, parameter_;
    pybind11::str grad_ = "grad", step_ = "step", is_neg_ = "is_neg";
};

}  // namespace metagan
