// Memory plan of a network's values and cotangents. Values not read by a later pass are transient; buffers with
// disjoint lifetimes share memory, within a network and between networks.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/runtime/array.h"

namespace metagan {

// Buffers whose contents are valid during one pass of a network.
struct TransientArena {
    std::vector<int64_t> floats;  // size of each array: the maximum over the networks placed so far
    int64_t border_floats = 0, scratch_floats = 0;
    std::vector<Array<float>> arrays;
    Array<float> border, scratch;

    int64_t bytes() const;
    void allocate();
};

// Location of a buffer: an array of the network or, if transient, of the arena.
struct Place {
    bool transient = false;
    size_t array = 0;
};

// Locations of all values and cotangents of a network.
struct Placement {
    std::vector<Place> values, cotangents;
    std::vector<int64_t> own;  // sizes of the network's arrays, in floats

    Place add_own(int64_t floats);
};

// Assigns buffers to the arena's arrays in execution order.
class LivenessAllocator {
  public:
    explicit LivenessAllocator(TransientArena& arena) : arena_(arena), taken_(arena.floats.size()) {}

    // Best fit: the smallest free array that is large enough, else the largest one, which grows, else a new one.
    Place begin(int64_t floats);
    void end(const Place& place) { taken_[place.array] = false; }

  private:
    TransientArena& arena_;
    std::vector<bool> taken_;
};

}  // namespace metagan
