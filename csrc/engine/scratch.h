#pragma once

#include <cstdint>

namespace metagan {

// Of a thread to begin with, so that it seldom grows: products on 32 x 32 pixels take as much.
constexpr int64_t kScratchFloats = 448 * 1024;

// Memory of the calling thread; it grows to what is asked for and stays. The next call may return the same.
float* thread_scratch(int64_t floats);

// 0, 1, 2, ..., for as long as the thread asks for no more.
const int32_t* thread_iota(int64_t size);

}  // namespace metagan
