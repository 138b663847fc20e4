// The kernels of the instruction set in use.
#pragma once

#include "gemm.h"
#include "layer_kernels.h"
#include "peak.h"
#include "update_kernels.h"
#include "winograd_kernels.h"

namespace metagan {

const GemmKernels& gemm_kernels(Precision);
const LayerKernels& layer_kernels();
const UpdateKernels& update_kernels();
const WinogradKernels& winograd_kernels();
const Chains& chains();

}  // namespace metagan
