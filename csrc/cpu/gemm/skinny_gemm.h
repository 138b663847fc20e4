// Y = W P for a skinny P, with at most half a vector of columns: a linear layer of few images. Vectors run along the
// weights instead: along rows where these are adjacent, else along k. kRounded rounds the operands to bf16. Included by
// multiply.h and multiply_bf16.h.
#pragma once

#include "gemm.h"
#include "micro_kernel.h"
#include "pack.h"

namespace metagan {
namespace {

// True if vectors run along the weights: few adjacent columns, one tap, and weights adjacent along rows or channels.
bool is_skinny(const Patches& p, const Weights& w) {
    return p.taps == 1 && p.run == p.columns() && p.columns() <= kFloats / 2 && (w.w_row == 1 || w.w_channel == 1);
}

// A product with one tap: addresses of the first elements of W, P and Y, and strides; k counts channels.
struct SkinnyProduct {
    const float *w, *b;
    int64_t w_row, w_channel, b_channel, depth;
    float* y;
    int64_t y_row;
    int columns;
    const float* bias;
    bool add;
};

template <bool kRounded>
constexpr auto load_whole = [](const float* from) { return operand<kRounded>(load(from, FloatVector{})); };

// Reduces kFloats vectors at once: lane i of the result is the sum of the lanes of sums[i]. Each round merges pairs of
// vectors into one; 16 lanes take four rounds.
METAGAN_INLINE FloatVector totals(FloatVector (&sums)[kFloats]) {
    const IndexVector lane = lane_numbers();
#pragma GCC unroll 4
    for (int half = kFloats / 2; half >= 1; half /= 2) {
        const IndexVector second = lane & half;  // nonzero in lanes that sum the second vector of a pair
        const IndexVector own = second ? lane + kFloats : lane, other = second ? lane - half + kFloats : lane + half;
#pragma GCC unroll 8
        for (int i = 0; i < half; ++i)
            sums[i] = shuffle(sums[i], sums[i + half], own) + shuffle(sums[i], sums[i + half], other);
    }
    return sums[0];
}

// Transposes kColumns vectors, each a column of sums, into contiguous rows of kColumns.
template <int kColumns>
METAGAN_INLINE void columns_to_rows(FloatVector (&sums)[kColumns]) {
    const IndexVector lane = lane_numbers(), from = lane / 2 + (lane & 1) * kFloats;
#pragma GCC unroll 4
    for (int round = 1; round < kColumns; round *= 2) {
        FloatVector before[kColumns];
#pragma GCC unroll 8
        for (int j = 0; j < kColumns; ++j) before[j] = sums[j];
#pragma GCC unroll 4
        for (int j = 0; j < kColumns / 2; ++j) {
            sums[2 * j] = shuffle(before[j], before[j + kColumns / 2], from);
            sums[2 * j + 1] = shuffle(before[j], before[j + kColumns / 2], from + kFloats / 2);
        }
    }
}

// Stores rows of kColumns sums to Y, the first p.columns of each, plus the bias or the previous values.
template <int kColumns>
METAGAN_INLINE void store_rows(const SkinnyProduct& p, int64_t row, int64_t rows, FloatVector value) {
    float lanes[kFloats];
    store(lanes, value);
    float* const y = p.y + row * p.y_row;
    const auto count = smaller(kFloats / kColumns, rows - row);
    if (p.bias)
        for (int64_t i = 0; i < count; ++i)
            for (int j = 0; j < kColumns; ++j) lanes[i * kColumns + j] += p.bias[row + i];
    if (p.columns < kColumns) {
        for (int64_t i = 0; i < count; ++i)
            for (int j = 0; j < p.columns; ++j)
                y[i * p.y_row + j] = lanes[i * kColumns + j] + (p.add ? y[i * p.y_row + j] : 0);
    } else if (p.add) {
        for (int64_t i = 0; i < count; ++i)
            for (int j = 0; j < kColumns; ++j) y[i * p.y_row + j] += lanes[i * kColumns + j];
    } else {
        for (int64_t i = 0; i < count; ++i)
            __builtin_memcpy(y + i * p.y_row, lanes + i * kColumns, kColumns * sizeof(float));
    }
}

constexpr int kSkinnySums = kTileRows > 6 ? 16 : 8;

// Multiplies kVectors vectors of adjacent rows with all columns of P, which are rounded already; the last vector may be
// partly filled.
template <bool kRounded, int kColumns, int kVectors>
[[gnu::noinline]] void skinny_by_rows(const SkinnyProduct& p, int64_t row, int64_t rows) {
    const float *w = p.w + row, *b[kColumns];
    for (int j = 0; j < kColumns; ++j) b[j] = p.b + smaller(j, p.columns - 1);
    const auto last = static_cast<int>(smaller(kFloats, rows - row - (kVectors - 1) * kFloats));
    FloatVector sum[kVectors][kColumns] = {};
    const auto add_all = [&](auto load_last) {
        for (int64_t k = 0; k < p.depth; ++k) {
            FloatVector part[kVectors];
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v)
                part[v] = v + 1 == kVectors ? load_last(w + v * kFloats) : load_whole<kRounded>(w + v * kFloats);
#pragma GCC unroll 8
            for (int j = 0; j < kColumns; ++j) {
                const float broadcast = b[j][k * p.b_channel];
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) sum[v][j] += broadcast * part[v];
            }
            w += p.w_channel;
        }
    };
    if (last == kFloats)
        add_all(load_whole<kRounded>);
    else
        add_all([last](const float* from) { return operand<kRounded>(load_first(from, last)); });
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
        columns_to_rows<kColumns>(sum[v]);
#pragma GCC unroll 8
        for (int j = 0; j < kColumns; ++j)
            store_rows<kColumns>(p, row + v * kFloats + j * (kFloats / kColumns), rows, sum[v][j]);
    }
}

template <bool kRounded, int kColumns>
void skinny_all_rows(const SkinnyProduct& p, int64_t rows) {
    constexpr int kVectors = kSkinnySums / kColumns < 4 ? kSkinnySums / kColumns : 4;
    int64_t row = 0;
    for (; row + (kVectors - 1) * kFloats < rows; row += kVectors * kFloats)
        skinny_by_rows<kRounded, kColumns, kVectors>(p, row, rows);
    for (; row < rows; row += kFloats) skinny_by_rows<kRounded, kColumns, 1>(p, row, rows);
}

// Computes kFloats dot products of rows of W and columns of P. Not inlined, so that the caller's variables do not spill
// the sums; kTail: the depth is not a multiple of kFloats.
template <bool kRounded, int kColumns, bool kTail>
[[gnu::noinline]] FloatVector dot_products_tile(const float* const* rows, const float* transposed, int64_t padded,
                                                int64_t depth) {
    constexpr int kRows = kFloats / kColumns;
    const float *w[kRows], *b[kColumns];
    for (int i = 0; i < kRows; ++i) w[i] = rows[i];
    for (int j = 0; j < kColumns; ++j) b[j] = transposed + j * padded;
    FloatVector sum[kFloats];
#pragma GCC unroll 16
    for (int i = 0; i < kFloats; ++i) sum[i] = FloatVector{};
    const auto add = [&](int64_t k, auto load_weights) {
        FloatVector column[kColumns];
#pragma GCC unroll 8
        for (int j = 0; j < kColumns; ++j) column[j] = load(b[j] + k, FloatVector{});
#pragma GCC unroll 16
        for (int i = 0; i < kRows; ++i) {
            const FloatVector part = load_weights(w[i] + k);
#pragma GCC unroll 8
            for (int j = 0; j < kColumns; ++j) sum[i * kColumns + j] += part * column[j];
        }
    };
    int64_t k = 0;
    for (; k + kFloats <= depth; k += kFloats) add(k, load_whole<kRounded>);
    if constexpr (kTail) {
        const auto rest = static_cast<int>(depth - k);
        add(k, [rest](const float* from) { return operand<kRounded>(load_first(from, rest)); });
    }
    return totals(sum);
}

template <bool kRounded, int kColumns>
void skinny_dot_products(const SkinnyProduct& p, int64_t rows, const float* transposed, int64_t padded) {
    constexpr int kRows = kFloats / kColumns;
    const auto tile =
        p.depth == padded ? dot_products_tile<kRounded, kColumns, false> : dot_products_tile<kRounded, kColumns, true>;
    for (int64_t row = 0; row < rows; row += kRows) {
        const float *w[kRows], *at = p.w + row * p.w_row;
        for (int i = 0; i < kRows; ++i) {
            w[i] = at;
            if (row + i + 1 < rows) at += p.w_row;
        }
        store_rows<kColumns>(p, row, rows, tile(w, transposed, padded, p.depth));
    }
}

template <bool kRounded, int kColumns>
void multiply_skinny_of(SkinnyProduct p, int64_t rows, float* pack) {
    const bool along_rows = p.w_row == 1;
    if (along_rows && !kRounded) return skinny_all_rows<kRounded, kColumns>(p, rows);
    constexpr int64_t kMost = kPackFloats / kColumns;
    for (int64_t left = p.depth; left > 0; left -= p.depth) {
        p.depth = smaller(left, kMost);
        const int64_t padded = (p.depth + kFloats - 1) / kFloats * kFloats;
        for (int j = 0; j < kColumns; ++j) {
            const float* const from = p.b + smaller(j, p.columns - 1);
            float* const to = along_rows ? pack + j : pack + j * padded;
            const int64_t step = along_rows ? kColumns : 1;
            for (int64_t k = 0; k < p.depth; ++k) to[k * step] = operand<kRounded>(from[k * p.b_channel]);
            if (!along_rows) clear(to + p.depth, padded - p.depth);
        }
        if (along_rows) {
            SkinnyProduct packed = p;
            packed.b = pack;
            packed.b_channel = kColumns;
            skinny_all_rows<kRounded, kColumns>(packed, rows);
        } else {
            skinny_dot_products<kRounded, kColumns>(p, rows, pack, padded);
        }
        p.w += p.depth * p.w_channel;
        p.b += p.depth * p.b_channel;
        p.bias = nullptr;
        p.add = true;
    }
}

// Computes the given rows of one product, all columns. `pack` is as in `multiply`.
template <bool kRounded>
void multiply_skinny(const Product& product, const Weights& w, Interval rows, const float* bias, bool accumulate,
                     float* pack) {
    const Patches& p = product.patches;
    const Result& y = product.result;
    const SkinnyProduct skinny{w.w + product.w_tap[0] + rows.first * w.w_row,
                               p.b + p.b_tap[0] + p.b_position[0],
                               w.w_row,
                               w.w_channel,
                               p.b_channel,
                               p.channels,
                               y.y + y.y_position[0] + rows.first * y.y_row,
                               y.y_row,
                               static_cast<int>(p.columns()),
                               accumulate || !bias ? nullptr : bias + rows.first,
                               accumulate};
    const int64_t count = rows.last - rows.first;
    if constexpr (kFloats >= 16)
        if (skinny.columns > 4) return multiply_skinny_of<kRounded, 8>(skinny, count, pack);
    if constexpr (kFloats >= 8)
        if (skinny.columns > 2) return multiply_skinny_of<kRounded, 4>(skinny, count, pack);
    return skinny.columns == 2 ? multiply_skinny_of<kRounded, 2>(skinny, count, pack)
                               : multiply_skinny_of<kRounded, 1>(skinny, count, pack);
}

}  // namespace
}  // namespace metagan
