// PeakKernel of multiply-adds; see peak.h. Included by gemm_kernels.cpp alone.
#pragma once

#include "cpu/runtime/peak.h"
#include "micro_kernel.h"

namespace metagan {
namespace {

// So many independent sums hide the latency of a multiply-add and leave registers for factor and term.
constexpr int kChains = 2 * kTileRows;

// The sums settle at term / (1 - factor).
float run_peak_kernel(int64_t steps, float factor, float term) {
    const FloatVector factors = FloatVector{} + factor, terms = FloatVector{} + term;
    FloatVector sums[kChains], total = {};
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) sums[i] = terms * static_cast<float>(i);
    for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 24
        for (int i = 0; i < kChains; ++i) sums[i] = sums[i] * factors + terms;
    }
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) total += sums[i];
    return total[0];
}

}  // namespace
}  // namespace metagan
