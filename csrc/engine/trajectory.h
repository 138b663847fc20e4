// States of one network along an inner loop, for the reverse sweep. A loop of K steps is cut into segments: the state
// at each segment's start is kept, and the parameters before each update of one segment at a time; the sweep runs a
// segment again before it enters it. One segment keeps everything; segments of sqrt(K) steps keep about 2 sqrt(K)
// states (Chen et al. 2016, "Training deep nets with sublinear memory cost"). The same operations run again, so the
// bytes agree.
#pragma once

#include <vector>

#include "worker.h"

namespace metagan {

// Hands out consecutive parts of a block of memory, uninitialized or cleared.
class BumpAllocator {
  public:
    BumpAllocator(const Worker& worker, float* memory) : worker_(worker), memory_(memory) {}

    float* operator()(int64_t size) {
        memory_ += size;
        return memory_ - size;
    }

    float* zeros(int64_t size) {
        worker_.clear(memory_, size);
        return (*this)(size);
    }

  private:
    const Worker& worker_;
    float* memory_;
};

class Trajectory {
  public:
    // Sizes: parameters of the network, optimizer buffers, steps of the loop, updates a step, steps of a segment.
    struct Sizes {
        int64_t numel, buffers, steps, updates, segment;

        int64_t segments() const { return (steps + segment - 1) / segment; }
        int64_t between() const { return segment * updates - 1; }  // states within a segment, without its first
        int64_t floats() const { return ((segments() - 1) * (1 + buffers) + between()) * numel; }
    };

    // `live` is the state that the loop updates, from `initial` parameters and cleared buffers on.
    Trajectory(const Worker&, NetworkState& live, const float* initial, const Sizes&, BumpAllocator&);

    // Keeps the live state; called before each update, in order.
    void keep(int64_t update);
    // Parameters before an update, or after the last one, of the segment that is held.
    const float* before(int64_t update) const;
    bool holds(int64_t step) const { return step / sizes_.segment == held_; }
    // Returns the live state to the first step of a segment.
    void rewind(int64_t first_step);

  private:
    int64_t updates_of_segment() const { return sizes_.segment * sizes_.updates; }
    float* start(int64_t segment) const { return starts_ + (segment - 1) * (1 + sizes_.buffers) * sizes_.numel; }

    const Worker& worker_;
    NetworkState& live_;
    const float* initial_;
    Sizes sizes_;
    float *starts_, *between_;  // state at the start of each segment but the first; parameters within the one held
    int64_t updates_before_;    // of the optimizer, before the loop
    int64_t held_ = 0, started_ = 0;  // segment that is held; last one whose start is kept
};

}  // namespace metagan
