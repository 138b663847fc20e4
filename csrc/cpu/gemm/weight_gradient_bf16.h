// W = Y P^T with operands in bf16; see gemm.h and words.h. Included by gemm_bf16_kernels.cpp alone.
#pragma once

#include "bf16_pairs.h"
#include "cpu/runtime/profile.h"
#include "dot_products.h"
#include "gemm.h"

namespace metagan {
namespace {

constexpr int64_t kPairSteps = kFloats * kSteps;  // of a vector of words

// The words of kPairSteps columns of a row, in parts of vectors.
template <int kParts>
METAGAN_INLINE FloatVector words_of_columns(const float* b, const int32_t* columns) {
    const float *first[kParts], *second[kParts];
    for (int p = 0; p < kParts; ++p) {
        first[p] = b + columns[p * (kFloats / kParts)];
        second[p] = kSteps == 2 ? b + columns[kFloats + p * (kFloats / kParts)] : nullptr;
    }
    const FloatVector low = load_parts<kParts>(first, 0);
    return join_adjacent(low, kSteps == 2 ? load_parts<kParts>(second, 0) : low);
}

// A panel of P^T: words of columns of P, [words][kPanelColumns steps]; steps beyond `count` zero. Whole squares are
// written. `length`: how many columns are adjacent.
template <int kParts>
void pack_transposed_words(float* panel, const float* b, const int32_t* steps, int64_t count, const int32_t* columns,
                           int64_t depth, int length) {
    alignas(64) float square[kFloats * kFloats];
    for (int64_t t = 0; t < depth; t += kPairSteps) {
        const int64_t left = smaller(kPairSteps, depth - t);
        for (int64_t first = 0; first < kPanelColumns; first += kFloats) {
            if (kParts > 0 && left == kPairSteps && first + kFloats <= count) {
#pragma GCC unroll 4
                for (int64_t k = 0; k < kFloats; ++k)
                    store(square + k * kFloats,
                          words_of_columns<kParts ? kParts : 1>(b + steps[first + k], columns + t));
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

void weight_gradient_bf16(const Patches& p, const Result& y, int64_t rows, Interval columns, bool accumulate,
                          float* out, int64_t out_row, float* pack) {
    if (suits_dot_products(p, y, rows))
        return weight_gradient_by_dot_products<true>(p, y, rows, columns, accumulate, out, out_row);
    constexpr int64_t kBlock = kPairs * kSteps;
    int32_t source[kBlock], result[kBlock], step_source[kChunk], step_word[kPairs];
    alignas(64) float pairs[kTileRows * kPairs], row_of_y[kBlock];
    for (int i = 0; i < kPairs; ++i) step_word[i] = i;
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
                run(pack_transposed_words<1>);
            else if (length == kFloats / 2)
                run(pack_transposed_words<2>);
            else if (length == kFloats / 4)
                run(pack_transposed_words<4>);
            else
                run(pack_transposed_words<0>);
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
                               1)({(depth + kSteps - 1) / kSteps, pairs, kPairs, step_word, pack + k * kPairs, nullptr,
                                   out + row * out_row + k, out_row, kInOrder, kFloats, accumulate || first > 0});
            }
        }
    }
}

}  // namespace
}  // namespace metagan
