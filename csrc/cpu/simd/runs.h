// Loops and sums over runs of adjacent elements, for the layer kernels: vectors, then fours, then single elements.
#pragma once

#include "vector.h"

// Attribute of a lambda that `Sums::add` calls: inlined late, it would hold the sums in memory.
#define METAGAN_INLINED __attribute__((always_inline))

namespace metagan {
namespace {

// Calls body(i, kind) for [0, length): whole vectors, then fours, then single elements. The type of `kind` says which.
template <class Body>
METAGAN_INLINE void for_each(int64_t length, const Body& body) {
    int64_t i = 0;
    for (; i + kFloats <= length; i += kFloats) body(i, FloatVector{});
    for (; i + 4 <= length; i += 4) body(i, FloatQuad{});
    for (; i < length; ++i) body(i, 0.f);
}

// kSums sums over runs: in float32 until at least 64 vectors of elements are pending, then added to a float64 total.
template <int kSums>
class Sums {
  public:
    // Calls term(i, sums), which adds to sums[] (vectors, fours or single elements), for [0, length).
    template <class Term>
    METAGAN_INLINE void add(int64_t length, const Term& term) {
        int64_t i = 0;
        FloatVector vector[kSums];
        copy<kSums>(vector_, vector);
        for (; i + kFloats <= length; i += kFloats) term(i, vector);
        copy<kSums>(vector, vector_);
        for (; i + 4 <= length; i += 4) term(i, quad_);
        for (; i < length; ++i) term(i, scalar_);
        pending_ += length;
        if (pending_ >= 64 * kFloats) flush();
    }

    METAGAN_INLINE double operator[](int s) {
        if (pending_ > 0) flush();
        return totals_[s];
    }

  private:
    // Without a loop over the sums, which would hold them in memory.
    template <int kCount>
    static METAGAN_INLINE void copy(const FloatVector* from, FloatVector* to) {
        if constexpr (kCount > 0) {
            to[kCount - 1] = from[kCount - 1];
            copy<kCount - 1>(from, to);
        }
    }

    // Out of line: otherwise GCC holds the sums in memory, for the accesses to single lanes.
    __attribute__((noinline)) void flush() {
        for (int s = 0; s < kSums; ++s) {
            const float quad = (quad_[s][0] + quad_[s][2]) + (quad_[s][1] + quad_[s][3]);
            totals_[s] += static_cast<double>(total(vector_[s]) + (quad + scalar_[s]));
            vector_[s] = FloatVector{};
            quad_[s] = FloatQuad{};
            scalar_[s] = 0;
        }
        pending_ = 0;
    }

    FloatVector vector_[kSums] = {};
    FloatQuad quad_[kSums] = {};
    float scalar_[kSums] = {};
    double totals_[kSums] = {};
    int64_t pending_ = 0;
};

}  // namespace
}  // namespace metagan
