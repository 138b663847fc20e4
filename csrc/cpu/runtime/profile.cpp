// Time of each kind of work, summed over threads.
#include "profile.h"

#include <atomic>
#include <chrono>

namespace metagan {
namespace {

std::atomic<bool> profiling{false};
std::atomic<int64_t> nanoseconds[kWorks];

// The work of a thread, and since when it has been counted (0: not counted).
struct Current {
    Work work = Work::outside;
    int64_t since = 0;
};
thread_local Current current;

int64_t now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

}  // namespace

void set_profiling(bool on) {
    if (on)
        for (auto& sum : nanoseconds) sum.store(0, std::memory_order_relaxed);
    profiling.store(on, std::memory_order_relaxed);
}

double profiled_seconds(Work work) {
    return 1e-9 * static_cast<double>(nanoseconds[static_cast<int>(work)].load(std::memory_order_relaxed));
}

Work begin_work(Work work) {
    const Work before = current.work;
    current.work = work;
    if (!profiling.load(std::memory_order_relaxed)) {
        current.since = 0;
        return before;
    }
    const int64_t time = now();
    if (before != Work::outside && current.since > 0)
        nanoseconds[static_cast<int>(before)].fetch_add(time - current.since, std::memory_order_relaxed);
    current.since = time;
    return before;
}

}  // namespace metagan
