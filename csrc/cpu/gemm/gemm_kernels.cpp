// GEMM kernels in float32, compiled once for every instruction set, METAGAN_ISA. No standard library code is used: the
// linker keeps one copy of an inline function for the whole program, which could be the one compiled here for a newer
// processor.
#include "gemm.h"

#include "multiply.h"
#include "peak_kernels.h"
#include "weight_gradient.h"

namespace metagan {

const GemmKernels METAGAN_FOR_ISA(gemm_kernels_) = {multiply,    weight_gradient, kTileRows, kPanelColumns,
                                                    kLoneVector, nullptr,         nullptr};

const PeakKernel METAGAN_FOR_ISA(peak_kernel_) = {run_peak_kernel, kFloats * kAccumulators};

}  // namespace metagan
