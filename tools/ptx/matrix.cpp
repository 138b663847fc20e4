#include "matrix.h"

#include <algorithm>

namespace ptx {
namespace {

float number_at(const uint8_t* bytes, bool is_bf16) {
    uint32_t word = 0;
    std::memcpy(&word, bytes, is_bf16 ? 2 : 4);
    return is_bf16 ? operand_at<Bf16>(word, 0) : operand_at<float>(word, 0);
}

// Tell whether a write to shared memory is visible to products: its thread executed fence.proxy.async after it and
// before a barrier, or every thread that starts the product did after a barrier, the last at `fenced`.
bool is_visible(const Write& write, uint32_t fenced) {
    if (write.thread == kNobody || fenced > write.interval) return true;
    const auto& fences = block->fibers[write.thread].proxy_fences;
    return fences.size() > write.proxy_fences && fences[write.proxy_fences] < block->interval;
}

}  // namespace

Matrix::Matrix(const Thread& thread, int line, uint64_t descriptor, bool transposed, uint64_t fixed)
    : start(descriptor & 0x3FFF),
      leading(descriptor >> 16 & 0x3FFF),
      stride(descriptor >> 32 & 0x3FFF),
      transposed(transposed) {
    constexpr uint64_t kWidths[] = {1, 8, 4, 2};
    width = kWidths[descriptor >> 62];
    if ((descriptor & 0x3FFFC000C000C000u) != fixed)
        fail(thread, line, "a matrix descriptor with a base offset or unknown bits: 0x%llx",
             (unsigned long long)descriptor);
    if (width == 1 && transposed) std::swap(leading, stride);
}

uint32_t last_proxy_fence(const Fiber* fibers, size_t count) {
    uint32_t fenced = ~0u;
    for (size_t i = 0; i < count; ++i) {
        const auto& fences = fibers[i].proxy_fences;
        fenced = std::min(fenced, fences.empty() ? 0 : fences.back());
    }
    return fenced;
}

std::vector<float> read(Thread& thread, int line, const Matrix& matrix, uint32_t rows, bool is_bf16, uint32_t fenced,
                        std::vector<uint32_t>& reading) {
    const uint32_t bytes = is_bf16 ? 2 : 4, k = 32 / bytes, each = 16 / bytes;
    const bool transposed = matrix.transposed;
    std::vector<float> result(rows * k);
    for (uint32_t i = 0; i < (transposed ? k : rows); ++i)
        for (uint32_t unit = 0; unit < (transposed ? rows : k) / each; ++unit) {
            uint64_t address = matrix.address(i, unit);
            Space space = Space::kShared;
            const uint8_t* from = locate(thread, line, space, address, 16, 16);
            for (uint64_t byte = address; byte < address + 16; ++byte) {
                if (block->writes[byte].thread != kNobody && block->writes[byte].interval == block->interval)
                    fail(thread, line, "a product reads shared byte %llu, which a thread writes: no barrier between",
                         (unsigned long long)byte);
                if (!is_visible(block->last_writes[byte], fenced))
                    fail(thread, line, "a product reads shared byte %llu: no fence.proxy.async after its write",
                         (unsigned long long)byte);
            }
            reading.push_back(uint32_t(address));
            for (uint32_t j = 0; j < each; ++j) {
                const uint32_t row = transposed ? unit * each + j : i, column = transposed ? i : unit * each + j;
                result[row * k + column] = number_at(from + bytes * j, is_bf16);
            }
        }
    return result;
}

}  // namespace ptx
