// The instruction set of the kernels, chosen when the program runs.
#pragma once

namespace metagan {

enum class Isa : int { portable, avx2, avx512, avx512_bf16 };  // the last differs in products of bf16 alone
constexpr Isa kIsas[] = {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512_bf16};  // worst first

const char* name(Isa isa);
bool is_available(Isa isa);

// In use by every thread: the best available one, until another is set (which must be available).
Isa current_isa();
void set_current_isa(Isa isa);

}  // namespace metagan
