// W = Y P^T with operands in bf16; see gemm.h and bf16_pairs.h. Included by gemm_bf16_kernels.cpp only.
#pragma once

#include "bf16_pairs.h"
#include "cpu/runtime/profile.h"
#include "dot_products.h"
#include "gemm.h"

namespace metagan {
namespace {

constexpr int64_t kPairSteps = kFloats * kSteps;  // steps of k in a vector of pairs

// Loads kPairSteps columns of a row, in kParts parts a vector, as pairs.
template <int kParts>
METAGAN_INLINE FloatVector load_pairs(const float* b, const int32_t* columns) {
    const float *first[kParts], *second[kParts];
    for (int p = 0; p < kParts; ++p) {
        first[p] = b + columns[p * (kFloats / kParts)];
        second[p] = kSteps == 2 ? b + columns[kFloats + p * (kFloats / kParts)] : nullptr;
    }
    const FloatVector low = load_parts<kParts>(first, 0);
    return join_adjacent(low, kSteps == 2 ? load_parts<kParts>(second, 0) : low);
}

// Packs a panel of P^T, [pairs of columns of P][kPanelColumns steps], padded with zeros from step `count` on and to
// whole squares. `length` columns are adjacent. kParts as in load_pairs; 0: runs are shorter than a quarter of a
// vector.
template <int kParts>
void pack_transposed_pairs(float* panel, const float* b, const int32_t* steps, int64_t count, const int32_t* columns,
                           int64_t depth, int length) {
    alignas(64) float square[kFloats * kFloats];
    for (int64_t t = 0; t < depth; t += kPairSteps) {
        const int64_t left = smaller(kPairSteps, depth - t);
        for (int64_t first = 0; first < kPanelColumns; first += kFloats) {
            if (kParts > 0 && left == kPairSteps && first + kFloats <= count) {
#pragma GCC unroll 4
                for (int64_t k = 0; k < kFloats; ++k)
                    store(square + k * kFloats, load_pairs<kParts ? kParts : 1>(b + steps[first + k], columns + t));
            } else {
                alignas(64) float rows[kFloats * kPairSteps];
                clear(rows, kFloats * kPairSteps);
                for (int64_t k = 0; k < kFloats && first + k < count; ++k)
                    copy_columns(rows + k * kPairSteps, b + steps[first + k], columns + t, left,
                                 left % length == 0 ? length : 1);
                for (int64_t k = 0; k < kFloats; ++k)
                    convert_adjacent(square + k * kFloats, rows + k * kPairSteps, kPairSteps);
            }
            transpose_square(square, kFloats, panel + t / kSteps * kPanelColumns + first, kPanelColumns);
        }
    }
}

// Same loops as weight_gradient_by_rows, with pairs of columns; rows of Y are converted tile by tile.
void weight_gradient_bf16(const Patches& p, const Result& y, int64_t rows, Interval columns, bool accumulate,
                          float* out, int64_t out_row, float* pack) {
    if (suits_dot_products(p, y, rows))
        return weight_gradient_by_dot_products<true>(p, y, rows, columns, accumulate, out, out_row);
    constexpr int64_t kBlock = kPairs * kSteps;
    int32_t source[kBlock], result[kBlock], step_source[kChunk], step_pair[kPairs];
    alignas(64) float pairs[kTileRows * kPairs], row_of_y[kBlock];
    for (int i = 0; i < kPairs; ++i) step_pair[i] = i;
    const int64_t steps = columns.last - columns.first;
    const int64_t whole_panels = (steps + kPanelColumns - 1) / kPanelColumns * kPanelColumns;
    fill_offsets(step_source, p.b_channel, p.b_tap, p.taps, columns.first, columns.last);
    for (int64_t first = 0; first < p.columns(); first += kBlock) {
        const int64_t depth = smaller(kBlock, p.columns() - first);
        fill_offsets(source, p.b_image, p.b_position, p.positions, first, first + depth);
        fill_offsets(result, y.y_image, y.y_position, p.positions, first, first + depth);
        const bool adjacent = result[depth - 1] - result[0] == depth - 1;
        const int length = copy_length(p, first);
        const Work before = begin_work(Work::pack);
        for (int64_t k = 0; k < steps; k += kPanelColumns) {
            const auto run = [&](auto pack_panel) {
                pack_panel(pack + k * kPairs, p.b, step_source + k, smaller(kPanelColumns, steps - k), source, depth,
                           length);
            };
            if (length >= kFloats)
                run(pack_transposed_pairs<1>);
            else if (length == kFloats / 2)
                run(pack_transposed_pairs<2>);
            else if (length == kFloats / 4)
                run(pack_transposed_pairs<4>);
            else
                run(pack_transposed_pairs<0>);
        }
        begin_work(before);
        int tile;
        for (int64_t row = 0; row < rows; row += tile) {
            tile = tile_rows(rows - row);
            for (int i = 0; i < tile; ++i) {
                const float* from = y.y + (row + i) * y.y_row;
                if (!adjacent) copy_columns(row_of_y, from, result, depth, depth % length == 0 ? length : 1);
                convert_adjacent(pairs + i * kPairs, adjacent ? from + result[0] : row_of_y, depth);
            }
            int vectors;
            for (int64_t k = 0; k < steps; k += vectors * kFloats) {
                vectors = tile_vectors(most_vectors(tile), whole_panels - k);
                pair_kernel_of(tile, vectors,
                               1)({(depth + kSteps - 1) / kSteps, pairs, kPairs, step_pair, pack + k * kPairs, nullptr,
                                   out + row * out_row + k, out_row, kInOrder, kFloats, accumulate || first > 0});
            }
        }
    }
}

}  // namespace
}  // namespace metagan
