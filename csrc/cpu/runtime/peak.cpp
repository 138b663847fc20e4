// Measurement of the peak multiply-add rate.
#include "peak.h"

#include <atomic>
#include <chrono>

#include "cpu/dispatch.h"
#include "parallel.h"

namespace metagan {

double multiply_add_rate(int threads, double seconds) {
    using Clock = std::chrono::steady_clock;
    using Seconds = std::chrono::duration<double>;
    constexpr int64_t kSteps = 4096;  // some microseconds between two readings of the clock
    const PeakKernel& peak_kernel = metagan::peak_kernel();
    const volatile float factor = 0.5f, term = 1.0f;  // volatile: not constant-folded
    std::atomic<int64_t> blocks{0};
    const auto start = Clock::now();
    parallel_for(threads, threads, [&](int64_t) {
        do {
            const volatile float settled = peak_kernel.run(kSteps, factor, term);
            static_cast<void>(settled);
            blocks.fetch_add(1, std::memory_order_relaxed);
        } while (Seconds(Clock::now() - start).count() < seconds);
    });
    const double taken = Seconds(Clock::now() - start).count();
    return static_cast<double>(blocks.load() * kSteps * peak_kernel.multiply_adds) / taken;
}

}  // namespace metagan
