// W = Y P^T in float32, the weight gradient; see gemm.h. Included by gemm_kernels.cpp only.
#pragma once

#include "cpu/runtime/profile.h"
#include "dot_products.h"
#include "gemm.h"
#include "micro_kernel.h"
#include "pack.h"

namespace metagan {
namespace {

// Computes to[j][i] = from[i][j], or += if `add`, for `rows` rows of `columns` elements.
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

// Packs a panel of P^T, [columns of P][width steps], padded with zeros from step `count` on.
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

// Sums over the columns of Y, kDepth at a time, with P^T packed: each panel of P^T is reused by every row of Y.
void weight_gradient_by_rows(const Patches& p, const Result& y, int64_t rows, Interval columns, bool accumulate,
                             float* out, int64_t out_row, float* pack) {
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

// The same sum in the same order, for few rows: packs Y^T and reads P in place, which yields the transpose of W.
void weight_gradient_by_columns(const Patches& p, const Result& y, int64_t rows, Interval columns, bool accumulate,
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
                    with_rows<RowLayout::listed, 1, 1>(taps, vectors)(
                        {depth, p.b, 0, step_source + k, source, pack + i * kDepth, kInOrder, step_panel, nullptr,
                         transposed + k * kBlockRows + i, kBlockRows, kInOrder, kFloats, first > 0});
                }
            }
        }
        transpose(transposed, kBlockRows, steps, block, accumulate, out + row * out_row, out_row);
    }
}

// Chooses by the cost of packing for each multiply-add: 1 / rows to pack P; 1 / columns + 1 / steps to pack Y and
// transpose W. The choice must not depend on how W is divided, because the variants round accumulated sums differently.
void weight_gradient(const Patches& p, const Result& y, int64_t rows, Interval columns, bool accumulate, float* out,
                     int64_t out_row, float* pack) {
    const int64_t steps = smaller(kChunk, p.depth());
    if (suits_dot_products(p, y, rows))
        return weight_gradient_by_dot_products<false>(p, y, rows, columns, accumulate, out, out_row);
    if (rows * (p.columns() + steps) < p.columns() * steps)
        return weight_gradient_by_columns(p, y, rows, columns, accumulate, out, out_row, pack);
    weight_gradient_by_rows(p, y, rows, columns, accumulate, out, out_row, pack);
}

}  // namespace
}  // namespace metagan
