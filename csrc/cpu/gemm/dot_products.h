// W = Y P^T for very few rows: dot products along the columns, both operands read in place; see gemm.h.
#pragma once

#include "gemm.h"
#include "micro_kernel.h"
#include "pack.h"

namespace metagan {
namespace {

bool suits_dot_products(const Patches& p, const Result& y, int64_t rows) {
    const bool adjacent = (p.images == 1 || y.y_image == p.positions) &&
                          y.y_position[p.positions - 1] - y.y_position[0] == p.positions - 1;
    const bool long_sums = p.columns() >= 32 * kFloats;  // amortises the sum over the lanes of a vector
    return rows <= kFloats / 2 && long_sums && parts_of(p) && adjacent;
}

// Computes kRows x kTaps dot products: each lane is summed over the columns, then the lanes are added. kRounded rounds
// the operands to bf16.
template <bool kRounded, int kRows, int kTaps, int kParts>
void dot_products(const float* y, int64_t y_row, const float* b, const int32_t* steps, const int32_t* columns,
                  int64_t count, int taps, float* out, int64_t out_row) {
    const float* from[kTaps];
    for (int k = 0; k < kTaps; ++k) from[k] = b + steps[k < taps ? k : taps - 1];
    FloatVector sum[kRows][kTaps] = {};
    int64_t j = 0;
    for (; j + kFloats <= count; j += kFloats) {
        FloatVector row[kRows];
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i) row[i] = operand<kRounded>(load(y + i * y_row + j, FloatVector{}));
#pragma GCC unroll 8
        for (int k = 0; k < kTaps; ++k) {
            const float* part[kParts];
            for (int q = 0; q < kParts; ++q) part[q] = from[k] + columns[j + q * (kFloats / kParts)];
            const FloatVector column = operand<kRounded>(load_parts<kParts>(part, 0));
#pragma GCC unroll 4
            for (int i = 0; i < kRows; ++i) sum[i][k] += row[i] * column;
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
        for (int k = 0; k < kTaps; ++k) {
            if (k >= taps) break;
            float rest = 0;
            for (int64_t tail = j; tail < count; ++tail)
                rest += operand<kRounded>(y[i * y_row + tail]) * operand<kRounded>(from[k][columns[tail]]);
            out[i * out_row + k] += total(sum[i][k]) + rest;
        }
    }
}

template <bool kRounded, int kParts>
void dot_products_of(int rows, const float* y, int64_t y_row, const float* b, const int32_t* steps, int64_t taps,
                     const int32_t* columns, int64_t count, float* out, int64_t out_row) {
    constexpr int kTaps = 6;
    for (int64_t k = 0; k < taps; k += kTaps) {
        const int now = static_cast<int>(smaller(kTaps, taps - k));
        if (rows == 4)
            dot_products<kRounded, 4, kTaps, kParts>(y, y_row, b, steps + k, columns, count, now, out + k, out_row);
        else if (rows == 2)
            dot_products<kRounded, 2, kTaps, kParts>(y, y_row, b, steps + k, columns, count, now, out + k, out_row);
        else
            dot_products<kRounded, 1, kTaps, kParts>(y, y_row, b, steps + k, columns, count, now, out + k, out_row);
    }
}

template <bool kRounded>
void weight_gradient_by_dot_products(const Patches& p, const Result& y, int64_t rows, Interval columns, bool accumulate,
                                     float* out, int64_t out_row) {
    constexpr int64_t kColumns = 2048;  // a row of Y of this length takes a quarter of a 32 KB first-level cache
    int32_t source[kColumns], step_source[kChunk];
    const int64_t steps = columns.last - columns.first;
    fill_offsets(step_source, p.b_channel, p.b_tap, p.taps, columns.first, columns.last);
    for (int64_t i = 0; !accumulate && i < rows; ++i) clear(out + i * out_row, steps);
    for (int64_t first = 0; first < p.columns(); first += kColumns) {
        const int64_t count = smaller(kColumns, p.columns() - first);
        fill_offsets(source, p.b_image, p.b_position, p.positions, first, first + count);
        int tile;
        for (int64_t row = 0; row < rows; row += tile) {
            tile = rows - row >= 4 ? 4 : rows - row >= 2 ? 2 : 1;
            const auto run = [&](auto dot) {
                dot(tile, y.y + row * y.y_row + first, y.y_row, p.b, step_source, steps, source, count,
                    out + row * out_row, out_row);
            };
            switch (parts_of(p)) {
                case 1:
                    run(dot_products_of<kRounded, 1>);
                    break;
                case 2:
                    run(dot_products_of<kRounded, 2>);
                    break;
                default:
                    run(dot_products_of<kRounded, 4>);
            }
        }
    }
}

}  // namespace
}  // namespace metagan
