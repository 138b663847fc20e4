// Which memory holds a network's values and cotangents. What no later pass reads passes: it shares memory with what
// lives before and after it, in this network and in others.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/runtime/array.h"

namespace metagan {

// Memory in which nothing outlasts a pass of a network.
struct TransientArena {
    std::vector<int64_t> floats;  // of each array, as large as the networks placed so far need it
    int64_t border_floats = 0, scratch_floats = 0;
    std::vector<Array<float>> arrays;
    Array<float> border, scratch;

    int64_t bytes() const;
    void allocate();
};

// One of a network's own arrays, or of those that pass.
struct Place {
    bool passes = false;
    size_t array = 0;
};

struct Placement {
    std::vector<Place> values, cotangents;
    std::vector<int64_t> own;  // floats of each array

    Place add_own(int64_t floats);
};

// Who lives in which passing array, on the way through one pass.
class LivenessAllocator {
  public:
    explicit LivenessAllocator(TransientArena& passing) : passing_(passing), taken_(passing.floats.size()) {}

    // The smallest array that is large enough, else the largest, which grows, else a new one.
    Place begin(int64_t floats);
    void end(const Place& place) { taken_[place.array] = false; }

  private:
    TransientArena& passing_;
    std::vector<bool> taken_;
};

}  // namespace metagan
