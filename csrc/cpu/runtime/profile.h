// Where threads spend their time, by kind of work: off until asked for.
#pragma once

#include <cstdint>

namespace metagan {

enum class Work : int { other, multiply, weight_gradient, pack, normalization, activation, rearrange, update, outside };
constexpr int kWorks = static_cast<int>(Work::outside);  // what is outside any work is not counted

// Begins counting from 0, or ends it.
void set_profiling(bool on);
// Seconds of all threads together.
double profiled_seconds(Work);
// Counts what this thread does from now on as `work`; returns what it was doing.
Work begin_work(Work work);

// Counts what happens while it lives; within another, the time is taken out of the outer one.
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
