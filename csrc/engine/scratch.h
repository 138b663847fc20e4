#pragma once

#include <cstdint>

namespace metagan {

// Memory of the calling thread; it grows to what is asked for and stays. The next call may return the same.
float* thread_scratch(int64_t floats);

}  // namespace metagan
