// The launchers of csrc/cuda, run on the CPU: a Python module with the bindings of the extension's `cuda_*` ops.
#include "../../../csrc/cuda/clip_grad_norm.cu"
#include "../../../csrc/cuda/tasks.cu"
#include "../../../csrc/cuda/updates.cu"
#include "bindings/arguments.h"

using namespace metagan;

PYBIND11_MODULE(cuda_shim, module) {
#define METAGAN_DEFINE(op) arguments::define_op(module, #op, cuda::op);
    METAGAN_OPS(METAGAN_DEFINE)
    arguments::define_op(module, "clip_in_parts", cuda::clip_in_parts);
    module.def("clip_grad_norm_parts", &cuda::clip_grad_norm_parts);
    module.def("set_order", [](int order, unsigned seed) {
        shim::order = static_cast<shim::Order>(order);
        shim::seed = seed;
    });
    module.def("set_recording", [](bool on) { shim::recording = on; });
    module.def("recorded", [] {
        py::list arguments;
        for (const std::string& bytes : shim::recorded.arguments) arguments.append(py::bytes(bytes));
        return py::make_tuple(shim::recorded.type, arguments);
    });
}
