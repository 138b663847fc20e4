// Instruction set of the kernels, chosen at run time.
#pragma once

namespace metagan {

// Instruction sets of the architecture, worst first; *_bf16 differ in bf16 products only. Every 64-bit ARM processor
// has NEON. processor has NEON.
#if defined(__x86_64__)
enum class Isa : int { portable, avx2, avx512, avx512_bf16 };
constexpr Isa kIsas[] = {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512_bf16};
#elif defined(__aarch64__)
enum class Isa : int { neon, neon_bf16 };
constexpr Isa kIsas[] = {Isa::neon, Isa::neon_bf16};
#else
enum class Isa : int { portable };
constexpr Isa kIsas[] = {Isa::portable};
#endif

const char* name(Isa isa);
bool is_available(Isa isa);

// Declares the tables of a kind of kernels, one for each instruction set; METAGAN_TABLES lists them, best first.
#if defined(__x86_64__)
#define METAGAN_DECLARE_TABLES(Kernels, kernels) \
    extern const Kernels kernels##_portable, kernels##_avx2, kernels##_avx512
#define METAGAN_TABLES(kernels) \
    {Isa::avx512, &kernels##_avx512}, {Isa::avx2, &kernels##_avx2}, { Isa::portable, &kernels##_portable }
#elif defined(__aarch64__)
#define METAGAN_DECLARE_TABLES(Kernels, kernels) extern const Kernels kernels##_neon
#define METAGAN_TABLES(kernels) {Isa::neon, &kernels##_neon}
#else
#define METAGAN_DECLARE_TABLES(Kernels, kernels) extern const Kernels kernels##_portable
#define METAGAN_TABLES(kernels) {Isa::portable, &kernels##_portable}
#endif

// Instruction set of all threads: the best available one, unless another available one is set.
Isa current_isa();
void set_current_isa(Isa isa);

}  // namespace metagan
