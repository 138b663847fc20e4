// Products of operands rounded to bf16, compiled as gemm_kernels.cpp is.
#include "gemm.h"

#include "weight_gradient_bf16.h"
#include "multiply_bf16.h"

namespace metagan {

const GemmKernels METAGAN_FOR_ISA(gemm_bf16_kernels_) = {multiply_bf16, correlate_bf16, kTileRows, kPanelColumns,
                                                         kLoneWords,    to_words,       words_row};

}  // namespace metagan
