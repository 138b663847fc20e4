// Indirection tables: offsets of a convolution's taps and positions in its two images, read by products
// (cpu/gemm/gemm.h).
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "geometry.h"

namespace metagan {

// Offsets of the taps and positions of a product.
struct IndirectionTable {
    std::vector<int32_t> b_tap, w_tap, b_position, y_position;
    int run = 1;

    void finish();  // sets `run`: positions are contiguous in runs whose lengths are multiples of it
};

// Output rows grouped by the taps that fall inside the image; padding-only taps are skipped. Small groups have fewer
// taps, large groups fill vectors of columns better; the value is the number of rows at a time.
using Groups = std::vector<IndirectionTable>;
enum class Grouping : int64_t { apart = 1, in_pairs = 2, together = INT64_MAX / 2 };
constexpr Grouping kGroupings[] = {Grouping::apart, Grouping::in_pairs, Grouping::together};

// Adds a grouping if it has fewer groups than the last one.
template <class Way>
void add_way(std::vector<Way>& ways, Way way) {
    if (ways.empty() || way.size() < ways.back().size()) ways.push_back(std::move(way));
}

// The grouping of least total cost; a coarser one must save at least 3 %.
template <class Way, class Cost>
const Way& cheapest(const std::vector<Way>& ways, const Cost& cost) {
    constexpr double kWorthwhile = 0.97;
    if (ways.size() == 1) return ways.front();
    const Way* cheapest = nullptr;
    double least = 0;
    for (const Way& way : ways) {
        double sum = 0;
        for (const auto& group : way) sum += cost(group);
        if (cheapest && sum >= kWorthwhile * least) continue;
        cheapest = &way;
        least = sum;
    }
    return *cheapest;
}

// Positions along an axis that share their taps.
struct Part {
    std::vector<int64_t> positions, taps;
};

// Small image from large image; along each axis large = small * stride - padding + tap * dilation.
namespace gather {

Border border(const Geometry&);
std::vector<Part> parts(const Axis&, Grouping);
Groups groups(const Geometry&, const Border&, Grouping);
// All rows with all taps, for weight gradients.
IndirectionTable all(const Geometry&, const Border&);

}  // namespace gather

// Large image from small image; small = (large + padding - tap * dilation) / stride, where that is an integer. Large
// positions with the same remainder modulo the stride have the same taps.
namespace spread {

Border border(const Geometry&);
std::vector<Part> parts(const Axis&, int64_t remainder, Grouping);
Groups groups(const Geometry&, const Border&, Grouping);

}  // namespace spread

}  // namespace metagan
