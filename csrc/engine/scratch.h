// Scratch memory of the calling thread.
#pragma once

#include <cstdint>

namespace metagan {

// Initial size, enough for matrix products on 32 x 32 pixels, so that it seldom grows.
constexpr int64_t kScratchFloats = 448 * 1024;

// At least `floats` floats, kept until the thread ends; each call invalidates the memory of the previous one.
float* thread_scratch(int64_t floats);

// 0, 1, 2, ..., valid until the thread asks for a larger size.
const int32_t* thread_iota(int64_t size);

}  // namespace metagan
