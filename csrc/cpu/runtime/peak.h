// The rate of multiply-adds that the processor reaches at best: in registers, where they wait for nothing but each
// other. Compiled once for every instruction set, by gemm_kernels.cpp.
#pragma once

#include <cstdint>

namespace metagan {

struct PeakKernel {
    float (*run)(int64_t steps, float factor, float term);
    int64_t multiply_adds;  // of a step
};

extern const PeakKernel peak_kernel_portable;
extern const PeakKernel peak_kernel_avx2;
extern const PeakKernel peak_kernel_avx512;

// Multiply-adds a second of so many threads together, over about so many seconds.
double multiply_add_rate(int threads, double seconds);

}  // namespace metagan
