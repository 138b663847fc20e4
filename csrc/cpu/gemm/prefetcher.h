// Software prefetch of weights; see gemm.h. Included by gemm_kernels.cpp and gemm_bf16_kernels.cpp only.
#pragma once

#include "cpu/simd/vector.h"

namespace metagan {
namespace {

// Prefetches the next row tile of W, a few cache lines for each panel of the current one. Its strips are too short for
// the hardware prefetcher.
class Prefetcher {
  public:
    Prefetcher() = default;
    // W as bf16 pairs: one strip for each row.
    Prefetcher(const float* first, int64_t distance, int64_t strips, int64_t length)
        : strip_(first), distance_(distance), strips_(strips), length_(length) {}

    // W in place: the given rows, channels [first, last) and taps. A strip for each row, or for each channel where rows
    // are closer together than channels.
    Prefetcher(const float* w, int64_t w_row, int64_t w_channel, int64_t row, int64_t rows, int64_t first, int64_t last,
               int64_t tap, int64_t taps) {
        if (rows <= 0) return;
        const bool turned = w_row < w_channel;
        strip_ = w + row * w_row + first * w_channel + tap;
        distance_ = turned ? w_channel : w_row;
        strips_ = turned ? last - first : rows;
        length_ = (turned ? (rows - 1) * w_row : (last - first - 1) * w_channel) + taps;
    }

    // Cache lines left.
    int64_t lines() const { return strips_ > 0 ? strips_ * ((length_ + kLine - 1) / kLine) : 0; }

    // Prefetches the next `lines` cache lines.
    void prefetch(int64_t lines) {
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
