// Detection of the instruction set.
#include "isa.h"

#include <atomic>

namespace metagan {
namespace {

Isa best() {
    Isa result = Isa::portable;
    for (const Isa isa : kIsas)
        if (is_available(isa)) result = isa;
    return result;
}

std::atomic<Isa> current{best()};

}  // namespace

const char* name(Isa isa) {
    switch (isa) {
        case Isa::avx512_bf16:
            return "avx512_bf16";
        case Isa::avx512:
            return "avx512";
        case Isa::avx2:
            return "avx2";
        default:
            return "portable";
    }
}

bool is_available(Isa isa) {
#ifdef METAGAN_X86
    switch (isa) {
        case Isa::avx512_bf16:
            return __builtin_cpu_supports("avx512bf16") && is_available(Isa::avx512);
        case Isa::avx512:
            return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && is_available(Isa::avx2);
        case Isa::avx2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        default:
            return true;
    }
#else
    return isa == Isa::portable;
#endif
}

Isa current_isa() { return current.load(std::memory_order_relaxed); }

void set_current_isa(Isa isa) { current.store(isa, std::memory_order_relaxed); }

}  // namespace metagan
