// Instruction set of the kernels, chosen at run time.
#pragma once

namespace metagan {

enum class Isa : int { portable, avx2, avx512, avx512_bf16 };  // avx512_bf16: avx512, except for bf16 products
constexpr Isa kIsas[] = {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512_bf16};  // worst first

const char* name(Isa isa);
bool is_available(Isa isa);

// Instruction set of all threads: the best available one, unless another available one is set.
Isa current_isa();
void set_current_isa(Isa isa);

}  // namespace metagan
