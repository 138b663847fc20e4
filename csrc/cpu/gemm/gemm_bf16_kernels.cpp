// GEMM kernels with operands in bf16, compiled once for every instruction set, as gemm_kernels.cpp.
#include "gemm.h"

#include "multiply_bf16.h"
#include "weight_gradient_bf16.h"

namespace metagan {

const GemmKernels METAGAN_FOR_ISA(gemm_bf16_kernels_) = {multiply_bf16, weight_gradient_bf16, kTileRows, kPanelColumns,
                                                         kLonePairs,    to_bf16_pairs,        pairs_row};

}  // namespace metagan
