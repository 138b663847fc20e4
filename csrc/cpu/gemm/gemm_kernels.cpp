// Compiled once for every instruction set, METAGAN_ISA. No standard library code is used: an inline function of it,
// compiled here for a newer processor, could be the copy that the linker keeps for all.
#include "gemm.h"

#include "multiply.h"
#include "peak_kernels.h"
#include "weight_gradient.h"

namespace metagan {

const GemmKernels METAGAN_FOR_ISA(gemm_kernels_) = {multiply,    weight_gradient, kTileRows, kPanelColumns,
                                                    kLoneVector, nullptr,         nullptr};

const PeakKernel METAGAN_FOR_ISA(peak_kernel_) = {run_peak_kernel, kFloats * kChains};

}  // namespace metagan
