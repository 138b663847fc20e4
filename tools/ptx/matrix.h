// Shared-memory matrices of asynchronous products: the layout of their elements, and checks before they are read.
#pragma once

#include "block.h"

namespace ptx {

// Descriptor of a matrix in shared memory: the address, both offsets and the swizzle, in units of 16 bytes.
//
// A line is a row or, `transposed`, what all rows have at one k, in units of 16 bytes. Eight lines of `width` units lie
// one after the other; more lines follow by the stride, more units by the leading offset, and the other way round if
// transposed with no swizzle (a width of 1). A swizzle combines bits 4, 5, 6 of an address, as many as the width has,
// by exclusive or with bits 7, 8, 9.
struct Matrix {
    uint64_t start, leading, stride, width;
    bool transposed;

    // `fixed`: the descriptor's constant bits besides these fields.
    Matrix(const Thread& thread, int line, uint64_t descriptor, bool transposed, uint64_t fixed = 0);

    uint64_t address(uint32_t line, uint32_t unit) const {
        const uint64_t at = start + line % 8 * width + line / 8 * stride + unit % width + unit / width * leading;
        return (at ^ (at >> 3 & (width - 1))) * 16;
    }
};

// Return the last barrier after which all of these threads executed fence.proxy.async.
uint32_t last_proxy_fence(const Fiber* fibers, size_t count);

// Return the matrix (rows, k), k of 32 bytes, rows one after the other; its units' addresses go to `reading`. `fenced`
// is `last_proxy_fence` of the threads that start the product.
std::vector<float> read(Thread& thread, int line, const Matrix& matrix, uint32_t rows, bool is_bf16, uint32_t fenced,
                        std::vector<uint32_t>& reading);

}  // namespace ptx
