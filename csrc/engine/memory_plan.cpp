#include "memory_plan.h"

#include <algorithm>
#include <numeric>

namespace metagan {

int64_t TransientArena::bytes() const {
    return std::accumulate(floats.begin(), floats.end(), border_floats + scratch_floats) * int64_t{sizeof(float)};
}

void TransientArena::allocate() {
    arrays.resize(floats.size());
    for (size_t i = 0; i < floats.size(); ++i) arrays[i].at_least(floats[i]);
    border.at_least(border_floats);
    scratch.at_least(scratch_floats);
}

Place Placement::add_own(int64_t floats) {
    own.push_back(floats);
    return {false, own.size() - 1};
}

Place LivenessAllocator::begin(int64_t floats) {
    std::vector<int64_t>& size = arena_.floats;
    size_t best = size.size();
    for (size_t i = 0; i < size.size(); ++i) {
        if (taken_[i]) continue;
        const bool fits = best < size.size() && size[best] >= floats;
        if (best == size.size() || (fits ? size[i] >= floats && size[i] < size[best] : size[i] > size[best])) best = i;
    }
    if (best == size.size()) {
        size.push_back(0);
        taken_.push_back(false);
    }
    size[best] = std::max(size[best], floats);
    taken_[best] = true;
    return {true, best};
}

}  // namespace metagan
