// Kernel tables of the current instruction set.
#pragma once

#include "cpu/gemm/gemm.h"
#include "cpu/gemm/winograd_kernels.h"
#include "cpu/layers/layer_kernels.h"
#include "cpu/runtime/peak.h"
#include "cpu/updates/update_kernels.h"

namespace metagan {

const GemmKernels& gemm_kernels(Precision);
const LayerKernels& layer_kernels();
const cpu::UpdateKernels& update_kernels();
const WinogradKernels& winograd_kernels();
const PeakKernel& peak_kernel();

}  // namespace metagan
