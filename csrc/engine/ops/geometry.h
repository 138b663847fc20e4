// Geometry of a convolution: its two images, and their zero borders.
#pragma once

#include <cstdint>

#include "cpu/gemm/winograd_kernels.h"
#include "engine/plan.h"

namespace metagan {

struct Axis : Window {
    int64_t large, small;
};

struct Geometry {
    Axis y, x;
    int64_t large_channels, small_channels;

    int64_t taps() const { return y.kernel * x.kernel; }
    int64_t weights_of_small() const { return large_channels * taps(); }
    Shape shape(bool small) const {
        return small ? Shape{small_channels, y.small, x.small} : Shape{large_channels, y.large, x.large};
    }
};

// Zero border of an image.
struct Border {
    int64_t top = 0, left = 0, height = 0, width = 0;  // of the padded image
    bool needed = false;

    int64_t plane() const { return height * width; }
    void fill_tiles() { width = (width + kTileOutputs - 1) / kTileOutputs * kTileOutputs; }
};

}  // namespace metagan
