// Y = W P with operands in bf16; see gemm.h and bf16_pairs.h. Included by gemm_bf16_kernels.cpp only.
//
// The two steps of a pair are two channels of one tap, so products with different taps share the pairs of W. W is
// converted once for each tile of rows and block of channels, or beforehand when many products read it.
#pragma once

#include "bf16_pairs.h"
#include "chunk.h"
#include "cpu/runtime/profile.h"
#include "prefetcher.h"
#include "skinny_gemm.h"

namespace metagan {
namespace {

// Block of k: channels [first, last) and taps [tap, tap + taps) of W, which is all taps except for huge kernels. The
// pairs of consecutive channels (two channels where a pair has two steps) are `distance` apart.
struct PairBlock {
    int64_t first, last, tap, taps, distance;
};

// Room for whole kFloats x kFloats squares, which the transposition writes, and for one vector past the last row.
constexpr int64_t kTilePairs = ((kTileRows + kFloats - 1) / kFloats * kFloats + 1) * kPairs;

// Packs a tile of rows of W: converts the block to rows of pairs, kPairs apart.
void convert_weights(float* pairs, int rows, const float* w, int64_t w_row, int64_t w_channel, const PairBlock& block) {
    w += block.first * w_channel + block.tap;
    const int64_t channels = block.last - block.first;
    if (block.taps == 1 && w_channel == 1) {
        for (int i = 0; i < rows; ++i) convert_adjacent(pairs + i * kPairs, w + i * w_row, channels);
        return;
    }
    if (block.taps == 1 && w_row == 1) {
        alignas(64) float square[kFloats * kFloats];
        for (int64_t first = 0; first < channels; first += kFloats * kSteps)
            for (int row = 0; row < rows; row += kFloats) {
                const int count = static_cast<int>(smaller(kFloats, rows - row));
                for (int k = 0; k < kFloats; ++k) {
                    const int64_t channel = first + k * kSteps;
                    const float* const from = w + channel * w_channel + row;
                    store(square + k * kFloats,
                          join(channel < channels ? load_first(from, count) : FloatVector{},
                               kSteps == 2 && channel + 1 < channels ? load_first(from + w_channel, count)
                                                                     : FloatVector{}));
                }
                transpose_square(square, kFloats, pairs + row * kPairs + first / kSteps, kPairs);
            }
        return;
    }
    for (int i = 0; i < rows; ++i)
        for (int64_t channel = 0; channel < channels; channel += kSteps) {
            const float* const from = w + i * w_row + channel * w_channel;
            float* const to = pairs + i * kPairs + channel / kSteps * block.taps;
            const bool paired = kSteps == 2 && channel + 1 < channels;
            for (int64_t tap = 0; tap < block.taps; tap += kFloats) {  // the excess of the last vector is overwritten
                const int count = static_cast<int>(smaller(kFloats, block.taps - tap));
                store(to + tap, join(load_first(from + tap, count),
                                     paired ? load_first(from + w_channel + tap, count) : FloatVector{}));
            }
        }
}

// Rounds the row distance up to an odd number of cache lines, so that the rows of a tile conflict in few cache sets.
int64_t pairs_row(int64_t channels, int64_t taps) {
    constexpr int64_t kLine = 64 / sizeof(float);
    return ((channels + kSteps - 1) / kSteps * taps + kLine - 1) / kLine / 2 * 2 * kLine + kLine;
}

// Copies runs of `size` floats from one array to destinations `distance` apart; kSize is `size`, or 0 if not constant.
template <int kSize>
METAGAN_INLINE void scatter_runs(const float* from, int64_t count, int64_t size, float* to, int64_t distance) {
    const size_t bytes = static_cast<size_t>(kSize ? kSize : size) * sizeof(float);
    for (int64_t i = 0; i < count; ++i, from += kSize ? kSize : size, to += distance) __builtin_memcpy(to, from, bytes);
}

constexpr int64_t kStripPairs = 1024;

// Converts W with rows and channels exchanged, for at most kStripPairs taps: pairs up kSteps rows over all channels and
// taps, then copies each channel to its row.
void to_exchanged_pairs(const float* w, int64_t w_row, Interval rows, Interval channels, int64_t taps, float* exchanged,
                        int64_t exchanged_row) {
    alignas(64) float strip[kStripPairs + kFloats];
    const int64_t at_a_time = kStripPairs / taps;
    const auto scatter_taps = taps == 3 ? scatter_runs<3> : taps == 5 ? scatter_runs<5> : scatter_runs<0>;
    for (int64_t row = rows.first; row < rows.last; row += kSteps)
        for (int64_t channel = channels.first; channel < channels.last; channel += at_a_time) {
            const int64_t count = smaller(at_a_time, channels.last - channel);
            const float* const from = w + (row - rows.first) * w_row + (channel - channels.first) * taps;
            const bool paired = kSteps == 2 && row + 1 < rows.last;
            for (int64_t i = 0; i < count * taps; i += kFloats) {
                const int here = static_cast<int>(smaller(kFloats, count * taps - i));
                store(strip + i,
                      join(load_first(from + i, here), paired ? load_first(from + w_row + i, here) : FloatVector{}));
            }
            scatter_taps(strip, count, taps, exchanged + channel * exchanged_row + row / kSteps * taps, exchanged_row);
        }
}

// Converts W in both orientations: each square of kSteps rows by kSteps channels is paired up along either side.
void to_bf16_pairs(const float* w, int64_t w_row, Interval rows, Interval channels, int64_t taps,
                   const Bf16PairTables& to) {
    if (!to.pairs && taps <= kStripPairs)
        return to_exchanged_pairs(w, w_row, rows, channels, taps, to.exchanged, to.exchanged_row);
    for (int64_t row = rows.first; row < rows.last; row += kSteps)
        for (int64_t channel = channels.first; channel < channels.last; channel += kSteps) {
            const bool second_row = kSteps == 2 && row + 1 < rows.last;
            const bool second_channel = kSteps == 2 && channel + 1 < channels.last;
            const float* const from = w + (row - rows.first) * w_row + (channel - channels.first) * taps;
            float* const pairs = to.pairs ? to.pairs + row * to.row : nullptr;
            float* const exchanged = to.exchanged ? to.exchanged + channel * to.exchanged_row : nullptr;
            for (int64_t tap = 0; tap < taps; tap += kFloats) {
                const int count = static_cast<int>(smaller(kFloats, taps - tap));
                const auto load_if = [&](bool there, int64_t offset) {
                    return there ? load_first(from + offset + tap, count) : FloatVector{};
                };
                const FloatVector a = load_first(from + tap, count), b = load_if(second_channel, taps);
                const FloatVector c = load_if(second_row, w_row);
                const FloatVector d = load_if(second_row && second_channel, w_row + taps);
                if (pairs) {
                    float* const at = pairs + channel / kSteps * taps + tap;
                    store_first(at, count, join(a, b));
                    if (second_row) store_first(at + to.row, count, join(c, d));
                }
                if (exchanged) {
                    float* const at = exchanged + row / kSteps * taps + tap;
                    store_first(at, count, join(a, c));
                    if (second_channel) store_first(at + to.exchanged_row, count, join(b, d));
                }
            }
        }
}

// Packs vectors of a panel from columns in kParts contiguous parts. Pairs from `paired` on have no second step: their
// channel is the last of an odd number.
template <int kParts>
void pack_pairs(float* panel, const float* b, int64_t b_channel, const int32_t* steps, int64_t pairs, int64_t paired,
                const int32_t* columns, int64_t vectors) {
    const float *first[kParts], *second[kParts];
    for (int v = 0; v < vectors; ++v, panel += kFloats) {
        for (int p = 0; p < kParts; ++p) {
            first[p] = b + columns[v * kFloats + p * (kFloats / kParts)];
            second[p] = first[p] + b_channel;
        }
        float* to = panel;
        for (int64_t k = 0; k < paired; ++k, to += kPanelColumns)
            store(to, join(load_parts<kParts>(first, steps[k]),
                           kSteps == 2 ? load_parts<kParts>(second, steps[k]) : FloatVector{}));
        for (int64_t k = paired; k < pairs; ++k, to += kPanelColumns)
            store(to, join(load_parts<kParts>(first, steps[k]), FloatVector{}));
    }
}

// Packs a panel from scattered columns, padded with zeros from `count` on: columns are gathered for some pairs, then
// converted.
void pack_scattered_pairs(float* panel, const float* b, int64_t b_channel, const int32_t* steps, int64_t pairs,
                          int64_t paired, const int32_t* columns, int64_t count, int length) {
    constexpr int64_t kPairsAtATime = 8;
    alignas(64) float rows[kPairsAtATime][kSteps][kPanelColumns];
    for (int64_t first = 0; first < pairs; first += kPairsAtATime) {
        const int64_t now = smaller(kPairsAtATime, pairs - first);
        for (int64_t k = 0; k < now; ++k)
            for (int s = 0; s < kSteps; ++s) {
                const int64_t copied = s == 0 || first + k < paired ? count : 0;
                copy_columns(rows[k][s], b + steps[first + k] + s * b_channel, columns, copied, length);
                clear(rows[k][s] + copied, kPanelColumns - copied);
            }
        for (int64_t k = 0; k < now; ++k)
            for (int i = 0; i < kPanelColumns; i += kFloats)
                store(panel + (first + k) * kPanelColumns + i,
                      join(load(rows[k][0] + i, FloatVector{}), load(rows[k][kSteps - 1] + i, FloatVector{})));
    }
}

// Sets up a segment for a block of k: offsets of its pairs, and its packed panels.
void prepare_pairs(Segment& segment, const int32_t* source, const PairBlock& block, float* pack) {
    const Product& product = *segment.product;
    const Patches& p = product.patches;
    int64_t pairs = 0, paired = 0;
    for (int64_t channel = block.first; channel < block.last; channel += kSteps) {
        const int64_t weight = (channel - block.first) / kSteps * block.distance - block.tap;
        for (int64_t tap = 0; tap < p.taps; ++tap) {
            if (product.w_tap[tap] < block.tap || product.w_tap[tap] >= block.tap + block.taps) continue;
            segment.step_source[pairs] = static_cast<int32_t>(channel * p.b_channel + p.b_tap[tap]);
            segment.step_weight[pairs] = static_cast<int32_t>(weight + product.w_tap[tap]);
            ++pairs;
        }
        if (channel + kSteps <= block.last) paired = pairs;
    }
    segment.depth = pairs;
    const int length = copy_length(p, segment.first);
    for (int64_t j = 0; j < segment.count; j += kPanelColumns) {
        float* const panel = pack + (segment.at + j) * kPairs;
        const int32_t* const columns = source + segment.at + j;
        const int64_t count = smaller(kPanelColumns, segment.count - j);
        const auto run = [&](auto pack_parts) {
            pack_parts(panel, p.b, p.b_channel, segment.step_source, pairs, paired, columns, count / kFloats);
        };
        const bool whole = count % kFloats == 0;
        if (whole && length >= kFloats)
            run(pack_pairs<1>);
        else if (whole && length == kFloats / 2)
            run(pack_pairs<2>);
        else if (whole && length == kFloats / 4)
            run(pack_pairs<4>);
        else
            pack_scattered_pairs(panel, p.b, p.b_channel, segment.step_source, pairs, paired, columns, count,
                                 count % length == 0 ? length : 1);
    }
}

// Address of a row's block in weights converted beforehand.
const float* pairs_of(const Weights& w, int64_t row, const PairBlock& block) {
    return w.pairs + row * w.pairs_row + block.first / kSteps * block.distance + block.tap;
}

// Prefetcher of the part of W that the tile beginning at `row` reads.
Prefetcher prefetcher_of(const Weights& w, int64_t row, int64_t rows, const PairBlock& block) {
    if (!w.pairs)
        return Prefetcher(w.w, w.w_row, w.w_channel, row, rows, block.first, block.last, block.tap, block.taps);
    const int64_t distances = (block.last - block.first + kSteps - 1) / kSteps - 1;
    return Prefetcher(pairs_of(w, row, block), w.pairs_row, rows, distances * block.distance + block.taps);
}

// Multiplies a tile of rows with the columns of a segment; see multiply_segment.
void multiply_pairs(const Segment& segment, PairTile tile, int rows, int64_t row, const int32_t* target,
                    const float* pack, Prefetcher& prefetcher, int64_t lines) {
    alignas(64) float scratch[kTileRows * kMostVectors * kFloats];
    const Result& y = segment.product->result;
    float* const out = y.y + row * y.y_row;
    const bool add = tile.add;
    tile.pairs = segment.depth;
    tile.a_step = segment.step_weight;
    int vectors;
    for (int64_t j = 0; j < segment.count; j += vectors * kFloats) {
        vectors = tile_vectors(most_vectors(rows), segment.count - j);
        const int64_t count = smaller(vectors * kFloats, segment.count - j);
        const int32_t* const to = target + segment.at + j;
        const Destination destination(to, count, vectors, segment.parts, false);
        const bool direct = destination.direct;
        tile.b = pack + (segment.at + j) * kPairs;
        tile.y = direct ? out : scratch;
        tile.y_row = direct ? y.y_row : kMostVectors * kFloats;
        tile.y_part = destination.part;
        tile.last = direct ? static_cast<int>(count - (vectors - 1) * kFloats) : kFloats;
        tile.add = direct && add;
        prefetcher.prefetch((vectors + kPanelVectors - 1) / kPanelVectors * lines);
        pair_kernel_of(rows, vectors, destination.parts)(tile);
        if (!direct) scatter(scratch, rows, count, out, y.y_row, to, add);
    }
}

// Same loops as `multiply`; a tile's part of W is converted before it is used, unless it was converted beforehand.
void multiply_bf16(const Product* products, int count, const Weights& w, Interval rows, Interval panels,
                   const float* bias, bool accumulate, float* pack) {
    if (count == 1 && is_skinny(products[0].patches, w))
        return multiply_skinny<true>(products[0], w, rows, bias, accumulate, pack);
    Chunk chunk;
    alignas(64) float pairs[kTilePairs];
    int64_t taps = w.taps > 0 ? w.taps : 1;  // of W, up to the last that any product reads
    for (int i = 0; i < count; ++i)
        for (int tap = 0; tap < products[i].patches.taps; ++tap)
            if (products[i].w_tap[tap] >= taps) taps = products[i].w_tap[tap] + 1;
    const int64_t channels = products[0].patches.channels, at_a_time = (taps < kPairs ? kPairs / taps : 1) * kSteps;
    while (panels.first < panels.last) {
        const int64_t first = panels.first;
        panels.first = fill(chunk, products, count, panels);
        const int64_t chunk_panels = panels.first - first;
        for (int64_t channel = 0; channel < channels; channel += at_a_time)
            for (int64_t tap = 0; tap < taps; tap += kPairs) {
                const int64_t of_block = smaller(kPairs, taps - tap);
                const PairBlock block{channel, smaller(channel + at_a_time, channels), tap, of_block,
                                      w.pairs ? w.pairs_channel : of_block};
                const Work before = begin_work(Work::pack);
                for (int i = 0; i < chunk.count; ++i) prepare_pairs(chunk.segments[i], chunk.source, block, pack);
                begin_work(before);
                int tile_row;
                for (int64_t row = rows.first; row < rows.last; row += tile_row) {
                    tile_row = tile_rows(rows.last - row);
                    if (!w.pairs) convert_weights(pairs, tile_row, w.w + row * w.w_row, w.w_row, w.w_channel, block);
                    const int64_t next = row + tile_row;
                    Prefetcher prefetcher = prefetcher_of(w, next, smaller(kTileRows, rows.last - next), block);
                    const int64_t lines = (prefetcher.lines() + chunk_panels - 1) / chunk_panels;
                    PairTile tile{};
                    tile.a = w.pairs ? pairs_of(w, row, block) : pairs;
                    tile.a_row = w.pairs ? w.pairs_row : kPairs;
                    tile.add = accumulate || channel > 0 || tap > 0;
                    tile.start = tile.add || !bias ? nullptr : bias + row;
                    for (int i = 0; i < chunk.count; ++i)
                        if (chunk.segments[i].depth > 0)
                            multiply_pairs(chunk.segments[i], tile, tile_row, row, chunk.target, pack, prefetcher,
                                           lines);
                }
            }
    }
}

}  // namespace
}  // namespace metagan
