#include "patch_tables.h"

#include <algorithm>
#include <utility>

namespace metagan {
namespace {

int64_t divide_down(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// Whether to take rows apart by the taps that fall on padding, so many being useful of all. Parts share the passage of
// the weights through the caches, so little is enough.
bool is_worth_it(int64_t useful, int64_t all) { return useful * 100 < all * 97; }

}  // namespace

void Tables::finish() {
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

std::vector<Tables> tables(const Geometry& g, const Border& b, bool apart) {
    const auto valid = [&](int64_t row) {
        std::pair<int64_t, int64_t> taps{g.y.kernel, 0};  // first, one past the last
        for (int64_t k = 0; k < g.y.kernel; ++k) {
            const int64_t large = row * g.y.stride - g.y.padding + k * g.y.dilation;
            if (large < 0 || large >= g.y.large) continue;
            taps.first = std::min(taps.first, k);
            taps.second = std::max(taps.second, k + 1);
        }
        return taps;
    };
    int64_t useful = 0;
    for (int64_t row = 0; row < g.y.small; ++row) useful += std::max<int64_t>(0, valid(row).second - valid(row).first);
    apart = apart && is_worth_it(useful, g.y.small * g.y.kernel);
    std::vector<Tables> groups;
    std::pair<int64_t, int64_t> last{-1, -1};
    for (int64_t row = 0; row < g.y.small; ++row) {
        const auto taps = apart ? valid(row) : std::pair<int64_t, int64_t>{0, g.y.kernel};
        if (taps != last) {
            last = taps;
            groups.emplace_back();
            for (int64_t k = taps.first; k < taps.second; ++k)
                for (int64_t l = 0; l < g.x.kernel; ++l) {
                    groups.back().b_tap.push_back(static_cast<int32_t>(k * g.y.dilation * b.width + l * g.x.dilation));
                    groups.back().w_tap.push_back(static_cast<int32_t>(k * g.x.kernel + l));
                }
        }
        for (int64_t column = 0; column < g.x.small; ++column) {
            groups.back().b_position.push_back(static_cast<int32_t>(row * g.y.stride * b.width + column * g.x.stride));
            groups.back().y_position.push_back(static_cast<int32_t>(row * g.x.small + column));
        }
    }
    for (Tables& group : groups) group.finish();
    return groups;
}

}  // namespace gather

namespace spread {
namespace {

// Large rows of one remainder, and the taps that reach them from within the small image.
struct Part {
    std::vector<int64_t> positions, taps;
};

bool reaches(const Axis& a, int64_t position, int64_t tap) {
    return (position + a.padding - tap * a.dilation) % a.stride == 0;
}

std::vector<Part> parts(const Axis& a, int64_t remainder) {
    std::vector<Part> parts;
    int64_t useful = 0, all = 0;
    for (int64_t position = remainder; position < a.large; position += a.stride) {
        std::vector<int64_t> taps;
        for (int64_t tap = 0; tap < a.kernel; ++tap) {
            if (!reaches(a, position, tap)) continue;
            ++all;
            const int64_t small = divide_down(position + a.padding - tap * a.dilation, a.stride);
            if (small < 0 || small >= a.small) continue;
            ++useful;
            taps.push_back(tap);
        }
        if (parts.empty() || parts.back().taps != taps) parts.push_back({{}, taps});
        parts.back().positions.push_back(position);
    }
    if (is_worth_it(useful, all)) return parts;
    Part whole;
    for (int64_t position = remainder; position < a.large; position += a.stride) whole.positions.push_back(position);
    for (int64_t tap = 0; tap < a.kernel; ++tap)
        if (reaches(a, remainder, tap)) whole.taps.push_back(tap);
    return {whole};
}

Tables group(const Geometry& g, const Border& b, const Part& part, int64_t x) {
    Tables t;
    const auto small = [](const Axis& a, int64_t position, int64_t tap) {
        return divide_down(position + a.padding - tap * a.dilation, a.stride);
    };
    const int64_t y = part.positions.front();
    for (const int64_t k : part.taps)
        for (int64_t l = 0; l < g.x.kernel; ++l) {
            if (!reaches(g.x, x, l)) continue;
            t.b_tap.push_back(static_cast<int32_t>((small(g.y, y, k) + b.top) * b.width + small(g.x, x, l) + b.left));
            t.w_tap.push_back(static_cast<int32_t>(k * g.x.kernel + l));
        }
    for (const int64_t row : part.positions)
        for (int64_t column = x; column < g.x.large; column += g.x.stride) {
            t.b_position.push_back(static_cast<int32_t>((row - y) / g.y.stride * b.width + (column - x) / g.x.stride));
            t.y_position.push_back(static_cast<int32_t>(row * g.x.large + column));
        }
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

std::vector<Tables> tables(const Geometry& g, const Border& b) {
    std::vector<Tables> groups;
    for (int64_t y = 0; y < std::min(g.y.stride, g.y.large); ++y)
        for (int64_t x = 0; x < std::min(g.x.stride, g.x.large); ++x) {
            const std::vector<Part> rows = parts(g.y, y);
            for (const Part& part : rows) groups.push_back(group(g, b, part, x));
        }
    for (Tables& group : groups) group.finish();
    return groups;
}

}  // namespace spread
}  // namespace metagan
