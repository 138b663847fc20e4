// Bindings of the fused ops over flat buffers, on a CPU and, if built with CUDA, on a GPU.
#include "arguments.h"
#include "bindings.h"
#include "cuda/kernels.h"
#include "ops/launch.h"

namespace metagan {

void define_updates(py::module_& module) {
    module.attr("FLOAT32") = static_cast<int>(DType::float32);
    module.attr("BFLOAT16") = static_cast<int>(DType::bfloat16);
    module.attr("FLOAT64") = static_cast<int>(DType::float64);

#define METAGAN_DEFINE(op) arguments::define_op(module, #op, op);
    METAGAN_OPS(METAGAN_DEFINE)
#undef METAGAN_DEFINE

#ifdef METAGAN_WITH_CUDA
#define METAGAN_DEFINE(op) arguments::define_op(module, "cuda_" #op, cuda::op);
    METAGAN_OPS(METAGAN_DEFINE)
#undef METAGAN_DEFINE
    module.def("cuda_clip_grad_norm_parts", &cuda::clip_grad_norm_parts);
    module.def("cuda_problem", &cuda::cuda_problem);
#else
    module.def("cuda_problem", [] { return "the extension was built without CUDA: install it where nvcc is found"; });
#endif
}

}  // namespace metagan
