// Micro-kernel of every matrix product: an MR x NR tile of Y, [rows][vectors], stays in registers while k counts up,
// and each element of A is broadcast and multiplied with vectors of B (a rank-1 update for each k).
//
// A is read in place, and so is B where its columns come in runs that form vectors: a vector of B is loaded, and a
// vector of Y stored, in 1, 2 or 4 parts. Elsewhere B is packed beforehand; see pack.h. A tile of 12 x 2 vectors takes
// 24 of 32 registers for the sums and issues 26 loads for 24 multiply-adds; a processor does two of each at a time, so
// reading in place or in parts costs nothing as long as the operands are in the first-level cache.
#pragma once

#include "cpu/simd/vector.h"

namespace metagan {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 12;  // MR
// Tiles of few rows are wider, so that enough independent sums hide the latency of a multiply-add.
constexpr int most_vectors(int rows) { return rows <= 2 ? 8 : rows <= 6 ? 4 : 2; }
// Addresses of operands that the compiler keeps in general registers; a 64-bit ARM processor has 31 of them.
#if defined(__aarch64__)
constexpr int kAddresses = 16;
#else
constexpr int kAddresses = 2;
#endif
#else
constexpr int kTileRows = 6;  // MR: 12 of 16 registers hold sums
constexpr int most_vectors(int rows) { return rows == 1 ? 8 : rows == 2 ? 4 : 2; }
constexpr int kAddresses = 8;  // (docs/tuning.md#gemm-few-channels)
#endif
constexpr int kMostVectors = most_vectors(1);
constexpr double kLoneVector = 1.06;  // GemmKernels::lone_vector, measured (docs/tuning.md#gemm-lone-vector)
constexpr int kMostParts = 4;

// One call of the micro-kernel: operands, destination and their strides.
struct Tile {
    int64_t depth;
    const float* a;  // step k of row i is a[i * a_row + a_step[k]], or a[a_rows[i] + a_step[k]] for listed rows
    int64_t a_row;
    const int32_t *a_rows, *a_step;
    const float* b;  // part p of step k begins at b[b_part[p] + b_step[k]]
    const int32_t *b_part, *b_step;
    const float* start;  // initial sum of row i; null: 0
    float* y;            // part p of row i begins at y[i * y_row + y_part[p]]
    int64_t y_row;
    const int32_t* y_part;
    int last;  // columns of the last vector to store; fewer than kFloats only where a vector is one part
    bool add;  // add to Y instead of overwriting it
};

// Keeps a factor in one lane of a register, from where ARM's multiply-add broadcasts it: a load to all lanes takes a
// second, arithmetic, instruction slot there.
METAGAN_INLINE float in_one_lane(float x) {
#if defined(__aarch64__)
    __asm__("" : "+w"(x));
#endif
    return x;
}

// Loads a vector from kParts addresses. Intrinsics, because compilers route the general form through memory.
template <int kParts>
METAGAN_INLINE FloatVector load_parts(const float* const* from, int64_t offset) {
    if constexpr (kParts == 1) return load(from[0] + offset, FloatVector{});
#if defined(__AVX512F__)
    if constexpr (kParts == 2)
        return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(from[0] + offset)),
                                  _mm256_loadu_ps(from[1] + offset), 1);
    __m512 result = _mm512_castps128_ps512(_mm_loadu_ps(from[0] + offset));
    result = _mm512_insertf32x4(result, _mm_loadu_ps(from[1] + offset), 1);
    result = _mm512_insertf32x4(result, _mm_loadu_ps(from[2] + offset), 2);
    return _mm512_insertf32x4(result, _mm_loadu_ps(from[3] + offset), 3);
#else
#if defined(__AVX2__)
    if constexpr (kParts == 2)
        return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from[0] + offset)),
                                    _mm_loadu_ps(from[1] + offset), 1);
#elif defined(__aarch64__)
    if constexpr (kParts == 2) return vcombine_f32(vld1_f32(from[0] + offset), vld1_f32(from[1] + offset));
    if constexpr (kParts == 4) {
        float32x4_t result = vld1q_dup_f32(from[0] + offset);
        result = vld1q_lane_f32(from[1] + offset, result, 1);
        result = vld1q_lane_f32(from[2] + offset, result, 2);
        return vld1q_lane_f32(from[3] + offset, result, 3);
    }
#endif
    constexpr int kSize = kFloats / kParts;
    float lanes[kFloats];
    for (int p = 0; p < kParts; ++p) __builtin_memcpy(lanes + p * kSize, from[p] + offset, kSize * sizeof(float));
    return load(lanes, FloatVector{});
#endif
}

template <int kParts>
METAGAN_INLINE void store_parts(float* to, const int32_t* part, FloatVector value, bool add) {
    if (add) {
        const float* before[kParts];
#pragma GCC unroll 4
        for (int p = 0; p < kParts; ++p) before[p] = to + part[p];
        value += load_parts<kParts>(before, 0);
    }
    if constexpr (kParts == 1) return store(to + part[0], value);
#if defined(__AVX512F__)
    if constexpr (kParts == 2) {
        _mm256_storeu_ps(to + part[0], _mm512_castps512_ps256(value));
        _mm256_storeu_ps(to + part[1], _mm512_extractf32x8_ps(value, 1));
    } else {
        _mm_storeu_ps(to + part[0], _mm512_castps512_ps128(value));
        _mm_storeu_ps(to + part[1], _mm512_extractf32x4_ps(value, 1));
        _mm_storeu_ps(to + part[2], _mm512_extractf32x4_ps(value, 2));
        _mm_storeu_ps(to + part[3], _mm512_extractf32x4_ps(value, 3));
    }
#else
#if defined(__AVX2__)
    if constexpr (kParts == 2) {
        _mm_storeu_ps(to + part[0], _mm256_castps256_ps128(value));
        return _mm_storeu_ps(to + part[1], _mm256_extractf128_ps(value, 1));
    }
#elif defined(__aarch64__)
    if constexpr (kParts == 2) {
        vst1_f32(to + part[0], vget_low_f32(value));
        return vst1_f32(to + part[1], vget_high_f32(value));
    }
    if constexpr (kParts == 4) {
        vst1q_lane_f32(to + part[0], value, 0);
        vst1q_lane_f32(to + part[1], value, 1);
        vst1q_lane_f32(to + part[2], value, 2);
        return vst1q_lane_f32(to + part[3], value, 3);
    }
#endif
    constexpr int kSize = kFloats / kParts;
    float lanes[kFloats];
    store(lanes, value);
    for (int p = 0; p < kParts; ++p) __builtin_memcpy(to + part[p], lanes + p * kSize, kSize * sizeof(float));
#endif
}

// Stores a tile's sums to Y.
template <int kRows, int kVectors, int kStoreParts, class AnyTile>
METAGAN_INLINE void store_tile(const FloatVector (&sum)[kRows][kVectors], const AnyTile& t) {
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
        float* const row = t.y + i * t.y_row;
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
            if (v + 1 == kVectors && t.last < kFloats) {
                float* const to = row + t.y_part[v * kStoreParts];
                store_first(to, t.last, t.add ? sum[i][v] + load_first(to, t.last) : sum[i][v]);
            } else {
                store_parts<kStoreParts>(row, t.y_part + v * kStoreParts, sum[i][v], t.add);
            }
        }
    }
}

// Layout of the rows of A: a fixed stride apart, or at listed offsets.
enum class RowLayout { strided, listed };

// A compiler that has more addresses than general registers keeps them in vector registers and spills the sums. So
// strided rows are addressed from every third one, and tables of more than kAddresses are reloaded at each k.
template <RowLayout kLayout, int kRows, int kVectors, int kLoadParts, int kStoreParts>
void micro_kernel(const Tile& t) {
    constexpr bool kListed = kLayout == RowLayout::listed;
    const float *a[kRows], *b[kVectors * kLoadParts];
    for (int i = 0; i < kRows; ++i) a[i] = t.a + (kListed ? t.a_rows[i] : 0);
    for (int p = 0; p < kVectors * kLoadParts; ++p) b[p] = t.b + t.b_part[p];
    const int32_t *const a_steps = t.a_step, *const b_steps = t.b_step;
    const int64_t depth = t.depth, a_row = t.a_row;
    FloatVector sum[kRows][kVectors];
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sum[i][v] = FloatVector{} + (t.start ? t.start[i] : 0);
    }
    for (int64_t k = 0; k < depth; ++k) {
        if constexpr ((kListed ? kRows : 0) + kVectors * kLoadParts > kAddresses)
            __asm__ volatile("" : : "r"(a), "r"(b) : "memory");
        const int64_t a_step = a_steps[k], b_step = b_steps[k];
        FloatVector column[kVectors];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) column[v] = load_parts<kLoadParts>(b + v * kLoadParts, b_step);
        const float* row = t.a + a_step;
#pragma GCC unroll 12
        for (int i = 0; i < kRows; ++i) {
            if (!kListed && i > 0 && i % 3 == 0) {
                row += 3 * a_row;
                __asm__("" : "+r"(row));
            }
            const float broadcast = in_one_lane(kListed ? a[i][a_step] : row[i % 3 * a_row]);
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) sum[i][v] += broadcast * column[v];
        }
    }
    store_tile<kRows, kVectors, kStoreParts>(sum, t);
}

// Number of rows of the next smaller tile; tile_rows() lists the same sizes.
constexpr int next_tile_rows(int rows) { return rows > 8 ? 8 : rows > 6 ? 6 : rows > 4 ? 4 : rows - 1; }

using MicroKernel = void (*)(const Tile&);

template <RowLayout kLayout, int kRows, int kLoadParts, int kStoreParts, int kVectors>
MicroKernel with_vectors(int vectors) {
    if constexpr (kVectors > 1)
        if (vectors < kVectors) return with_vectors<kLayout, kRows, kLoadParts, kStoreParts, kVectors / 2>(vectors);
    return micro_kernel<kLayout, kRows, kVectors, kLoadParts, kStoreParts>;
}

template <RowLayout kLayout, int kLoadParts, int kStoreParts, int kRows = kTileRows>
MicroKernel with_rows(int rows, int vectors) {
    constexpr int kSmaller = next_tile_rows(kRows);
    if constexpr (kRows > 1)
        if (rows < kRows) return with_rows<kLayout, kLoadParts, kStoreParts, kSmaller>(rows, vectors);
    constexpr int kMost = kLayout == RowLayout::listed ? 2 : most_vectors(kRows);
    return with_vectors<kLayout, kRows, kLoadParts, kStoreParts, kMost>(vectors);
}

// Number of rows of the next tile when `left` rows remain: one of the sizes above.
METAGAN_INLINE int tile_rows(int64_t left) {
    if (left >= kTileRows) return kTileRows;
    return left >= 8 ? 8 : left >= 6 ? 6 : left >= 4 ? 4 : static_cast<int>(left);
}

// Number of vectors of the next tile when `left` columns remain; the last vector may be partly filled.
METAGAN_INLINE int tile_vectors(int most, int64_t left) {
    while (most > 1 && left <= (most - 1) * kFloats) most /= 2;
    return most;
}

// Micro-kernel for strided rows. B is loaded in as many parts as Y is stored when it is read in place, in one part from
// a panel.
inline MicroKernel micro_kernel_of(int rows, int vectors, int load_parts, int store_parts) {
    if (load_parts == 4) return with_rows<RowLayout::strided, 4, 4>(rows, vectors);
    if (load_parts == 2) return with_rows<RowLayout::strided, 2, 2>(rows, vectors);
    if (store_parts == 4) return with_rows<RowLayout::strided, 1, 4>(rows, vectors);
    if (store_parts == 2) return with_rows<RowLayout::strided, 1, 2>(rows, vectors);
    return with_rows<RowLayout::strided, 1, 1>(rows, vectors);
}

}  // namespace
}  // namespace metagan
