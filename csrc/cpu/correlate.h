// W = Y P^T; see gemm.h. Included by gemm_kernels.cpp alone.
#pragma once

#include "gemm.h"
#include "micro_kernel.h"
#include "pack.h"
#include "profile.h"

namespace metagan {
namespace {

// W as a sum over the columns of Y, kDepth of them at a time, with P^T packed: a panel of P serves every row of Y.
void correlate_by_rows(const Patches& p, const Result& y, int64_t rows, Interval columns, bool accumulate, float* out,
                       int64_t out_row, float* pack) {
    int32_t source[kDepth], result[kDepth], step_source[kChunk], step_panel[kDepth];
    for (int i = 0; i < kDepth; ++i) step_panel[i] = i * kPanelColumns;
    const int64_t steps = columns.last - columns.first;
    fill_offsets(step_source, p.b_channel, p.b_tap, p.taps, columns.first, columns.last);
    for (int64_t first = 0; first < p.columns(); first += kDepth) {
        const int64_t depth = smaller(kDepth, p.columns() - first);
        fill_offsets(source, p.b_image, p.b_position, p.positions, first, first + depth);
        fill_offsets(result, y.y_image, y.y_position, p.positions, first, first + depth);
        const Work before = begin_work(Work::pack);
        for (int64_t k = 0; k < steps; k += kPanelColumns)
            pack_transposed_panel(pack + k * kDepth, kPanelColumns, p.b, step_source + k,
                                  smaller(kPanelColumns, steps - k), source, depth, copy_length(p, first));
        begin_work(before);
        int tile;
        for (int64_t row = 0; row < rows; row += tile) {
            tile = tile_rows(rows - row);
            const MicroKernel kernel = micro_kernel_of(tile, kPanelVectors, 1, 1);
            for (int64_t k = 0; k < steps; k += kPanelColumns)
                kernel({depth, y.y + row * y.y_row, y.y_row, nullptr, result, pack + k * kDepth, kInOrder, step_panel,
                        nullptr, out + row * out_row + k, out_row, kInOrder, kFloats, accumulate || first > 0});
        }
    }
}

// The same sum, in the same order, with Y^T packed and P read in place, which makes the transpose of W: for few rows.
void correlate_by_columns(const Patches& p, const Result& y, int64_t rows, Interval columns, bool accumulate,
                          float* out, int64_t out_row, float* pack) {
    constexpr int64_t kBlockRows = 128;
    static_assert(kBlockRows * (kDepth + kChunk) <= kPackFloats);
    int32_t source[kDepth], result[kDepth], step_panel[kDepth], row_of_y[kBlockRows], step_source[kChunk];
    for (int i = 0; i < kDepth; ++i) step_panel[i] = i * kPanelColumns;
    const int64_t steps = columns.last - columns.first;
    fill_offsets(step_source, p.b_channel, p.b_tap, p.taps, columns.first, columns.last);
    float* const transposed = pack + kBlockRows * kDepth;
    for (int64_t row = 0; row < rows; row += kBlockRows) {
        const int64_t block = smaller(kBlockRows, rows - row);
        for (int64_t i = 0; i < block; ++i) row_of_y[i] = static_cast<int32_t>(i * y.y_row);
        for (int64_t first = 0; first < p.columns(); first += kDepth) {
            const int64_t depth = smaller(kDepth, p.columns() - first);
            fill_offsets(source, p.b_image, p.b_position, p.positions, first, first + depth);
            fill_offsets(result, y.y_image, y.y_position, p.positions, first, first + depth);
            const Work before = begin_work(Work::pack);
            for (int64_t i = 0; i < block; i += kPanelColumns)
                pack_transposed_panel(pack + i * kDepth, kPanelColumns, y.y + row * y.y_row, row_of_y + i,
                                      smaller(kPanelColumns, block - i), result, depth,
                                      result[depth - 1] - result[0] == depth - 1 ? kFloats : 1);
            begin_work(before);
            int taps;
            for (int64_t k = 0; k < steps; k += taps) {
                taps = tile_rows(steps - k);
                for (int64_t i = 0; i < block; i += kPanelColumns) {
                    const int vectors = tile_vectors(kPanelVectors, block - i);
                    with_rows<Rows::listed, 1, 1>(taps, vectors)(
                        {depth, p.b, 0, step_source + k, source, pack + i * kDepth, kInOrder, step_panel, nullptr,
                         transposed + k * kBlockRows + i, kBlockRows, kInOrder, kFloats, first > 0});
                }
            }
        }
        transpose(transposed, kBlockRows, steps, block, accumulate, out + row * out_row, out_row);
    }
}

// The same elements as dot products of vectors along the columns, both operands in place: for very few rows. A sum runs
// over each lane of the vectors, then over the lanes.
template <int kRows, int kTaps, int kParts>
void dot_products(const float* y, int64_t y_row, const float* b, const int32_t* steps, const int32_t* columns,
                  int64_t count, int taps, float* out, int64_t out_row) {
    const float* from[kTaps];
    for (int k = 0; k < kTaps; ++k) from[k] = b + steps[k < taps ? k : taps - 1];
    FloatVector sum[kRows][kTaps] = {};
    int64_t j = 0;
    for (; j + kFloats <= count; j += kFloats) {
        FloatVector row[kRows];
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i) row[i] = load(y + i * y_row + j, FloatVector{});
#pragma GCC unroll 8
        for (int k = 0; k < kTaps; ++k) {
            const float* part[kParts];
            for (int q = 0; q < kParts; ++q) part[q] = from[k] + columns[j + q * (kFloats / kParts)];
            const FloatVector column = load_parts<kParts>(part, 0);
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
            for (int64_t tail = j; tail < count; ++tail) rest += y[i * y_row + tail] * from[k][columns[tail]];
            out[i * out_row + k] += total(sum[i][k]) + rest;
        }
    }
}

template <int kParts>
void dot_products_of(int rows, const float* y, int64_t y_row, const float* b, const int32_t* steps, int64_t taps,
                     const int32_t* columns, int64_t count, float* out, int64_t out_row) {
    constexpr int kTaps = 6;
    for (int64_t k = 0; k < taps; k += kTaps) {
        const int now = static_cast<int>(smaller(kTaps, taps - k));
        if (rows == 4)
            dot_products<4, kTaps, kParts>(y, y_row, b, steps + k, columns, count, now, out + k, out_row);
        else if (rows == 2)
            dot_products<2, kTaps, kParts>(y, y_row, b, steps + k, columns, count, now, out + k, out_row);
        else
            dot_products<1, kTaps, kParts>(y, y_row, b, steps + k, columns, count, now, out + k, out_row);
    }
}

void correlate_by_dot_products(const Patches& p, const Result& y, int64_t rows, Interval columns, bool accumulate,
                               float* out, int64_t out_row) {
    constexpr int64_t kColumns = 2048;  // four rows of Y, a quarter of the first-level cache each
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
                    run(dot_products_of<1>);
                    break;
                case 2:
                    run(dot_products_of<2>);
                    break;
                default:
                    run(dot_products_of<4>);
            }
        }
    }
}

// Packing P takes time in proportion to 1 / rows, packing Y and turning W round to 1 / columns + 1 / steps. The choice
// must not depend on how W is divided, since sums that accumulate are rounded differently.
void correlate(const Patches& p, const Result& y, int64_t rows, Interval columns, bool accumulate, float* out,
               int64_t out_row, float* pack) {
    const int64_t steps = smaller(kChunk, p.depth());
    const bool adjacent = (p.images == 1 || y.y_image == p.positions) &&
                          y.y_position[p.positions - 1] - y.y_position[0] == p.positions - 1;
    const bool long_sums = p.columns() >= 32 * kFloats;  // beside the sum over the lanes of a vector
    if (rows <= kFloats / 2 && long_sums && parts_of(p) && adjacent)
        return correlate_by_dot_products(p, y, rows, columns, accumulate, out, out_row);
    if (rows * (p.columns() + steps) < p.columns() * steps)
        return correlate_by_columns(p, y, rows, columns, accumulate, out, out_row, pack);
    correlate_by_rows(p, y, rows, columns, accumulate, out, out_row, pack);
}

}  // namespace
}  // namespace metagan
