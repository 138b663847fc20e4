// Compiled once for every instruction set, METAGAN_ISA. No standard library code is used: an inline function of it,
// compiled here for a newer processor, could be the copy that the linker keeps for all.
#include "gemm.h"
#include "vector.h"

namespace metagan {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 12;  // 24 accumulators, two vectors of P and a broadcast: 27 of 32 registers
#else
constexpr int kTileRows = 6;  // 12 accumulators of 16 registers
#endif
constexpr int kTileVectors = 2;
constexpr int kTileColumns = kTileVectors * kFloats;

METAGAN_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// A tile of Y, [kRows][kVectors], from A in place (row i of step k at a[i * a_row + a_step[k]]) and a panel of B. The
// sums start at start[i], or at 0 without `start`, and are written to y or, with `add`, added to it.
template <int kRows, int kVectors>
void micro_kernel(int64_t depth, const float* a, int64_t a_row, const int32_t* a_step, const float* panel,
                  const float* start, float* y, int64_t y_row, bool add) {
    FloatVector sum[kRows][kVectors];
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sum[i][v] = FloatVector{} + (start ? start[i] : 0);
    }
    for (int64_t k = 0; k < depth; ++k) {
        const float* from = a + a_step[k];
        FloatVector b[kVectors];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) b[v] = load(panel + (k * kVectors + v) * kFloats, FloatVector{});
#pragma GCC unroll 12
        for (int i = 0; i < kRows; ++i) {
            const float broadcast = from[i * a_row];
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v) sum[i][v] += broadcast * b[v];
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
            float* to = y + i * y_row + v * kFloats;
            store(to, add ? load(to, FloatVector{}) + sum[i][v] : sum[i][v]);
        }
    }
}

using MicroKernel = void (*)(int64_t, const float*, int64_t, const int32_t*, const float*, const float*, float*,
                             int64_t, bool);

template <int kRows = kTileRows>
MicroKernel micro_kernel_of(int64_t rows, int vectors) {
    if constexpr (kRows > 1)
        if (rows < kRows) return micro_kernel_of<kRows - 1>(rows, vectors);
    return vectors == 1 ? micro_kernel<kRows, 1> : micro_kernel<kRows, 2>;
}

// Rows are shared out evenly among as few tiles as there can be: 16 are 8 and 8, not 12 and 4.
struct RowTiles {
    int64_t first, last, count;
    RowTiles(int64_t first, int64_t last)
        : first(first), last(last), count((last - first + kTileRows - 1) / kTileRows) {}
    int64_t begin(int64_t tile) const { return first + (last - first) * tile / count; }
};

// Writes outer * stride + table[inner] for the indices first to last, where index = outer * size + inner.
void fill_offsets(int32_t* to, int64_t stride, const int32_t* table, int64_t size, int64_t first, int64_t last) {
    int64_t outer = first / size, inner = first % size;
    for (int64_t i = first; i < last; ++i) {
        *to++ = static_cast<int32_t>(outer * stride + table[inner]);
        if (++inner == size) inner = 0, ++outer;
    }
}

// How many elements from column `first` on can be copied at once: a power of two up to 16.
int copy_length(const Patches& p, int64_t first) {
    int64_t length = 16;
    while (p.run % length != 0 || first % p.positions % length != 0) length /= 2;
    return static_cast<int>(length);
}

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

void multiply(const Patches& p, const Weights& w, const Result& y, const Part& part, const float* bias, bool accumulate,
              float* pack) {
    int32_t source[kWidth], target[kWidth], step_source[kDepth], step_weight[kDepth];
    alignas(64) float tile[kTileRows * kTileColumns];
    const RowTiles tiles(part.first_row, part.last_row);
    for (int64_t first = part.first_column; first < part.last_column; first += kWidth) {
        const int64_t last = smaller(first + kWidth, part.last_column);
        fill_offsets(source, p.b_image, p.b_position, p.positions, first, last);
        fill_offsets(target, y.y_image, y.y_position, p.positions, first, last);
        for (int64_t step = 0; step < p.depth(); step += kDepth) {
            const int64_t depth = smaller(kDepth, p.depth() - step);
            const bool add = accumulate || step > 0;
            fill_offsets(step_source, p.b_channel, p.b_tap, p.taps, step, step + depth);
            fill_offsets(step_weight, w.w_channel, w.w_tap, p.taps, step, step + depth);
            for (int64_t j = 0; j < last - first; j += kTileColumns) {
                const int64_t count = smaller(kTileColumns, last - first - j);
                pack_panel(pack + j * kDepth, count <= kFloats ? kFloats : kTileColumns, p.b, step_source, depth,
                           source + j, count, copy_length(p, first));
            }
            for (int64_t t = 0; t < tiles.count; ++t) {
                const int64_t row = tiles.begin(t), rows = tiles.begin(t + 1) - row;
                const float* const a = w.w + row * w.w_row;
                const float* const start = add || !bias ? nullptr : bias + row;
                float* const out = y.y + row * y.y_row;
                for (int64_t j = 0; j < last - first; j += kTileColumns) {
                    const int64_t count = smaller(kTileColumns, last - first - j);
                    const int vectors = count <= kFloats ? 1 : kTileVectors;
                    const int32_t* const to = target + j;
                    const MicroKernel kernel = micro_kernel_of(rows, vectors);
                    if (count == vectors * kFloats && to[count - 1] - to[0] == count - 1) {
                        kernel(depth, a, w.w_row, step_weight, pack + j * kDepth, start, out + to[0], y.y_row, add);
                        continue;
                    }
                    kernel(depth, a, w.w_row, step_weight, pack + j * kDepth, start, tile, kTileColumns, false);
                    for (int64_t i = 0; i < rows; ++i) {
                        float* const y_row = out + i * y.y_row;
                        const float* const sums = tile + i * kTileColumns;
                        for (int64_t c = 0; c < count; ++c) y_row[to[c]] = add ? y_row[to[c]] + sums[c] : sums[c];
                    }
                }
            }
        }
    }
}

void correlate(const Patches& p, const Result& y, const Part& part, float* out, int64_t out_row, float* pack) {
    int32_t source[kDepth], result[kDepth], step_source[kChunk];
    const RowTiles tiles(part.first_row, part.last_row);
    const int64_t steps = part.last_column - part.first_column;
    fill_offsets(step_source, p.b_channel, p.b_tap, p.taps, part.first_column, part.last_column);
    for (int64_t first = 0; first < p.columns(); first += kDepth) {
        const int64_t depth = smaller(kDepth, p.columns() - first);
        fill_offsets(source, p.b_image, p.b_position, p.positions, first, first + depth);
        fill_offsets(result, y.y_image, y.y_position, p.positions, first, first + depth);
        for (int64_t k = 0; k < steps; k += kTileColumns)
            pack_transposed_panel(pack + k * kDepth, kTileColumns, p.b, step_source + k,
                                  smaller(kTileColumns, steps - k), source, depth, copy_length(p, first));
        for (int64_t t = 0; t < tiles.count; ++t) {
            const int64_t row = tiles.begin(t);
            const MicroKernel kernel = micro_kernel_of(tiles.begin(t + 1) - row, kTileVectors);
            for (int64_t k = 0; k < steps; k += kTileColumns)
                kernel(depth, y.y + row * y.y_row, y.y_row, result, pack + k * kDepth, nullptr,
                       out + (row - part.first_row) * out_row + k, out_row, first > 0);
        }
    }
}

}  // namespace

const GemmKernels METAGAN_FOR_ISA(gemm_kernels_) = {multiply, correlate, kTileRows, kTileColumns};

}  // namespace metagan
