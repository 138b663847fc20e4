// Where a convolution's taps and positions lie in its two images, as tables for products; see ../cpu/gemm.h.
#pragma once

#include <cstdint>
#include <vector>

#include "geometry.h"

namespace metagan {

// Offsets of a product's taps and positions.
struct Tables {
    std::vector<int32_t> b_tap, w_tap, b_position, y_position;
    int run = 1;

    void finish();  // finds `run`: positions come in runs, breaks are at multiples of it
};

// Where taps reach from a small position, along one axis: large = small * stride - padding + tap * dilation.
namespace gather {

Border border(const Geometry&);
// With `apart`, rows of the small image whose taps fall on different rows of padding are, where that saves enough.
std::vector<Tables> tables(const Geometry&, const Border&, bool apart);

}  // namespace gather

// Which small positions reach a large one: small = (large + padding - tap * dilation) / stride, where that is whole.
// Large positions of one remainder by the stride have the same taps.
namespace spread {

Border border(const Geometry&);
std::vector<Tables> tables(const Geometry&, const Border&);

}  // namespace spread

}  // namespace metagan
