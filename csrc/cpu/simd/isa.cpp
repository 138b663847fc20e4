// Detection of the instruction set.
#include "isa.h"

#include <atomic>
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace metagan {
namespace {

#ifdef __aarch64__
bool has_bf16() {
#if defined(__linux__)
    return getauxval(AT_HWCAP2) & HWCAP2_BF16;
#elif defined(__APPLE__)
    int found = 0;
    size_t size = sizeof found;
    return sysctlbyname("hw.optional.arm.FEAT_BF16", &found, &size, nullptr, 0) == 0 && found;
#else
    return false;
#endif
}
#endif

Isa best() {
    Isa result = kIsas[0];
    for (const Isa isa : kIsas)
        if (is_available(isa)) result = isa;
    return result;
}

std::atomic<Isa> current{best()};

}  // namespace

const char* name(Isa isa) {
#if defined(__x86_64__)
    constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512_bf16"};
#elif defined(__aarch64__)
    constexpr const char* kNames[] = {"neon", "neon_bf16"};
#else
    constexpr const char* kNames[] = {"portable"};
#endif
    return kNames[static_cast<int>(isa)];
}

bool is_available(Isa isa) {
    switch (isa) {
#if defined(__x86_64__)
        case Isa::avx512_bf16:
            return __builtin_cpu_supports("avx512bf16") && is_available(Isa::avx512);
        case Isa::avx512:
            return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && is_available(Isa::avx2);
        case Isa::avx2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#elif defined(__aarch64__)
        case Isa::neon_bf16:
            return has_bf16();
#endif
        default:
            return true;
    }
}

Isa current_isa() { return current.load(std::memory_order_relaxed); }

void set_current_isa(Isa isa) { current.store(isa, std::memory_order_relaxed); }

}  // namespace metagan
