// Peak kernel: multiply-adds in registers; see peak.h. Included by gemm_kernels.cpp only.
#pragma once

#include "cpu/runtime/peak.h"
#include "micro_kernel.h"

namespace metagan {
namespace {

// Independent accumulators: enough to hide the latency of a multiply-add, with registers left for factor and term.
constexpr int kAccumulators = 2 * kTileRows;

// Iterates sum = sum * factor + term, which converges to term / (1 - factor).
float run_peak_kernel(int64_t steps, float factor, float term) {
    const FloatVector factors = FloatVector{} + factor, terms = FloatVector{} + term;
    FloatVector sums[kAccumulators], total = {};
#pragma GCC unroll 24
    for (int i = 0; i < kAccumulators; ++i) sums[i] = terms * static_cast<float>(i);
    for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 24
        for (int i = 0; i < kAccumulators; ++i) sums[i] = sums[i] * factors + terms;
    }
#pragma GCC unroll 24
    for (int i = 0; i < kAccumulators; ++i) total += sums[i];
    return total[0];
}

}  // namespace
}  // namespace metagan
