// Columns of products, taken up a chunk at a time; see multiply.h.
#pragma once

#include "gemm.h"
#include "micro_kernel.h"
#include "pack.h"

namespace metagan {
namespace {

// Writes a tile, rows kMostVectors vectors apart, to columns that lie anywhere.
void scatter(const float* tile, int rows, int64_t columns, float* y, int64_t y_row, const int32_t* to, bool add) {
    for (int i = 0; i < rows; ++i, tile += kMostVectors * kFloats, y += y_row)
        for (int64_t c = 0; c < columns; ++c) y[to[c]] = add ? y[to[c]] + tile[c] : tile[c];
}

// Where the vectors of a tile go, and whether the micro-kernel writes to Y itself: it does where vectors or `parts` of
// them are adjacent there. Else it writes one behind the other, for `scatter`.
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

// Columns of one product in a chunk of kWidth: [first, first + count), and their tables from `at` on.
struct Segment {
    const Product* product;
    int64_t at, first, count;
    int parts;
    bool in_place = false;  // else packed
    int64_t depth;          // of the block at hand, and the offsets of its steps
    int32_t step_source[kDepth], step_weight[kDepth];
};

struct Chunk {
    Segment segments[kWidth / kPanelColumns];
    int count = 0;
    int32_t source[kWidth], target[kWidth];
};

// Takes up to kWidth columns from panel `first` on; returns the panel after them.
int64_t fill(Chunk& chunk, const Product* products, int count, Interval panels) {
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
