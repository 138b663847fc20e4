// Operands of bf16 products and their micro-kernel. A pair is 32 bits, stored in a float. Where the processor has a dot
// product of bf16 pairs with float32 accumulation (METAGAN_BF16_DOT), a pair holds two steps of k; elsewhere it holds
// one step, rounded to bf16, and is multiplied and added in float32. Either way the product of two operands is exact
// before it is added. (The instruction adds both products of a pair at once, with its own rounding, and flushes
// denormals to zero.)
//
// Both operands are converted while they are packed: B into panels of kPanelColumns, A into rows kPairs apart, unless
// all of A was converted beforehand.
#pragma once

#include "micro_kernel.h"
#include "pack.h"

namespace metagan {
namespace {

#ifdef METAGAN_BF16_DOT
constexpr int kSteps = 2;  // steps of k in a pair
#else
constexpr int kSteps = 1;
#endif
#if defined(__AVX512BF16__)
constexpr double kLonePairs = 1.35;  // GemmKernels::lone_vector, measured (docs/tuning.md#gemm-lone-vector)
#else
constexpr double kLonePairs = kLoneVector;
#endif
constexpr int64_t kPairs = 256;  // depth of a block, as kDepth, in pairs
static_assert(kPairs * kWidth <= kPackFloats && kPairs * kChunk <= kPackFloats && kPairs <= kDepth);

#if defined(METAGAN_BF16_DOT) && defined(__aarch64__)
// Converts two vectors. No intrinsics, because clang 14 fails to compile their combinations with shuffles.
METAGAN_INLINE uint16x8_t to_bfloat16(FloatVector low, FloatVector high) {
    uint16x8_t both;
    __asm__("bfcvtn %0.4h, %1.4s\n\tbfcvtn2 %0.8h, %2.4s" : "=&w"(both) : "w"(low), "w"(high));
    return both;
}
#endif

// Pairs from two vectors, the first and the second step; from `first` alone where a pair is one step.
METAGAN_INLINE FloatVector join(FloatVector first, FloatVector second) {
#if defined(__AVX512BF16__)
    using Lanes = uint16_t __attribute__((vector_size(kVectorBytes)));
    constexpr Lanes kAlternate = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                  8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512bh both = _mm512_cvtne2ps_pbh(second, first);
    return reinterpret_cast<FloatVector>(
        _mm512_permutexvar_epi16(reinterpret_cast<__m512i>(kAlternate), reinterpret_cast<__m512i>(both)));
#elif defined(METAGAN_BF16_DOT)
    const uint16x8_t both = to_bfloat16(first, second);
    return reinterpret_cast<FloatVector>(vzip1q_u16(both, vextq_u16(both, both, 4)));
#else
    static_cast<void>(second);
    return round_to_bfloat16(first);
#endif
}

// Pairs of adjacent elements of `first` followed by `second`: each vector yields half of the pairs.
METAGAN_INLINE FloatVector join_adjacent(FloatVector first, FloatVector second) {
#if defined(__AVX512BF16__)
    return reinterpret_cast<FloatVector>(_mm512_cvtne2ps_pbh(second, first));
#elif defined(METAGAN_BF16_DOT)
    return reinterpret_cast<FloatVector>(to_bfloat16(first, second));
#else
    return join(first, second);
#endif
}

METAGAN_INLINE FloatVector multiply_add(FloatVector sum, float pair, FloatVector pairs) {
#if defined(__AVX512BF16__)
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(_mm512_set1_ps(pair)), reinterpret_cast<__m512bh>(pairs));
#elif defined(METAGAN_BF16_DOT)
#if defined(__clang__)
    const float32x2_t factor = vdup_n_f32(pair);
#else
    float32x2_t factor;
    __asm__("" : "=w"(factor) : "0"(pair));  // a conversion would clear lane 1, which is not used
#endif
    return vbfdotq_lane_f32(sum, vreinterpretq_bf16_f32(pairs), vreinterpret_bf16_f32(factor), 0);
#else
    return sum + pair * pairs;
#endif
}

// One call of the micro-kernel on bf16 pairs; see Tile.
struct PairTile {
    int64_t pairs;
    const float* a;  // pair k of row i is a[i * a_row + a_step[k]]
    int64_t a_row;
    const int32_t* a_step;
    const float* b;      // panels; pair k of a panel is at [k * kPanelColumns]
    const float* start;  // from here on as in Tile
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
            const float broadcast = in_one_lane(row[i % 3 * a_row]);
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

// Converts `count` adjacent steps into whole vectors of pairs, padded with zeros.
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
