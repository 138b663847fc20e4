// Panels of a product's operand: what a micro-kernel reads in order, copied out of images.
#pragma once

#include "gemm.h"
#include "vector.h"

namespace metagan {
namespace {

constexpr int kPanelVectors = 2;
constexpr int kPanelColumns = kPanelVectors * kFloats;

METAGAN_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Writes outer * stride + table[inner] for the indices first to last, where index = outer * size + inner.
void fill_offsets(int32_t* to, int64_t stride, const int32_t* table, int64_t size, int64_t first, int64_t last) {
    using Offsets = int32_t __attribute__((vector_size(kVectorBytes)));
    int64_t outer = first / size, inner = first % size;
    while (first < last) {
        const int64_t count = smaller(size - inner, last - first);
        const auto base = static_cast<int32_t>(outer * stride);
        int64_t i = 0;
        for (; i + kFloats <= count; i += kFloats) {
            Offsets offsets;
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

// In how many parts a vector of columns lies in memory: 1 where all columns are adjacent or runs are whole vectors, 2
// or 4 where runs are a half or a quarter, 0 where they are shorter or odd.
int parts_of(const Patches& p) {
    if (p.run == p.columns() || p.run % kFloats == 0) return 1;
    return p.run % (kFloats / 2) == 0 ? 2 : p.run % (kFloats / 4) == 0 ? 4 : 0;
}

// How many elements from column `first` on can be copied at once: a power of two up to 16.
int copy_length(const Patches& p, int64_t first) {
    int64_t length = 16;
    while (p.run % length != 0 || first % p.positions % length != 0) length /= 2;
    return static_cast<int>(length);
}

constexpr int32_t kInOrder[8] = {
    // vectors one behind the other
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

// A panel of P: [depth][width], the columns beyond `count` zero.
void pack_panel(float* panel, int width, const float* b, const int32_t* steps, int64_t depth, const int32_t* columns,
                int64_t count, int length) {
    if (count % length != 0) length = 1;
    for (int64_t k = 0; k < depth; ++k) {
        float* to = panel + k * width;
        copy_columns(to, b + steps[k], columns, count, length);
        clear(to + count, width - count);
    }
}

// Transposes a square of kFloats x kFloats, rows `from_row` and `to_row` apart, by exchanging ever smaller blocks.
METAGAN_INLINE void transpose_square(const float* from, int64_t from_row, float* to, int64_t to_row) {
#ifdef __clang__
    for (int i = 0; i < kFloats; ++i)
        for (int j = 0; j < kFloats; ++j) to[j * to_row + i] = from[i * from_row + j];
#else
    FloatVector row[kFloats];
#pragma GCC unroll 16
    for (int i = 0; i < kFloats; ++i) row[i] = load(from + i * from_row, FloatVector{});
    using Index = int32_t __attribute__((vector_size(kVectorBytes)));
    Index lane;
    for (int i = 0; i < kFloats; ++i) lane[i] = i;
#pragma GCC unroll 4
    for (int half = kFloats / 2; half >= 1; half /= 2) {
        const Index second = lane & half;                           // not zero in the second half of each block
        const Index upper = second ? lane - half + kFloats : lane;  // lanes of (a, b)
        const Index lower = second ? lane + kFloats : lane + half;
#pragma GCC unroll 16
        for (int i = 0; i < kFloats; ++i) {
            if (i & half) continue;
            const FloatVector a = row[i], b = row[i + half];
            row[i] = __builtin_shuffle(a, b, upper);
            row[i + half] = __builtin_shuffle(a, b, lower);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kFloats; ++i) store(to + i * to_row, row[i]);
#endif
}

// to[j][i] = from[i][j], or += it, for `rows` of `columns` elements.
void transpose(const float* from, int64_t from_row, int64_t rows, int64_t columns, bool add, float* to,
               int64_t to_row) {
    alignas(64) float square[kFloats * kFloats];
    for (int64_t i = 0; i < rows; i += kFloats)
        for (int64_t j = 0; j < columns; j += kFloats) {
            if (i + kFloats <= rows && j + kFloats <= columns) {
                float* const at = to + j * to_row + i;
                transpose_square(from + i * from_row + j, from_row, add ? square : at, add ? kFloats : to_row);
                for (int64_t b = 0; add && b < kFloats; ++b)
                    store(at + b * to_row,
                          load(at + b * to_row, FloatVector{}) + load(square + b * kFloats, FloatVector{}));
                continue;
            }
            for (int64_t a = i; a < smaller(i + kFloats, rows); ++a)
                for (int64_t b = j; b < smaller(j + kFloats, columns); ++b) {
                    float& at = to[b * to_row + a];
                    at = (add ? at : 0) + from[a * from_row + b];
                }
        }
}

// A panel of P^T: [columns of P][width steps], the steps beyond `count` zero.
void pack_transposed_panel(float* panel, int width, const float* b, const int32_t* steps, int64_t count,
                           const int32_t* columns, int64_t depth, int length_of_copies) {
    alignas(64) float square[kFloats * kFloats];
    for (int64_t t = 0; t < depth; t += kFloats) {
        const int64_t length = smaller(kFloats, depth - t);
        const int copies = length % smaller(length_of_copies, kFloats) == 0 ? smaller(length_of_copies, kFloats) : 1;
        for (int64_t first = 0; first < width; first += kFloats) {
            for (int64_t k = 0; k < kFloats; ++k) {
                float* to = square + k * kFloats;
                if (first + k < count) {
                    copy_columns(to, b + steps[first + k], columns + t, length, copies);
                    clear(to + length, kFloats - length);
                } else {
                    clear(to, kFloats);
                }
            }
            if (length == kFloats) {
                transpose_square(square, kFloats, panel + t * width + first, width);
            } else {
                for (int64_t i = 0; i < length; ++i)
                    for (int64_t k = 0; k < kFloats; ++k) panel[(t + i) * width + first + k] = square[k * kFloats + i];
            }
        }
    }
}

}  // namespace
}  // namespace metagan
