// Chunks of columns (BLIS's NC loop) over several products; see multiply.h.
#pragma once

#include "gemm.h"
#include "micro_kernel.h"
#include "pack.h"

namespace metagan {
namespace {

// Scatters a tile, whose rows are kMostVectors vectors apart, to the columns to[0], to[1]... of Y.
void scatter(const float* tile, int rows, int64_t columns, float* y, int64_t y_row, const int32_t* to, bool add) {
    for (int i = 0; i < rows; ++i, tile += kMostVectors * kFloats, y += y_row)
        for (int64_t c = 0; c < columns; ++c) y[to[c]] = add ? y[to[c]] + tile[c] : tile[c];
}

// Store addresses of a tile's vectors. The micro-kernel stores to Y directly where vectors, or `parts` equal parts of
// them, are contiguous there; else it stores to a contiguous tile for `scatter`.
struct Destination {
    Destination(const int32_t* to, int64_t count, int vectors, int parts_in_place, bool in_parts) {
        const bool adjacent = to[count - 1] - to[0] == count - 1, whole = count == vectors * kFloats;
        parts = in_parts || !adjacent ? parts_in_place : 1;
        direct = parts && (whole || (adjacent && parts == 1));
        for (int i = 0; i < vectors * (parts ? parts : 1); ++i) {
            const int column = i * (parts ? kFloats / parts : kFloats);
            part[i] = !direct ? column : adjacent ? to[0] + column : to[column];
        }
    }

    int32_t part[kMostVectors * kMostParts];
    int parts;
    bool direct;
};

// Columns [first, first + count) of one product within a chunk; their tables begin at index `at`.
struct Segment {
    const Product* product;
    int64_t at, first, count;
    int parts;
    bool in_place = false;  // read in place, else packed
    int64_t depth;          // of the current block, whose steps have the offsets below
    int32_t step_source[kDepth], step_weight[kDepth];
};

// At most kWidth columns, with the offsets of each in the source and in Y.
struct Chunk {
    Segment segments[kWidth / kPanelColumns];
    int count = 0;
    int32_t source[kWidth], target[kWidth];
};

// Fills the chunk with up to kWidth columns beginning at panel `first`; returns the first panel not taken.
int64_t fill(Chunk& chunk, const Product* products, int count, Interval panels) {
    const int64_t after = smaller(panels.last, panels.first + kWidth / kPanelColumns);
    int64_t begin = 0;  // first panel of the product
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
            const int64_t until = segment.first + segment.count;
            const Result& y = product->result;
            fill_offsets(chunk.source + segment.at, p.b_image, p.b_position, p.positions, segment.first, until);
            fill_offsets(chunk.target + segment.at, y.y_image, y.y_position, p.positions, segment.first, until);
        }
        begin = end;
    }
    return after;
}

}  // namespace
}  // namespace metagan
