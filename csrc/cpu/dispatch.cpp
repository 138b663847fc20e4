// Run-time choice of the kernels by instruction set.
#include "cpu/dispatch.h"

#include "cpu/simd/isa.h"

namespace metagan {
namespace {

template <class Kernels>
const Kernels& choose(const Kernels& portable, const Kernels& avx2, const Kernels& avx512, const Kernels& avx512_bf16) {
    switch (current_isa()) {
        case Isa::avx512_bf16:
            return avx512_bf16;
        case Isa::avx512:
            return avx512;
        case Isa::avx2:
            return avx2;
        default:
            return portable;
    }
}

template <class Kernels>
const Kernels& choose(const Kernels& portable, const Kernels& avx2, const Kernels& avx512) {
    return choose(portable, avx2, avx512, avx512);
}

}  // namespace

#ifdef METAGAN_X86
const GemmKernels& gemm_kernels(Precision precision) {
    if (precision == Precision::float32) return choose(gemm_kernels_portable, gemm_kernels_avx2, gemm_kernels_avx512);
    return choose(gemm_bf16_kernels_portable, gemm_bf16_kernels_avx2, gemm_bf16_kernels_avx512,
                  gemm_bf16_kernels_avx512_bf16);
}
const LayerKernels& layer_kernels() { return choose(layer_kernels_portable, layer_kernels_avx2, layer_kernels_avx512); }
const cpu::UpdateKernels& update_kernels() {
    return choose(cpu::update_kernels_portable, cpu::update_kernels_avx2, cpu::update_kernels_avx512);
}
const WinogradKernels& winograd_kernels() {
    return choose(winograd_kernels_portable, winograd_kernels_avx2, winograd_kernels_avx512);
}
const PeakKernel& peak_kernel() { return choose(peak_kernel_portable, peak_kernel_avx2, peak_kernel_avx512); }
#else
const GemmKernels& gemm_kernels(Precision precision) {
    return precision == Precision::float32 ? gemm_kernels_portable : gemm_bf16_kernels_portable;
}
const LayerKernels& layer_kernels() { return layer_kernels_portable; }
const cpu::UpdateKernels& update_kernels() { return cpu::update_kernels_portable; }
const WinogradKernels& winograd_kernels() { return winograd_kernels_portable; }
const PeakKernel& peak_kernel() { return peak_kernel_portable; }
#endif

}  // namespace metagan
