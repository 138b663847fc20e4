// The instruction set of the kernels, chosen when the program runs.
#pragma once

namespace metagan {

enum class Isa : int { portable, avx2, avx512 };
constexpr Isa kIsas[] = {Isa::portable, Isa::avx2, Isa::avx512};  // worst first

const char* name(Isa isa);
bool is_available(Isa isa);

// In use by every thread: the best available one, until another is set (which must be available).
Isa current_isa();
void set_current_isa(Isa isa);

}  // namespace metagan
