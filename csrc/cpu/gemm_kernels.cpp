// Compiled once for every instruction set, METAGAN_ISA. No standard library code is used: an inline function of it,
// compiled here for a newer processor, could be the copy that the linker keeps for all.
#include "gemm.h"

#include "micro_kernel.h"
#include "pack.h"

namespace metagan {
namespace {

constexpr int kPanelVectors = 2;
constexpr int kPanelColumns = kPanelVectors * kFloats;

// In how many parts a vector of columns lies in memory: 1 where all columns are adjacent or runs are whole vectors, 2
// or 4 where runs are a half or a quarter, 0 where they are shorter or odd.
int parts_of(const Patches& p) {
    if (p.run == p.columns() || p.run % kFloats == 0) return 1;
    return p.run % (kFloats / 2) == 0 ? 2 : p.run % (kFloats / 4) == 0 ? 4 : 0;
}

// How many elements from column `first` on can be copied at once: a power of two up to 16.
int copy_length(const Patches& p, int64_t first) {
    int64_t length = 16;
    while (p.run % length != 0 || first % p.positions % length != 0) length /= 2;
    return static_cast<int>(length);
}

// Writes a tile, rows kMostVectors vectors apart, to columns that lie anywhere.
void scatter(const float* tile, int rows, int64_t columns, float* y, int64_t y_row, const int32_t* to, bool add) {
    for (int i = 0; i < rows; ++i, tile += kMostVectors * kFloats, y += y_row)
        for (int64_t c = 0; c < columns; ++c) y[to[c]] = add ? y[to[c]] + tile[c] : tile[c];
}

constexpr int32_t kInOrder[8] = {
    // vectors one behind the other
    0 * kFloats, 1 * kFloats, 2 * kFloats, 3 * kFloats, 4 * kFloats, 5 * kFloats, 6 * kFloats, 7 * kFloats,
};

// For each block of columns and of depth, rows of W go by in tiles, and each tile meets all columns: its part of W,
// some ten kilobytes, stays in the first-level cache, the columns in the second-level one. Columns are read where they
// lie if a vector of them is one load, or rows are so few that packing would not pay.
void multiply(const Patches& p, const Weights& w, const Result& y, const Part& part, const float* bias, bool accumulate,
              float* pack) {
    int32_t source[kWidth], target[kWidth], step_source[kDepth], step_weight[kDepth], step_panel[kDepth];
    alignas(64) float tile_of_y[kTileRows * kMostVectors * kFloats];
    for (int i = 0; i < kDepth; ++i) step_panel[i] = i * kPanelColumns;
    const int parts = parts_of(p);
    const int64_t rows_in_all = part.last_row - part.first_row;
    const bool in_place = parts == 1 || (parts > 1 && rows_in_all <= (parts == 2 ? 3 : 2) * kTileRows);
    for (int64_t first = part.first_column; first < part.last_column; first += kWidth) {
        const int64_t columns = smaller(kWidth, part.last_column - first);
        fill_offsets(source, p.b_image, p.b_position, p.positions, first, first + columns);
        fill_offsets(target, y.y_image, y.y_position, p.positions, first, first + columns);
        for (int64_t step = 0; step < p.depth(); step += kDepth) {
            const int64_t depth = smaller(kDepth, p.depth() - step);
            const bool add = accumulate || step > 0;
            fill_offsets(step_source, p.b_channel, p.b_tap, p.taps, step, step + depth);
            fill_offsets(step_weight, w.w_channel, w.w_tap, p.taps, step, step + depth);
            for (int64_t j = 0; !in_place && j < columns; j += kPanelColumns)
                pack_panel(pack + j * kDepth, kPanelColumns, p.b, step_source, depth, source + j,
                           smaller(kPanelColumns, columns - j), copy_length(p, first));
            int rows;
            for (int64_t row = part.first_row; row < part.last_row; row += rows) {
                rows = tile_rows(part.last_row - row);
                Tile tile{};
                tile.depth = depth;
                tile.a = w.w + row * w.w_row;
                tile.a_row = w.w_row;
                tile.a_step = step_weight;
                tile.start = add || !bias ? nullptr : bias + row;
                const int most = in_place ? most_vectors(rows) : kPanelVectors;
                int vectors;
                for (int64_t j = 0; j < columns; j += vectors * kFloats) {
                    vectors = tile_vectors(most, columns - j);
                    const int64_t count = smaller(vectors * kFloats, columns - j);
                    const bool whole = count == vectors * kFloats;
                    const bool adjacent = target[j + count - 1] - target[j] == count - 1;
                    const int load_parts = in_place ? parts : 1, store_parts = in_place || !adjacent ? parts : 1;
                    // The micro-kernel writes to Y itself where vectors or parts of them are adjacent there.
                    const bool direct = store_parts && (whole || (adjacent && store_parts == 1));
                    int32_t b_part[kMostVectors * kMostParts], y_part[kMostVectors * kMostParts];
                    for (int i = 0; in_place && i < vectors * parts; ++i)
                        b_part[i] = source[j + smaller(i * (kFloats / parts), count - 1)];
                    for (int i = 0; i < vectors * (store_parts ? store_parts : 1); ++i) {
                        const int column = i * (store_parts ? kFloats / store_parts : kFloats);
                        y_part[i] = !direct ? column : adjacent ? target[j] + column : target[j + column];
                    }
                    if (in_place) {
                        tile.b = p.b;
                        tile.b_part = b_part;
                        tile.b_step = step_source;
                    } else {
                        tile.b = pack + j * kDepth;
                        tile.b_part = kInOrder;
                        tile.b_step = step_panel;
                    }
                    tile.y = direct ? y.y + row * y.y_row : tile_of_y;
                    tile.y_row = direct ? y.y_row : kMostVectors * kFloats;
                    tile.y_part = y_part;
                    tile.last = direct ? static_cast<int>(count - (vectors - 1) * kFloats) : kFloats;
                    tile.add = direct && add;
                    micro_kernel_of(rows, vectors, load_parts, store_parts)(tile);
                    if (!direct) scatter(tile_of_y, rows, count, y.y + row * y.y_row, y.y_row, target + j, add);
                }
            }
        }
    }
}

// W as a sum over the columns of Y, kDepth of them at a time, with P^T packed: a panel of P serves every row of Y.
void correlate_by_rows(const Patches& p, const Result& y, const Part& part, float* out, int64_t out_row, float* pack) {
    int32_t source[kDepth], result[kDepth], step_source[kChunk], step_panel[kDepth];
    for (int i = 0; i < kDepth; ++i) step_panel[i] = i * kPanelColumns;
    const int64_t steps = part.last_column - part.first_column;
    fill_offsets(step_source, p.b_channel, p.b_tap, p.taps, part.first_column, part.last_column);
    for (int64_t first = 0; first < p.columns(); first += kDepth) {
        const int64_t depth = smaller(kDepth, p.columns() - first);
        fill_offsets(source, p.b_image, p.b_position, p.positions, first, first + depth);
        fill_offsets(result, y.y_image, y.y_position, p.positions, first, first + depth);
        for (int64_t k = 0; k < steps; k += kPanelColumns)
            pack_transposed_panel(pack + k * kDepth, kPanelColumns, p.b, step_source + k,
                                  smaller(kPanelColumns, steps - k), source, depth, copy_length(p, first));
        int rows;
        for (int64_t row = part.first_row; row < part.last_row; row += rows) {
            rows = tile_rows(part.last_row - row);
            const MicroKernel kernel = micro_kernel_of(rows, kPanelVectors, 1, 1);
            for (int64_t k = 0; k < steps; k += kPanelColumns)
                kernel({depth, y.y + row * y.y_row, y.y_row, nullptr, result, pack + k * kDepth, kInOrder, step_panel,
                        nullptr, out + (row - part.first_row) * out_row + k, out_row, kInOrder, kFloats, first > 0});
        }
    }
}

// The same sum, in the same order, with Y^T packed and P read in place, which makes the transpose of W: for few rows.
void correlate_by_columns(const Patches& p, const Result& y, const Part& part, float* out, int64_t out_row,
                          float* pack) {
    constexpr int64_t kBlockRows = 128;
    static_assert(kBlockRows * (kDepth + kChunk) <= kPackFloats);
    int32_t source[kDepth], result[kDepth], step_panel[kDepth], row_of_y[kBlockRows], step_source[kChunk];
    for (int i = 0; i < kDepth; ++i) step_panel[i] = i * kPanelColumns;
    const int64_t steps = part.last_column - part.first_column;
    fill_offsets(step_source, p.b_channel, p.b_tap, p.taps, part.first_column, part.last_column);
    float* const transposed = pack + kBlockRows * kDepth;
    for (int64_t row = part.first_row; row < part.last_row; row += kBlockRows) {
        const int64_t rows = smaller(kBlockRows, part.last_row - row);
        for (int64_t i = 0; i < rows; ++i) row_of_y[i] = static_cast<int32_t>(i * y.y_row);
        for (int64_t first = 0; first < p.columns(); first += kDepth) {
            const int64_t depth = smaller(kDepth, p.columns() - first);
            fill_offsets(source, p.b_image, p.b_position, p.positions, first, first + depth);
            fill_offsets(result, y.y_image, y.y_position, p.positions, first, first + depth);
            for (int64_t i = 0; i < rows; i += kPanelColumns)
                pack_transposed_panel(pack + i * kDepth, kPanelColumns, y.y + row * y.y_row, row_of_y + i,
                                      smaller(kPanelColumns, rows - i), result, depth,
                                      result[depth - 1] - result[0] == depth - 1 ? kFloats : 1);
            int taps;
            for (int64_t k = 0; k < steps; k += taps) {
                taps = tile_rows(steps - k);
                for (int64_t i = 0; i < rows; i += kPanelColumns) {
                    const int vectors = tile_vectors(kPanelVectors, rows - i);
                    with_rows<Rows::listed, 1, 1>(taps, vectors)(
                        {depth, p.b, 0, step_source + k, source, pack + i * kDepth, kInOrder, step_panel, nullptr,
                         transposed + k * kBlockRows + i, kBlockRows, kInOrder, kFloats, first > 0});
                }
            }
        }
        transpose(transposed, kBlockRows, steps, rows, out + (row - part.first_row) * out_row, out_row);
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

void correlate_by_dot_products(const Patches& p, const Result& y, const Part& part, float* out, int64_t out_row) {
    constexpr int64_t kColumns = 2048;  // four rows of Y, a quarter of the first-level cache each
    int32_t source[kColumns], step_source[kChunk];
    const int64_t steps = part.last_column - part.first_column;
    fill_offsets(step_source, p.b_channel, p.b_tap, p.taps, part.first_column, part.last_column);
    for (int64_t i = 0; i < part.last_row - part.first_row; ++i) clear(out + i * out_row, steps);
    for (int64_t first = 0; first < p.columns(); first += kColumns) {
        const int64_t count = smaller(kColumns, p.columns() - first);
        fill_offsets(source, p.b_image, p.b_position, p.positions, first, first + count);
        int rows;
        for (int64_t row = part.first_row; row < part.last_row; row += rows) {
            rows = part.last_row - row >= 4 ? 4 : part.last_row - row >= 2 ? 2 : 1;
            const auto run = [&](auto dot) {
                dot(rows, y.y + row * y.y_row + first, y.y_row, p.b, step_source, steps, source, count,
                    out + (row - part.first_row) * out_row, out_row);
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

// Packing P takes time in proportion to 1 / rows, packing Y and turning W round to 1 / columns + 1 / steps.
void correlate(const Patches& p, const Result& y, const Part& part, float* out, int64_t out_row, float* pack) {
    const int64_t rows = part.last_row - part.first_row, steps = part.last_column - part.first_column;
    const bool adjacent = (p.images == 1 || y.y_image == p.positions) &&
                          y.y_position[p.positions - 1] - y.y_position[0] == p.positions - 1;
    const bool long_sums = p.columns() >= 32 * kFloats;  // beside the sum over the lanes of a vector
    if (rows <= kFloats / 2 && long_sums && parts_of(p) && adjacent)
        return correlate_by_dot_products(p, y, part, out, out_row);
    if (rows * (p.columns() + steps) < p.columns() * steps) return correlate_by_columns(p, y, part, out, out_row, pack);
    correlate_by_rows(p, y, part, out, out_row, pack);
}

}  // namespace

const GemmKernels METAGAN_FOR_ISA(gemm_kernels_) = {multiply, correlate, kTileRows, kPanelColumns};

}  // namespace metagan
