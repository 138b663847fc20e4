#include "scratch.h"

#include <algorithm>
#include <vector>

#include "cpu/runtime/array.h"

namespace metagan {

float* thread_scratch(int64_t floats) {
    thread_local Array<float> array;
    return array.at_least(std::max(floats, kScratchFloats));
}

const int32_t* thread_iota(int64_t size) {
    thread_local std::vector<int32_t> table;
    while (static_cast<int64_t>(table.size()) < size) table.push_back(static_cast<int32_t>(table.size()));
    return table.data();
}

}  // namespace metagan
