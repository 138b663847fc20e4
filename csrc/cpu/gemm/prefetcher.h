// Weights asked for before they are read; see gemm.h. Included by gemm_kernels.cpp and gemm_bf16_kernels.cpp alone.
#pragma once

#include "cpu/simd/vector.h"

namespace metagan {
namespace {

// What the next tile of rows reads of W, asked for bit by bit while this one meets the columns: it lies in strips too
// short for a processor to foresee.
class Prefetcher {
  public:
    Prefetcher() = default;
    // Of words: a strip a row.
    Prefetcher(const float* first, int64_t distance, int64_t strips, int64_t length)
        : strip_(first), distance_(distance), strips_(strips), length_(length) {}

    // Of W as it lies: rows, channels [first, last) and taps; a strip a row, or a channel where rows are nearer to each
    // other.
    Prefetcher(const float* w, int64_t w_row, int64_t w_channel, int64_t row, int64_t rows, int64_t first, int64_t last,
               int64_t tap, int64_t taps) {
        if (rows <= 0) return;
        const bool turned = w_row < w_channel;
        strip_ = w + row * w_row + first * w_channel + tap;
        distance_ = turned ? w_channel : w_row;
        strips_ = turned ? last - first : rows;
        length_ = (turned ? (rows - 1) * w_row : (last - first - 1) * w_channel) + taps;
    }

    int64_t lines() const { return strips_ > 0 ? strips_ * ((length_ + kLine - 1) / kLine) : 0; }

    void ask(int64_t lines) {
        for (; lines > 0 && strips_ > 0; --lines) {
            __builtin_prefetch(strip_ + at_, 0, 2);
            at_ += kLine;
            if (at_ < length_) continue;
            at_ = 0;
            strip_ += distance_;
            --strips_;
        }
    }

  private:
    static constexpr int64_t kLine = 64 / sizeof(float);

    const float* strip_ = nullptr;
    int64_t distance_ = 0, strips_ = 0, length_ = 0, at_ = 0;
};

}  // namespace
}  // namespace metagan
