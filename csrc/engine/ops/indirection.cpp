#include "indirection.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace metagan {
namespace {

int64_t divide_down(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// Divides positions first, first + step, ... below `end` into parts, `at_a_time` positions each, with the taps that
// reach any of them, and merges adjacent parts with the same taps.
template <class Reaches>
std::vector<Part> parts_of(int64_t first, int64_t step, int64_t end, int64_t at_a_time, int64_t kernel,
                           const Reaches& reaches) {
    std::vector<Part> parts;
    for (int64_t position = first; position < end;) {
        Part part;
        for (int64_t i = 0; i < at_a_time && position < end; ++i, position += step) part.positions.push_back(position);
        for (int64_t tap = 0; tap < kernel; ++tap)
            if (std::any_of(part.positions.begin(), part.positions.end(), [&](int64_t p) { return reaches(p, tap); }))
                part.taps.push_back(tap);
        if (parts.empty() || parts.back().taps != part.taps)
            parts.push_back(part);
        else
            parts.back().positions.insert(parts.back().positions.end(), part.positions.begin(), part.positions.end());
    }
    return parts;
}

}  // namespace

void IndirectionTable::finish() {
    run = static_cast<int>(b_position.size());
    for (size_t i = 1; i < b_position.size(); ++i) {
        if (b_position[i] == b_position[i - 1] + 1 && y_position[i] == y_position[i - 1] + 1) continue;
        int64_t a = run, b = static_cast<int64_t>(i);
        while (b) std::swap(a %= b, b);
        run = static_cast<int>(a);
    }
}

namespace gather {

Border border(const Geometry& g) {
    const auto side = [](const Axis& a) {
        return std::max(a.large + a.padding, (a.small - 1) * a.stride + (a.kernel - 1) * a.dilation + 1);
    };
    Border b{g.y.padding, g.x.padding, side(g.y), side(g.x)};
    b.needed = b.top || b.left || b.height != g.y.large || b.width != g.x.large;
    if (b.needed) b.fill_tiles();
    return b;
}

std::vector<Part> parts(const Axis& a, Grouping at_a_time) {
    return parts_of(0, 1, a.small, static_cast<int64_t>(at_a_time), a.kernel, [&](int64_t position, int64_t tap) {
        const int64_t large = position * a.stride - a.padding + tap * a.dilation;
        return large >= 0 && large < a.large;
    });
}

namespace {

Part all_of(const Axis& a) {
    Part part{std::vector<int64_t>(static_cast<size_t>(a.small)), std::vector<int64_t>(static_cast<size_t>(a.kernel))};
    std::iota(part.positions.begin(), part.positions.end(), 0);
    std::iota(part.taps.begin(), part.taps.end(), 0);
    return part;
}

IndirectionTable tables(const Geometry& g, const Border& b, const Part& rows, const Part& columns) {
    IndirectionTable t;
    for (const int64_t k : rows.taps)
        for (const int64_t l : columns.taps) {
            t.b_tap.push_back(static_cast<int32_t>(k * g.y.dilation * b.width + l * g.x.dilation));
            t.w_tap.push_back(static_cast<int32_t>(k * g.x.kernel + l));
        }
    for (const int64_t row : rows.positions)
        for (const int64_t column : columns.positions) {
            t.b_position.push_back(static_cast<int32_t>(row * g.y.stride * b.width + column * g.x.stride));
            t.y_position.push_back(static_cast<int32_t>(row * g.x.small + column));
        }
    t.finish();
    return t;
}

}  // namespace

Groups groups(const Geometry& g, const Border& b, Grouping at_a_time) {
    Groups groups;
    for (const Part& rows : parts(g.y, at_a_time))
        groups.push_back(tables(g, b, rows, parts(g.x, Grouping::together).front()));
    return groups;
}

IndirectionTable all(const Geometry& g, const Border& b) { return tables(g, b, all_of(g.y), all_of(g.x)); }

}  // namespace gather

namespace spread {
namespace {

int64_t small(const Axis& a, int64_t position, int64_t tap) {
    return divide_down(position + a.padding - tap * a.dilation, a.stride);
}

IndirectionTable tables(const Geometry& g, const Border& b, const Part& rows, const Part& columns) {
    IndirectionTable t;
    const int64_t y = rows.positions.front(), x = columns.positions.front();
    for (const int64_t k : rows.taps)
        for (const int64_t l : columns.taps) {
            t.b_tap.push_back(static_cast<int32_t>((small(g.y, y, k) + b.top) * b.width + small(g.x, x, l) + b.left));
            t.w_tap.push_back(static_cast<int32_t>(k * g.x.kernel + l));
        }
    for (const int64_t row : rows.positions)
        for (const int64_t column : columns.positions) {
            t.b_position.push_back(static_cast<int32_t>((row - y) / g.y.stride * b.width + (column - x) / g.x.stride));
            t.y_position.push_back(static_cast<int32_t>(row * g.x.large + column));
        }
    t.finish();
    return t;
}

}  // namespace

Border border(const Geometry& g) {
    const auto before = [](const Axis& a) {
        return std::max<int64_t>(0, -divide_down(a.padding - (a.kernel - 1) * a.dilation, a.stride));
    };
    const auto side = [&](const Axis& a) {
        return before(a) + std::max(a.small, divide_down(a.large - 1 + a.padding, a.stride) + 1);
    };
    Border b{before(g.y), before(g.x), side(g.y), side(g.x)};
    b.needed = b.height != g.y.small || b.width != g.x.small;
    if (b.needed) b.fill_tiles();
    return b;
}

std::vector<Part> parts(const Axis& a, int64_t remainder, Grouping at_a_time) {
    return parts_of(remainder, a.stride, a.large, static_cast<int64_t>(at_a_time), a.kernel,
                    [&](int64_t position, int64_t tap) {
                        if ((position + a.padding - tap * a.dilation) % a.stride != 0) return false;
                        return small(a, position, tap) >= 0 && small(a, position, tap) < a.small;
                    });
}

Groups groups(const Geometry& g, const Border& b, Grouping at_a_time) {
    Groups groups;
    for (int64_t y = 0; y < std::min(g.y.stride, g.y.large); ++y)
        for (int64_t x = 0; x < std::min(g.x.stride, g.x.large); ++x)
            for (const Part& rows : parts(g.y, y, at_a_time))
                groups.push_back(tables(g, b, rows, parts(g.x, x, Grouping::together).front()));
    return groups;
}

}  // namespace spread
}  // namespace metagan
