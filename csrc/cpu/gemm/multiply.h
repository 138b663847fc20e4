// Y = W P in float32: the loops around the micro-kernel; see gemm.h. Included by gemm_kernels.cpp only.
#pragma once

#include "chunk.h"
#include "cpu/runtime/profile.h"
#include "prefetcher.h"
#include "skinny_gemm.h"

namespace metagan {
namespace {

// Packs a panel of P, [depth][width], padded with zeros from column `count` on.
void pack_panel(float* panel, int width, const float* b, const int32_t* steps, int64_t depth, const int32_t* columns,
                int64_t count, int length) {
    if (count % length != 0) length = 1;
    for (int64_t k = 0; k < depth; ++k) {
        float* to = panel + k * width;
        copy_columns(to, b + steps[k], columns, count, length);
        clear(to + count, width - count);
    }
}

// True if P is read in place: a vector of columns is one load, or there are too few rows to amortise packing.
bool reads_in_place(int parts, int64_t rows) {
    return parts == 1 || (parts > 1 && rows <= (parts == 2 ? 3 : 2) * kTileRows);
}

// Block of k: channels [first, last) and, of a product's taps, [tap, tap + kDepth), which is all of them except for
// huge kernels.
struct DepthBlock {
    int64_t first, last, tap;
};

// Sets up a segment for a block of k: offsets of its steps, and its panels unless it is read in place.
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

// Multiplies a tile of rows with the columns of a segment. The caller sets the members of `tile` that depend on the
// rows; `lines` cache lines are prefetched for each panel.
void multiply_segment(const Segment& segment, Tile tile, int rows, int64_t row, const int32_t* source,
                      const int32_t* target, const int32_t* step_panel, const float* pack, Prefetcher& prefetcher,
                      int64_t lines) {
    alignas(64) float scratch[kTileRows * kMostVectors * kFloats];
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
        const int load_parts = segment.in_place ? segment.parts : 1;
        int32_t b_part[kMostVectors * kMostParts];
        for (int i = 0; segment.in_place && i < vectors * load_parts; ++i)
            b_part[i] = from[smaller(i * (kFloats / load_parts), count - 1)];
        const Destination destination(to, count, vectors, segment.parts, segment.in_place);
        const bool direct = destination.direct;
        if (segment.in_place) {
            tile.b = segment.product->patches.b;
            tile.b_part = b_part;
            tile.b_step = segment.step_source;
        } else {
            tile.b = pack + (segment.at + j) * kDepth;
            tile.b_part = kInOrder;
            tile.b_step = step_panel;
        }
        tile.y = direct ? out : scratch;
        tile.y_row = direct ? y.y_row : kMostVectors * kFloats;
        tile.y_part = destination.part;
        tile.last = direct ? static_cast<int>(count - (vectors - 1) * kFloats) : kFloats;
        tile.add = direct && add;
        prefetcher.prefetch((vectors + kPanelVectors - 1) / kPanelVectors * lines);
        micro_kernel_of(rows, vectors, load_parts, destination.parts)(tile);
        if (!direct) scatter(scratch, rows, count, out, y.y_row, to, add);
    }
}

constexpr int64_t kCachedWeights = 128 * 1024;  // weights that fit into half of a 1 MB second-level cache

// For each chunk of columns and block of k, every tile of rows of W is multiplied with all columns of the chunk: its
// strip of W, some ten kilobytes, comes from memory once and stays in the first-level cache, the chunk of P in the
// second-level one.
void multiply(const Product* products, int count, const Weights& w, Interval rows, Interval panels, const float* bias,
              bool accumulate, float* pack) {
    if (count == 1 && is_skinny(products[0].patches, w))
        return multiply_skinny<false>(products[0], w, rows, bias, accumulate, pack);
    Chunk chunk;
    int32_t step_panel[kDepth];
    for (int i = 0; i < kDepth; ++i) step_panel[i] = i * kPanelColumns;
    int64_t taps = w.taps > 0 ? w.taps : 1;
    for (int i = 0; i < count; ++i)
        if (products[i].patches.taps > taps) taps = products[i].patches.taps;
    const int64_t channels = products[0].patches.channels, at_a_time = taps < kDepth ? kDepth / taps : 1;
    // Otherwise W is cached, or its rows are long enough for the hardware prefetcher.
    const bool in_strips = w.w_row < w.w_channel && channels * w.w_channel > kCachedWeights;
    while (panels.first < panels.last) {
        const int64_t first = panels.first;
        panels.first = fill(chunk, products, count, panels);
        const int64_t chunk_panels = panels.first - first;
        for (int i = 0; i < chunk.count; ++i)
            chunk.segments[i].in_place = reads_in_place(chunk.segments[i].parts, rows.last - rows.first);
        for (int64_t channel = 0; channel < channels; channel += at_a_time)
            for (int64_t tap = 0; tap < taps; tap += kDepth) {
                const DepthBlock block{channel, smaller(channel + at_a_time, channels), tap};
                const int64_t block_taps = smaller(kDepth, taps - tap);
                const Work before = begin_work(Work::pack);
                for (int i = 0; i < chunk.count; ++i) prepare(chunk.segments[i], w, chunk.source, block, pack);
                begin_work(before);
                int tile_row;
                for (int64_t row = rows.first; row < rows.last; row += tile_row) {
                    tile_row = tile_rows(rows.last - row);
                    Prefetcher prefetcher;
                    int64_t lines = 0;
                    if (in_strips) {
                        const int64_t next = row + tile_row;
                        prefetcher = Prefetcher(w.w, w.w_row, w.w_channel, next, smaller(kTileRows, rows.last - next),
                                                block.first, block.last, block.tap, block_taps);
                        lines = (prefetcher.lines() + chunk_panels - 1) / chunk_panels;
                    }
                    Tile tile{};
                    tile.a = w.w + row * w.w_row;
                    tile.a_row = w.w_row;
                    tile.add = accumulate || channel > 0 || tap > 0;
                    tile.start = tile.add || !bias ? nullptr : bias + row;
                    for (int i = 0; i < chunk.count; ++i)
                        if (chunk.segments[i].depth > 0)
                            multiply_segment(chunk.segments[i], tile, tile_row, row, chunk.source, chunk.target,
                                             step_panel, pack, prefetcher, lines);
                }
            }
    }
}

}  // namespace
}  // namespace metagan
