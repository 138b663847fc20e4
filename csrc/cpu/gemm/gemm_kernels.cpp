// Compiled once for every instruction set, METAGAN_ISA. No standard library code is used: an inline function of it,
// compiled here for a newer processor, could be the copy that the linker keeps for all.
#include "gemm.h"

#include "peak_kernels.h"
#include "weight_gradient.h"
#include "multiply.h"

namespace metagan {

const GemmKernels METAGAN_FOR_ISA(gemm_kernels_) = {multiply,    correlate, kTileRows, kPanelColumns,
                                                    kLoneVector, nullptr,   nullptr};

const Chains METAGAN_FOR_ISA(chains_) = {run_chains, kFloats * kChains};

}  // namespace metagan
