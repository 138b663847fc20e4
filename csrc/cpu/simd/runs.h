// Runs of adjacent elements of the layer kernels: taken by vectors, by fours, one by one, and summed.
#pragma once

#include "vector.h"

namespace metagan {
namespace {

// Calls body(i, kind) for [0, length): by vectors as far as they go, then by four, then one by one.
template <class Body>
METAGAN_INLINE void for_each(int64_t length, const Body& body) {
    int64_t i = 0;
    for (; i + kFloats <= length; i += kFloats) body(i, FloatVector{});
    for (; i + 4 <= length; i += 4) body(i, FloatQuad{});
    for (; i < length; ++i) body(i, 0.f);
}

// Sums over runs: float for some thousand elements, double across these.
template <int kSums>
class Sums {
  public:
    // Adds what term(i, sums) adds to sums[], which are vectors or numbers, for [0, length).
    template <class Term>
    METAGAN_INLINE void add(int64_t length, const Term& term) {
        int64_t i = 0;
        for (; i + kFloats <= length; i += kFloats) term(i, wide_);
        for (; i + 4 <= length; i += 4) term(i, quad_);
        for (; i < length; ++i) term(i, narrow_);
        pending_ += length;
        if (pending_ >= 64 * kFloats) flush();
    }

    METAGAN_INLINE double operator[](int s) {
        if (pending_ > 0) flush();
        return totals_[s];
    }

  private:
    METAGAN_INLINE void flush() {
        for (int s = 0; s < kSums; ++s) {
            const float quad = (quad_[s][0] + quad_[s][2]) + (quad_[s][1] + quad_[s][3]);
            totals_[s] += static_cast<double>(total(wide_[s]) + (quad + narrow_[s]));
            wide_[s] = FloatVector{};
            quad_[s] = FloatQuad{};
            narrow_[s] = 0;
        }
        pending_ = 0;
    }

    FloatVector wide_[kSums] = {};
    FloatQuad quad_[kSums] = {};
    float narrow_[kSums] = {};
    double totals_[kSums] = {};
    int64_t pending_ = 0;
};

}  // namespace
}  // namespace metagan
