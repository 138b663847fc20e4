// Where a convolution's taps and positions lie in its two images, as tables for products; see ../cpu/gemm.h.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "geometry.h"

namespace metagan {

// Offsets of a product's taps and positions.
struct IndirectionTable {
    std::vector<int32_t> b_tap, w_tap, b_position, y_position;
    int run = 1;

    void finish();  // finds `run`: positions come in runs, breaks are at multiples of it
};

// Rows in groups, whose products have those taps alone that reach any of their pixels from within the image. Taken
// apart, rows have fewer taps; taken together, so many at a time, fuller vectors of columns.
using Groups = std::vector<IndirectionTable>;
enum class Grouping : int64_t { apart = 1, in_pairs = 2, together = INT64_MAX / 2 };
constexpr Grouping kGroupings[] = {Grouping::apart, Grouping::in_pairs, Grouping::together};

// Adds a way of grouping rows, if it has fewer groups than those that are there.
template <class Way>
void add_way(std::vector<Way>& ways, Way way) {
    if (ways.empty() || way.size() < ways.back().size()) ways.push_back(std::move(way));
}

// The way whose groups cost least in all; rows are taken together where that saves enough.
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

// Positions along an axis and the taps of their product.
struct Part {
    std::vector<int64_t> positions, taps;
};

// Where taps reach from a small position, along one axis: large = small * stride - padding + tap * dilation.
namespace gather {

Border border(const Geometry&);
std::vector<Part> parts(const Axis&, Grouping);
Groups groups(const Geometry&, const Border&, Grouping);
// All rows with all taps.
IndirectionTable all(const Geometry&, const Border&);

}  // namespace gather

// Which small positions reach a large one: small = (large + padding - tap * dilation) / stride, where that is whole.
// Large positions of one remainder by the stride have the same taps.
namespace spread {

Border border(const Geometry&);
std::vector<Part> parts(const Axis&, int64_t remainder, Grouping);
Groups groups(const Geometry&, const Border&, Grouping);

}  // namespace spread

}  // namespace metagan
