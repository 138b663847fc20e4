// Operands of products in bf16. A word is 32 bits, kept in a float's place: where the processor multiplies pairs of
// bf16 numbers and adds up in float32, two steps of k; elsewhere one step, rounded to bf16, and products and sums are
// those of float32. Either way a product of two operands is exact before it is added. (The instruction adds both
// products of a pair in one go, with roundings of its own, and takes denormals for zeros.)
//
// Both operands are converted on their way into a buffer: B into panels as wide as the tile, A into rows kPairs apart,
// unless all of A has been converted beforehand.
#pragma once

#include "micro_kernel.h"
#include "pack.h"

namespace metagan {
namespace {

#if defined(__AVX512BF16__)
constexpr int kSteps = 2;            // in a word
constexpr double kLonePairs = 1.35;  // GemmKernels::lone_vector: 87 of 117 G multiply-adds/s on a Zen 4 core
#else
constexpr int kSteps = 1;
constexpr double kLonePairs = kLoneVector;
#endif
constexpr int64_t kPairs = 256;  // what is summed between two visits of a result
static_assert(kPairs * kWidth <= kPackFloats && kPairs * kChunk <= kPackFloats && kPairs <= kDepth);

// Words of two steps each of which is a vector; of one step, where a word is one.
METAGAN_INLINE FloatVector join(FloatVector first, FloatVector second) {
#if defined(__AVX512BF16__)
    using Lanes = uint16_t __attribute__((vector_size(kVectorBytes)));
    constexpr Lanes kAlternate = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                  8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512bh both = _mm512_cvtne2ps_pbh(second, first);
    return reinterpret_cast<FloatVector>(
        _mm512_permutexvar_epi16(reinterpret_cast<__m512i>(kAlternate), reinterpret_cast<__m512i>(both)));
#else
    static_cast<void>(second);
    return round_to_bfloat16(first);
#endif
}

// Words of steps that follow one another: the first half of the words in `first`, the other half in `second`.
METAGAN_INLINE FloatVector join_adjacent(FloatVector first, FloatVector second) {
#if defined(__AVX512BF16__)
    return reinterpret_cast<FloatVector>(_mm512_cvtne2ps_pbh(second, first));
#else
    return join(first, second);
#endif
}

METAGAN_INLINE FloatVector multiply_add(FloatVector sum, float pair, FloatVector pairs) {
#if defined(__AVX512BF16__)
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(_mm512_set1_ps(pair)), reinterpret_cast<__m512bh>(pairs));
#else
    return sum + pair * pairs;
#endif
}

struct PairTile {
    int64_t pairs;
    const float* a;  // row i of word k is a[i * a_row + a_step[k]]
    int64_t a_row;
    const int32_t* a_step;
    const float* b;      // panels, word k of a panel at [k * kPanelColumns]
    const float* start;  // and the rest, as in Tile
    float* y;
    int64_t y_row;
    const int32_t* y_part;
    int last;
    bool add;
};

template <int kRows, int kVectors, int kStoreParts>
void pair_kernel(const PairTile& t) {
    FloatVector sum[kRows][kVectors];
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sum[i][v] = FloatVector{} + (t.start ? t.start[i] : 0);
    }
    const float *const a = t.a, *b = t.b;
    const int32_t* const a_step = t.a_step;
    const int64_t pairs = t.pairs, a_row = t.a_row;
    for (int64_t k = 0; k < pairs; ++k, b += kPanelColumns) {
        FloatVector column[kVectors];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v)
            column[v] =
                load(b + v / kPanelVectors * kPairs * kPanelColumns + v % kPanelVectors * kFloats, FloatVector{});
        const float* row = a + a_step[k];
#pragma GCC unroll 12
        for (int i = 0; i < kRows; ++i) {
            if (i > 0 && i % 3 == 0) {
                row += 3 * a_row;
                __asm__("" : "+r"(row));
            }
            const float broadcast = row[i % 3 * a_row];
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) sum[i][v] = multiply_add(sum[i][v], broadcast, column[v]);
        }
    }
    store_tile<kRows, kVectors, kStoreParts>(sum, t);
}

using PairKernel = void (*)(const PairTile&);

template <int kRows, int kStoreParts, int kVectors>
PairKernel pair_kernel_with_vectors(int vectors) {
    if constexpr (kVectors > 1)
        if (vectors < kVectors) return pair_kernel_with_vectors<kRows, kStoreParts, kVectors / 2>(vectors);
    return pair_kernel<kRows, kVectors, kStoreParts>;
}

template <int kStoreParts, int kRows = kTileRows>
PairKernel pair_kernel_with_rows(int rows, int vectors) {
    constexpr int kSmaller = next_tile_rows(kRows);
    if constexpr (kRows > 1)
        if (rows < kRows) return pair_kernel_with_rows<kStoreParts, kSmaller>(rows, vectors);
    return pair_kernel_with_vectors<kRows, kStoreParts, most_vectors(kRows)>(vectors);
}

inline PairKernel pair_kernel_of(int rows, int vectors, int store_parts) {
    if (store_parts == 4) return pair_kernel_with_rows<4>(rows, vectors);
    if (store_parts == 2) return pair_kernel_with_rows<2>(rows, vectors);
    return pair_kernel_with_rows<1>(rows, vectors);
}

// Converts `count` adjacent steps, as whole vectors of words; what is beyond is zero.
METAGAN_INLINE void convert_adjacent(float* to, const float* from, int64_t count) {
    for (int64_t j = 0; j < count; j += kSteps * kFloats, to += kFloats) {
        const int64_t left = count - j;
        const int first = static_cast<int>(smaller(left, kFloats));
        const int second = kSteps == 2 && left > kFloats ? static_cast<int>(smaller(left - kFloats, kFloats)) : 0;
        store(to, join_adjacent(load_first(from + j, first), load_first(from + j + first, second)));
    }
}

}  // namespace
}  // namespace metagan
