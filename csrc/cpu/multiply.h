// Y = W P; see gemm.h. Included by gemm_kernels.cpp alone.
#pragma once

#include "gemm.h"
#include "micro_kernel.h"
#include "pack.h"
#include "profile.h"

namespace metagan {
namespace {

// Writes a tile, rows kMostVectors vectors apart, to columns that lie anywhere.
void scatter(const float* tile, int rows, int64_t columns, float* y, int64_t y_row, const int32_t* to, bool add) {
    for (int i = 0; i < rows; ++i, tile += kMostVectors * kFloats, y += y_row)
        for (int64_t c = 0; c < columns; ++c) y[to[c]] = add ? y[to[c]] + tile[c] : tile[c];
}

// Columns of one product in a chunk of kWidth: [first, first + count), and their tables from `at` on.
struct Segment {
    const Product* product;
    int64_t at, first, count;
    int parts;
    bool in_place;  // else packed
    int64_t depth;  // of the block at hand, and the offsets of its steps
    int32_t step_source[kDepth], step_weight[kDepth];
};

struct Chunk {
    Segment segments[kWidth / kPanelColumns];
    int count = 0;
    int32_t source[kWidth], target[kWidth];
};

// Columns are read where they lie if a vector of them is one load, or rows are so few that packing would not pay.
bool reads_in_place(int parts, int64_t rows) {
    return parts == 1 || (parts > 1 && rows <= (parts == 2 ? 3 : 2) * kTileRows);
}

// Takes up to kWidth columns from panel `first` on; returns the panel after them.
int64_t fill(Chunk& chunk, const Product* products, int count, int64_t rows, Interval panels) {
    const int64_t after = smaller(panels.last, panels.first + kWidth / kPanelColumns);
    int64_t begin = 0;  // of a product's panels
    chunk.count = 0;
    for (const Product* product = products; product != products + count; ++product) {
        const Patches& p = product->patches;
        const int64_t end = begin + (p.columns() + kPanelColumns - 1) / kPanelColumns;
        const int64_t first = begin > panels.first ? begin : panels.first, last = smaller(end, after);
        if (first < last) {
            Segment& segment = chunk.segments[chunk.count++];
            segment.product = product;
            segment.at = (first - panels.first) * kPanelColumns;
            segment.first = (first - begin) * kPanelColumns;
            segment.count = smaller((last - first) * kPanelColumns, p.columns() - segment.first);
            segment.parts = parts_of(p);
            segment.in_place = reads_in_place(segment.parts, rows);
            const int64_t until = segment.first + segment.count;
            const Result& y = product->result;
            fill_offsets(chunk.source + segment.at, p.b_image, p.b_position, p.positions, segment.first, until);
            fill_offsets(chunk.target + segment.at, y.y_image, y.y_position, p.positions, segment.first, until);
        }
        begin = end;
    }
    return after;
}

// Channels [first, last) and, of those of them that a product has, taps [tap, tap + kDepth): all, but for huge kernels.
struct DepthBlock {
    int64_t first, last, tap;
};

void prepare(Segment& segment, const Weights& w, const int32_t* source, const DepthBlock& block, float* pack) {
    const Patches& p = segment.product->patches;
    const int64_t begin = block.first * p.taps + smaller(block.tap, p.taps);
    const int64_t end = (block.last - 1) * p.taps + smaller(block.tap + kDepth, p.taps);
    segment.depth = end - begin;
    fill_offsets(segment.step_source, p.b_channel, p.b_tap, p.taps, begin, end);
    fill_offsets(segment.step_weight, w.w_channel, segment.product->w_tap, p.taps, begin, end);
    for (int64_t j = 0; !segment.in_place && j < segment.count; j += kPanelColumns)
        pack_panel(pack + (segment.at + j) * kDepth, kPanelColumns, p.b, segment.step_source, segment.depth,
                   source + segment.at + j, smaller(kPanelColumns, segment.count - j), copy_length(p, segment.first));
}

// A tile of rows meets the columns of a segment. `tile` has what depends on the rows.
void multiply_segment(const Segment& segment, Tile tile, int rows, int64_t row, const int32_t* source,
                      const int32_t* target, const int32_t* step_panel, const float* pack) {
    alignas(64) float aside[kTileRows * kMostVectors * kFloats];
    const Result& y = segment.product->result;
    float* const out = y.y + row * y.y_row;
    const bool add = tile.add;
    const int most = segment.in_place ? most_vectors(rows) : kPanelVectors;
    tile.depth = segment.depth;
    tile.a_step = segment.step_weight;
    int vectors;
    for (int64_t j = 0; j < segment.count; j += vectors * kFloats) {
        vectors = tile_vectors(most, segment.count - j);
        const int64_t count = smaller(vectors * kFloats, segment.count - j);
        const int32_t *const from = source + segment.at + j, *const to = target + segment.at + j;
        const bool adjacent = to[count - 1] - to[0] == count - 1;
        const int load_parts = segment.in_place ? segment.parts : 1;
        const int store_parts = segment.in_place || !adjacent ? segment.parts : 1;
        // The micro-kernel writes to Y itself where vectors or parts of them are adjacent there.
        const bool whole = count == vectors * kFloats;
        const bool direct = store_parts && (whole || (adjacent && store_parts == 1));
        int32_t b_part[kMostVectors * kMostParts], y_part[kMostVectors * kMostParts];
        for (int i = 0; segment.in_place && i < vectors * load_parts; ++i)
            b_part[i] = from[smaller(i * (kFloats / load_parts), count - 1)];
        for (int i = 0; i < vectors * (store_parts ? store_parts : 1); ++i) {
            const int column = i * (store_parts ? kFloats / store_parts : kFloats);
            y_part[i] = !direct ? column : adjacent ? to[0] + column : to[column];
        }
        if (segment.in_place) {
            tile.b = segment.product->patches.b;
            tile.b_part = b_part;
            tile.b_step = segment.step_source;
        } else {
            tile.b = pack + (segment.at + j) * kDepth;
            tile.b_part = kInOrder;
            tile.b_step = step_panel;
        }
        tile.y = direct ? out : aside;
        tile.y_row = direct ? y.y_row : kMostVectors * kFloats;
        tile.y_part = y_part;
        tile.last = direct ? static_cast<int>(count - (vectors - 1) * kFloats) : kFloats;
        tile.add = direct && add;
        micro_kernel_of(rows, vectors, load_parts, store_parts)(tile);
        if (!direct) scatter(aside, rows, count, out, y.y_row, to, add);
    }
}

// For each chunk of columns and block of depth, rows of W go by in tiles, and each tile meets all columns: its part of
// W, some ten kilobytes, comes from memory once and stays in the first-level cache, the columns in the second-level
// one.
void multiply(const Product* products, int count, const Weights& w, Interval rows, Interval panels, const float* bias,
              bool accumulate, float* pack) {
    Chunk chunk;
    int32_t step_panel[kDepth];
    for (int i = 0; i < kDepth; ++i) step_panel[i] = i * kPanelColumns;
    int64_t taps = 1;
    for (int i = 0; i < count; ++i)
        if (products[i].patches.taps > taps) taps = products[i].patches.taps;
    const int64_t channels = products[0].patches.channels, at_a_time = taps < kDepth ? kDepth / taps : 1;
    while (panels.first < panels.last) {
        panels.first = fill(chunk, products, count, rows.last - rows.first, panels);
        for (int64_t channel = 0; channel < channels; channel += at_a_time)
            for (int64_t tap = 0; tap < taps; tap += kDepth) {
                const DepthBlock block{channel, smaller(channel + at_a_time, channels), tap};
                const Work before = begin_work(Work::pack);
                for (int i = 0; i < chunk.count; ++i) prepare(chunk.segments[i], w, chunk.source, block, pack);
                begin_work(before);
                int tile_row;
                for (int64_t row = rows.first; row < rows.last; row += tile_row) {
                    tile_row = tile_rows(rows.last - row);
                    Tile tile{};
                    tile.a = w.w + row * w.w_row;
                    tile.a_row = w.w_row;
                    tile.add = accumulate || channel > 0 || tap > 0;
                    tile.start = tile.add || !bias ? nullptr : bias + row;
                    for (int i = 0; i < chunk.count; ++i)
                        if (chunk.segments[i].depth > 0)
                            multiply_segment(chunk.segments[i], tile, tile_row, row, chunk.source, chunk.target,
                                             step_panel, pack);
                }
            }
    }
}

}  // namespace
}  // namespace metagan
