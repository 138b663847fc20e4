// Profile of the time that threads spend by kind of work; off by default.
#pragma once

#include <cstdint>

namespace metagan {

enum class Work : int { other, multiply, weight_gradient, pack, normalization, activation, rearrange, update, outside };
constexpr int kWorks = static_cast<int>(Work::outside);  // `outside` is not counted

// Resets and starts the profile, or stops it.
void set_profiling(bool on);
// Returns the seconds spent in a kind of work, summed over threads.
double profiled_seconds(Work);
// Counts this thread's time from now on as `work`; returns the previous kind.
Work begin_work(Work work);

// Scope whose time counts as `work`; an inner scope's time is not counted by the outer one.
class Timed {
  public:
    explicit Timed(Work work) : before_(begin_work(work)) {}
    ~Timed() { begin_work(before_); }
    Timed(const Timed&) = delete;
    Timed& operator=(const Timed&) = delete;

  private:
    Work before_;
};

}  // namespace metagan
