// Packing of an operand into panels, which the micro-kernel reads sequentially.
#pragma once

#include "cpu/simd/vector.h"
#include "gemm.h"

namespace metagan {
namespace {

constexpr int kPanelVectors = 2;
constexpr int kPanelColumns = kPanelVectors * kFloats;  // NR

// Writes outer * stride + table[inner] for the indices first to last, where index = outer * size + inner.
void fill_offsets(int32_t* to, int64_t stride, const int32_t* table, int64_t size, int64_t first, int64_t last) {
    int64_t outer = first / size, inner = first % size;
    while (first < last) {
        const int64_t count = smaller(size - inner, last - first);
        const auto base = static_cast<int32_t>(outer * stride);
        int64_t i = 0;
        for (; i + kFloats <= count; i += kFloats) {
            IndexVector offsets;
            __builtin_memcpy(&offsets, table + inner + i, sizeof offsets);
            offsets += base;
            __builtin_memcpy(to + i, &offsets, sizeof offsets);
        }
        for (; i < count; ++i) to[i] = base + table[inner + i];
        to += count;
        first += count;
        inner = 0;
        ++outer;
    }
}

// Number of contiguous parts that make up a vector of columns: 1 where all columns are adjacent or runs are whole
// vectors, 2 or 4 where runs are halves or quarters of one, 0 where they are shorter or odd.
int parts_of(const Patches& p) {
    if (p.run == p.columns() || p.run % kFloats == 0) return 1;
    return p.run % (kFloats / 2) == 0 ? 2 : p.run % (kFloats / 4) == 0 ? 4 : 0;
}

// Number of adjacent elements, beginning at column `first`, to copy at once: a power of two up to 16.
int copy_length(const Patches& p, int64_t first) {
    int64_t length = 16;
    while (p.run % length != 0 || first % p.positions % length != 0) length /= 2;
    return static_cast<int>(length);
}

constexpr int32_t kInOrder[8] = {
    // offsets of consecutive vectors
    0 * kFloats, 1 * kFloats, 2 * kFloats, 3 * kFloats, 4 * kFloats, 5 * kFloats, 6 * kFloats, 7 * kFloats,
};

// Copies `count` elements in runs of kRun.
template <int kRun>
METAGAN_INLINE void copy_runs(float* to, const float* from, const int32_t* offsets, int64_t count) {
    for (int64_t j = 0; j < count; j += kRun) __builtin_memcpy(to + j, from + offsets[j], kRun * sizeof(float));
}

METAGAN_INLINE void copy_columns(float* to, const float* from, const int32_t* offsets, int64_t count, int length) {
    switch (length) {
        case 16:
            return copy_runs<16>(to, from, offsets, count);
        case 8:
            return copy_runs<8>(to, from, offsets, count);
        case 4:
            return copy_runs<4>(to, from, offsets, count);
        case 2:
            return copy_runs<2>(to, from, offsets, count);
        default:
            return copy_runs<1>(to, from, offsets, count);
    }
}

METAGAN_INLINE void clear(float* to, int64_t count) {
    for (int64_t j = 0; j < count; ++j) to[j] = 0;
}

// Transposes a kFloats x kFloats square, whose rows are `from_row` and `to_row` apart, by swapping off-diagonal blocks
// of halving size.
METAGAN_INLINE void transpose_square(const float* from, int64_t from_row, float* to, int64_t to_row) {
    FloatVector row[kFloats];
#pragma GCC unroll 16
    for (int i = 0; i < kFloats; ++i) row[i] = load(from + i * from_row, FloatVector{});
    const IndexVector lane = lane_numbers();
#pragma GCC unroll 4
    for (int half = kFloats / 2; half >= 1; half /= 2) {
        const IndexVector second = lane & half;                           // nonzero in the second half of each block
        const IndexVector upper = second ? lane - half + kFloats : lane;  // lanes of (a, b)
        const IndexVector lower = second ? lane + kFloats : lane + half;
#pragma GCC unroll 16
        for (int i = 0; i < kFloats; ++i) {
            if (i & half) continue;
            const FloatVector a = row[i], b = row[i + half];
            row[i] = shuffle(a, b, upper);
            row[i + half] = shuffle(a, b, lower);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kFloats; ++i) store(to + i * to_row, row[i]);
}

}  // namespace
}  // namespace metagan
