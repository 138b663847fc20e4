// The rate of multiply-adds that the processor reaches at best: in registers, where they wait for nothing but each
// other. Every instruction set has its loop here, by an attribute, as the file that includes this is compiled for the
// least of them.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

#include "isa.h"
#include "parallel.h"

namespace metagan {
namespace {

struct Chains {
    float (*run)(int64_t steps, float factor, float term);
    int64_t multiply_adds;  // of a step
};

// So many independent sums hide the latency of a multiply-add and leave registers for factor and term. They settle at
// term / (1 - factor). In one expression GCC and Clang fuse product and sum of their own accord. A macro, because GCC
// takes vectors of a template apart before it looks at the attribute of a caller.
#define METAGAN_CHAINS(name, attribute, bytes, count)                                                       \
    attribute inline float name##_run(int64_t steps, float factor, float term) {                            \
        using Vector = float __attribute__((vector_size(bytes)));                                           \
        const Vector factors = Vector{} + factor, terms = Vector{} + term;                                  \
        Vector sums[count], total = {};                                                                     \
        _Pragma("GCC unroll 24") for (int i = 0; i < (count); ++i) sums[i] = terms * float(i);              \
        for (int64_t step = 0; step < steps; ++step) {                                                      \
            _Pragma("GCC unroll 24") for (int i = 0; i < (count); ++i) sums[i] = sums[i] * factors + terms; \
        }                                                                                                   \
        _Pragma("GCC unroll 24") for (int i = 0; i < (count); ++i) total += sums[i];                        \
        return total[0];                                                                                    \
    }                                                                                                       \
    constexpr Chains name = {name##_run, (bytes) / 4 * (count)};

#ifdef __aarch64__
METAGAN_CHAINS(chains_portable, , 16, 24)  // 32 registers, and up to four multiply-adds a cycle
#else
METAGAN_CHAINS(chains_portable, , 16, 12)
#endif
#ifdef METAGAN_X86
METAGAN_CHAINS(chains_avx2, __attribute__((target("avx2,fma"))), 32, 12)
METAGAN_CHAINS(chains_avx512, __attribute__((target("avx512f,fma"))), 64, 24)
#endif
#undef METAGAN_CHAINS

inline Chains current_chains() {
#ifdef METAGAN_X86
    if (current_isa() == Isa::avx512 || current_isa() == Isa::avx512_bf16) return chains_avx512;
    if (current_isa() == Isa::avx2) return chains_avx2;
#endif
    return chains_portable;
}

// Multiply-adds a second of so many threads together, over about so many seconds.
inline double multiply_add_rate(int threads, double seconds) {
    using Clock = std::chrono::steady_clock;
    using Seconds = std::chrono::duration<double>;
    constexpr int64_t kSteps = 4096;  // some microseconds between two looks at the clock
    const Chains chains = current_chains();
    const volatile float factor = 0.5f, term = 1.0f;  // unknown to the compiler
    std::atomic<int64_t> blocks{0};
    const auto start = Clock::now();
    parallel_for(threads, threads, [&](int64_t) {
        do {
            const volatile float settled = chains.run(kSteps, factor, term);
            static_cast<void>(settled);
            blocks.fetch_add(1, std::memory_order_relaxed);
        } while (Seconds(Clock::now() - start).count() < seconds);
    });
    const double taken = Seconds(Clock::now() - start).count();
    return static_cast<double>(blocks.load() * kSteps * chains.multiply_adds) / taken;
}

}  // namespace
}  // namespace metagan
