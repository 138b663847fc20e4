// Peak multiply-add rate of the processor, measured on registers alone. gemm_kernels.cpp compiles the kernel once for
// every instruction set.
#pragma once

#include <cstdint>

#include "cpu/simd/isa.h"

namespace metagan {

struct PeakKernel {
    float (*run)(int64_t steps, float factor, float term);
    int64_t multiply_adds;  // in a step
};

METAGAN_DECLARE_TABLES(PeakKernel, peak_kernel);

// Measures the multiply-adds a second of all `threads` together, for about `seconds`.
double multiply_add_rate(int threads, double seconds);

}  // namespace metagan
