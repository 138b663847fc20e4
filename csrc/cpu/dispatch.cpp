// Run-time choice of the kernels by instruction set.
#include "cpu/dispatch.h"

#include "cpu/simd/isa.h"

namespace metagan {
namespace {

template <class Kernels>
struct Table {
    Isa isa;
    const Kernels* kernels;
};

// Returns the best table that the current instruction set runs.
template <class Kernels, int kCount>
const Kernels& choose(const Table<Kernels> (&tables)[kCount]) {
    const Isa isa = current_isa();
    for (const auto& table : tables)
        if (table.isa <= isa) return *table.kernels;
    return *tables[kCount - 1].kernels;
}

constexpr Table<GemmKernels> kGemm[] = {METAGAN_TABLES(gemm_kernels)};
constexpr Table<GemmKernels> kGemmBf16[] = {
#if defined(__x86_64__)
    {Isa::avx512_bf16, &gemm_bf16_kernels_avx512_bf16},
#elif defined(__aarch64__)
    {Isa::neon_bf16, &gemm_bf16_kernels_neon_bf16},
#endif
    METAGAN_TABLES(gemm_bf16_kernels)};
constexpr Table<LayerKernels> kLayer[] = {METAGAN_TABLES(layer_kernels)};
constexpr Table<cpu::UpdateKernels> kUpdate[] = {METAGAN_TABLES(cpu::update_kernels)};
constexpr Table<WinogradKernels> kWinograd[] = {METAGAN_TABLES(winograd_kernels)};
constexpr Table<PeakKernel> kPeak[] = {METAGAN_TABLES(peak_kernel)};

}  // namespace

const GemmKernels& gemm_kernels(Precision precision) {
    return precision == Precision::float32 ? choose(kGemm) : choose(kGemmBf16);
}
const LayerKernels& layer_kernels() { return choose(kLayer); }
const cpu::UpdateKernels& update_kernels() { return choose(kUpdate); }
const WinogradKernels& winograd_kernels() { return choose(kWinograd); }
const PeakKernel& peak_kernel() { return choose(kPeak); }

}  // namespace metagan
