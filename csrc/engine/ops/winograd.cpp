#include "winograd.h"

#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/profile.h"
#include "engine/scratch.h"

namespace metagan {
namespace {

constexpr int64_t kBlockRows = 36;  // output channels: three row tiles (docs/tuning.md#winograd-channel-blocks)
// Floats of transformed images in a round; larger than L2, since threads wait twice a round
// (docs/tuning.md#winograd-cache-blocks).
constexpr int64_t kCache = 512 * 1024;
constexpr int64_t kColumns = 128;  // least tiles of a round: with fewer, transforms outweigh products
constexpr int64_t kSlack = 64;     // padding behind an array, for vectors that reach beyond it
constexpr int64_t kMostTaps = 64;  // most rows of a kernel
// Least channels of the source, and of the result in either precision (docs/tuning.md#gemm-few-channels).
constexpr int64_t kSourceChannels = 8, kChannels = 8, kBf16Channels = 16;
// Positions of an image from which on transforms pay in bf16: with transformed weights that serve three products, and
// one (docs/tuning.md#winograd-bf16-threshold).
constexpr int64_t kReusedBf16Positions = 64, kBf16Positions = 256;
constexpr int64_t kWeightsAtATime = 4096;  // kernel rows that a thread transforms at a time

}  // namespace

Winograd::Winograd(const Geometry& g, const Border& border, bool spreads) : spreads_(spreads) {
    const auto plain = [](const Axis& a) { return a.stride == 1 && a.dilation == 1; };
    points_ = plain(g.y) && plain(g.x) ? winograd_points(g.x.kernel) : 0;
    height_ = spreads ? g.y.large : g.y.small;
    width_ = spreads ? g.x.large : g.x.small;
    channels_ = spreads ? g.large_channels : g.small_channels;
    source_channels_ = spreads ? g.small_channels : g.large_channels;
    kernel_height_ = g.y.kernel;
    kernel_width_ = static_cast<int>(g.x.kernel);
    source_width_ = border.width;
    // With tap k counted in the direction of the source, row r of the result reads source row r + shift + k.
    const auto shift = [&](const Axis& a) { return spreads ? a.padding - (a.kernel - 1) : -a.padding; };
    source_offset_ = (border.top + shift(g.y)) * border.width + border.left + shift(g.x);
    for (const Grouping grouping : kGroupings) {
        if (points_ == 0) break;
        std::vector<RowGroup> groups;
        for (const Part& part : spreads ? spread::parts(g.y, 0, grouping) : gather::parts(g.y, grouping)) {
            std::vector<int32_t> taps(part.taps.begin(), part.taps.end());
            if (spreads) std::reverse(taps.begin(), taps.end());
            const int64_t first = part.positions.front();
            const int64_t tap = taps.empty() ? 0 : spreads ? g.y.kernel - 1 - taps.front() : taps.front();
            groups.push_back({first, part.positions.back() + 1, taps, first + tap});
        }
        add_way(groupings_, groups);
    }
}

bool Winograd::suits(int64_t images, Precision precision, bool reused) const {
    const int64_t least = reused ? kReusedBf16Positions : kBf16Positions;
    return (precision == Precision::float32 || height_ * width_ >= least) && suits_gradient(images, precision);
}

bool Winograd::suits_gradient(int64_t images, Precision precision) const {
    return points_ > 0 && width_ % kTileOutputs == 0 && source_width_ % kTileOutputs == 0 && source_width_ <= 2048 &&
           kernel_height_ <= kMostTaps && source_channels_ >= kSourceChannels &&
           channels_ >= (precision == Precision::bf16 ? kBf16Channels : kChannels) && images * height_ * width_ >= 256;
}

int64_t Winograd::batch(int64_t images, int64_t floats) const {
    const int64_t tiles_of_one = height_ * tiles();
    return std::min(images, std::max(kCache / floats, (kColumns + tiles_of_one - 1) / tiles_of_one));
}

// All images where threads share a product; the order of an element's sum does not depend on it.
int64_t Winograd::batch_of_result(int64_t images, int threads) const {
    if (threads > 1) return images;
    return batch(images,
                 points_ * (source_channels_ * (height_ + kernel_height_ - 1) + kBlockRows * height_) * tiles());
}

// Independent of the threads, because sums run over images and their order is fixed. Each round reads and writes the
// whole gradient, which should not be much larger than the images (docs/tuning.md#winograd-gradient-rounds).
int64_t Winograd::batch_of_gradient(int64_t images) const {
    const int64_t of_image = points_ * (source_channels_ + channels_) * height_ * tiles();
    return std::max(batch(images, of_image), std::min(images, points_ * channels_ * steps() / (2 * of_image)));
}

int64_t Winograd::pairs_row() const {
    return gemm_kernels(Precision::bf16).pairs_row(source_channels_, kernel_height_);
}
int64_t Winograd::weights_plane(Precision precision) const {
    return channels_ * (precision == Precision::bf16 ? pairs_row() : steps()) + kSlack;
}
int64_t Winograd::plane(int64_t images) const { return (height_ + kernel_height_ - 1) * images * tiles() + kSlack; }
int64_t Winograd::small_plane(int64_t images) const { return height_ * images * tiles() + kSlack; }
int64_t Winograd::gradient_row() const { return (steps() + kSlack - 1) / kSlack * kSlack; }
int64_t Winograd::gradient_plane() const { return channels_ * gradient_row() + kSlack; }

// bf16 pairs in bf16.
int64_t Winograd::converted_floats(Precision precision) const { return points_ * weights_plane(precision); }

int64_t Winograd::planes_floats(int64_t images, int threads) const {
    return points_ * source_channels_ * plane(batch_of_result(images, threads));
}

int64_t Winograd::scratch_floats(int64_t images, int threads, Precision precision) const {
    return planes_floats(images, threads) + converted_floats(precision);
}

int64_t Winograd::gradient_scratch_floats(int64_t images) const {
    const int64_t at_a_time = batch_of_gradient(images);
    return points_ * (gradient_plane() + source_channels_ * plane(at_a_time) + channels_ * small_plane(at_a_time));
}

const float* Winograd::transformed_weights(const Filtering& f, ConvertedWeights& cache, float* uncached) const {
    ConvertedWeights::Cache& own = cache.of(spreads_);
    const bool cached = f.reused && f.version != 0;
    if (cached && own.version == f.version) return own.weights.data();
    float* const to = cached ? own.weights.at_least(converted_floats(f.precision)) : uncached;
    transform_weights(f.threads, f.precision, f.weights, to);
    if (cached) own.version = f.version;
    return to;
}

void Winograd::transform_weights(int threads, Precision precision, const float* weights, float* transformed) const {
    if (precision == Precision::bf16) return transform_to_bf16_pairs(threads, weights, transformed);
    const int64_t rows = channels_ * steps();
    parallel_for((rows + kWeightsAtATime - 1) / kWeightsAtATime, threads, [&](int64_t part) {
        const Timed timed(Work::pack);
        const int64_t first = part * kWeightsAtATime;
        winograd_kernels().weights(kernel_width_, spreads_, std::min(kWeightsAtATime, rows - first),
                                   weights + first * kernel_width_, transformed + first, weights_plane(precision));
    });
}

// Blocks of small x large channels that stay in cache from transform to conversion and fill whole lines of pairs.
void Winograd::transform_to_bf16_pairs(int threads, const float* weights, float* pairs) const {
    constexpr int64_t kSmall = 16, kLarge = 128;
    const int64_t small_channels = spreads_ ? source_channels_ : channels_;
    const int64_t large_channels = spreads_ ? channels_ : source_channels_;
    const int64_t across = (large_channels + kLarge - 1) / kLarge, down = (small_channels + kSmall - 1) / kSmall;
    parallel_for(across * down, threads, [&](int64_t index) {
        const Timed timed(Work::pack);
        const Interval small{index / across * kSmall, std::min(small_channels, (index / across + 1) * kSmall)};
        const Interval large{index % across * kLarge, std::min(large_channels, (index % across + 1) * kLarge)};
        const int64_t row = (large.last - large.first) * kernel_height_, plane = kSmall * row + kSlack;
        float* const square = thread_scratch(points_ * plane);
        for (int64_t i = small.first; i < small.last; ++i)
            winograd_kernels().weights(kernel_width_, spreads_, row,
                                       weights + (i * large_channels + large.first) * kernel_height_ * kernel_width_,
                                       square + (i - small.first) * row, plane);
        for (int64_t point = 0; point < points_; ++point) {
            float* const to = pairs + point * weights_plane(Precision::bf16);
            gemm_kernels(Precision::bf16)
                .to_bf16_pairs(square + point * plane, row, small, large, kernel_height_,
                               spreads_ ? Bf16PairTables{nullptr, 0, to, pairs_row()}
                                        : Bf16PairTables{to, pairs_row(), nullptr, 0});
        }
    });
}

void Winograd::apply(const Filtering& f, ConvertedWeights& cache, float* scratch) const {
    float* const planes = scratch;
    const float* const transformed = transformed_weights(f, cache, scratch + planes_floats(f.images, f.threads));
    const int threads = f.threads;
    const int64_t images = f.images;
    const Precision precision = f.precision;
    const WinogradKernels& kernels = winograd_kernels();
    const GemmKernels& gemm = gemm_kernels(precision);
    const int64_t of_small = (spreads_ ? channels_ : source_channels_) * kernel_height_;
    const auto weights_of = [&](int64_t point, int64_t channel) {
        const float* const plane = transformed + point * weights_plane(precision);
        Weights weights;
        weights.taps = kernel_height_;
        if (precision == Precision::bf16) {
            weights.pairs = plane + channel * pairs_row();
            weights.pairs_row = pairs_row();
            weights.pairs_channel = kernel_height_;
        } else {
            weights.w_row = spreads_ ? kernel_height_ : of_small;
            weights.w_channel = spreads_ ? of_small : kernel_height_;
            weights.w = plane + channel * weights.w_row;
        }
        return weights;
    };
    const std::vector<RowGroup>& groups = cheapest(groupings_, [&](const RowGroup& group) {
        return gemm.cost(static_cast<int64_t>(group.taps.size()), (group.last - group.first) * images * tiles());
    });
    int64_t first_source = height_ + kernel_height_, last_source = 0;  // range of source rows that are read
    for (const RowGroup& group : groups) {
        const int64_t rows = group.last - group.first + static_cast<int64_t>(group.taps.size()) - 1;
        first_source = std::min(first_source, group.source);
        last_source = std::max(last_source, group.source + rows);
    }
    const int64_t at_a_time = batch_of_result(images, threads), blocks = (channels_ + kBlockRows - 1) / kBlockRows;
    for (int64_t image = 0; image < images; image += at_a_time) {
        const int64_t count = std::min(at_a_time, images - image), row_tiles = count * tiles();
        const int64_t channel_plane = plane(count), point_plane = source_channels_ * channel_plane;
        parallel_for(source_channels_, threads, [&](int64_t channel) {
            const Timed timed(Work::pack);
            const float* const from =
                f.x.data + channel * f.x.channel + image * f.x.image + source_offset_ + first_source * source_width_;
            float* const to = planes + channel * channel_plane + first_source * row_tiles;
            for (int64_t i = 0; i < count; ++i)
                kernels.input(kernel_width_, last_source - first_source, tiles(), source_width_ / kTileOutputs,
                              from + i * f.x.image, to + i * tiles(), row_tiles, point_plane);
        });
        const int64_t rows_at_a_time = threads == 1 ? height_ : std::max<int64_t>(1, 4 * kColumns / row_tiles);
        const int64_t strips = (height_ + rows_at_a_time - 1) / rows_at_a_time;
        parallel_for(strips * blocks, threads, [&](int64_t index) {
            const Timed timed(Work::multiply);
            const int64_t first_row = index / blocks * rows_at_a_time;
            const int64_t last_row = std::min(height_, first_row + rows_at_a_time);
            const int64_t first = index % blocks * kBlockRows, last = std::min(channels_, first + kBlockRows);
            const int64_t columns = (last_row - first_row) * row_tiles, sums_plane = kBlockRows * columns + kSlack;
            float* const pack = thread_scratch(kPackFloats + points_ * sums_plane);
            float* const sums = pack + kPackFloats;
            const int32_t* const position = thread_iota(columns);
            int32_t taps[kMostTaps];
            for (int32_t k = 0; k < kernel_height_; ++k) taps[k] = k * static_cast<int32_t>(row_tiles);
            thread_local std::vector<Product> products;  // reuses its memory
            for (int point = 0; point < points_; ++point) {
                int64_t panels = 0;
                products.clear();
                for (const RowGroup& group : groups) {
                    const int64_t begin = std::max(first_row, group.first), end = std::min(last_row, group.last);
                    if (begin >= end) continue;
                    if (group.taps.empty()) {
                        for (int64_t channel = 0; channel < last - first; ++channel)
                            std::fill_n(sums + point * sums_plane + channel * columns + (begin - first_row) * row_tiles,
                                        (end - begin) * row_tiles, 0.f);
                        continue;
                    }
                    Product product;
                    product.patches.b = planes + point * point_plane + (group.source + begin - group.first) * row_tiles;
                    product.patches.b_channel = channel_plane;
                    product.patches.b_tap = taps;
                    product.patches.b_position = position;
                    product.patches.channels = static_cast<int>(source_channels_);
                    product.patches.taps = static_cast<int>(group.taps.size());
                    product.patches.images = 1;
                    product.patches.positions = product.patches.run = static_cast<int>((end - begin) * row_tiles);
                    product.w_tap = group.taps.data();
                    product.result = {sums + point * sums_plane + (begin - first_row) * row_tiles, columns, 0,
                                      position};
                    products.push_back(product);
                    panels += (product.patches.columns() + gemm.tile_columns - 1) / gemm.tile_columns;
                }
                if (products.empty()) continue;
                gemm.multiply(products.data(), static_cast<int>(products.size()), weights_of(point, first),
                              {0, last - first}, {0, panels}, nullptr, false, pack);
            }
            const Work before = begin_work(Work::pack);
            for (int64_t channel = first; channel < last; ++channel)
                for (int64_t row = first_row; row < last_row; ++row)
                    kernels.output(kernel_width_, count, tiles(),
                                   sums + (channel - first) * columns + (row - first_row) * row_tiles, sums_plane,
                                   f.bias ? f.bias[channel] : 0, f.accumulate,
                                   f.y.data + channel * f.y.channel + image * f.y.image + row * width_, f.y.image);
            begin_work(before);
        });
    }
}

// Accumulates sums over images in transformed space, one plane for each point, and transforms them back at the end.
void Winograd::weight_gradient(const FilterGradient& g, float* scratch) const {
    const WinogradKernels& kernels = winograd_kernels();
    const GemmKernels& gemm = gemm_kernels(g.precision);
    const int64_t at_a_time = batch_of_gradient(g.images);
    float* const from_large = scratch + points_ * gradient_plane();
    float* const from_small = from_large + points_ * source_channels_ * plane(at_a_time);
    const int64_t chunk = std::min(kChunk, share_of(steps(), g.threads, gemm.tile_columns));
    const int64_t chunks = (steps() + chunk - 1) / chunk;
    for (int64_t image = 0; image < g.images; image += at_a_time) {
        const int64_t count = std::min(at_a_time, g.images - image), row_tiles = count * tiles();
        const int64_t large_plane = plane(count), small_plane = this->small_plane(count);
        parallel_for(source_channels_ + channels_, g.threads, [&](int64_t channel) {
            const Timed timed(Work::pack);
            for (int64_t i = 0; i < count; ++i) {
                const int64_t at = i * tiles();
                if (channel < source_channels_) {
                    kernels.input(kernel_width_, height_ + kernel_height_ - 1, tiles(), source_width_ / kTileOutputs,
                                  g.large.data + channel * g.large.channel + (image + i) * g.large.image,
                                  from_large + channel * large_plane + at, row_tiles, source_channels_ * large_plane);
                } else {
                    const int64_t own = channel - source_channels_;
                    kernels.output_cotangent(kernel_width_, height_, tiles(), tiles(),
                                             g.small.data + own * g.small.channel + (image + i) * g.small.image,
                                             from_small + own * small_plane + at, row_tiles, channels_ * small_plane);
                }
            }
        });
        parallel_for(points_ * chunks, g.threads, [&](int64_t index) {
            const Timed timed(Work::weight_gradient);
            const int64_t point = index / chunks, first = index % chunks * chunk;
            int32_t taps[kMostTaps];
            for (int32_t k = 0; k < kernel_height_; ++k) taps[k] = k * static_cast<int32_t>(row_tiles);
            const int64_t columns = height_ * row_tiles;
            Patches patches;
            patches.b = from_large + point * source_channels_ * large_plane;
            patches.b_channel = large_plane;
            patches.b_tap = taps;
            patches.b_position = thread_iota(columns);
            patches.channels = static_cast<int>(source_channels_);
            patches.taps = static_cast<int>(kernel_height_);
            patches.images = 1;
            patches.positions = patches.run = static_cast<int>(columns);
            const Result result{from_small + point * channels_ * small_plane, small_plane, 0, patches.b_position};
            gemm.weight_gradient(patches, result, channels_, {first, std::min(steps(), first + chunk)}, image > 0,
                                 scratch + point * gradient_plane() + first, gradient_row(),
                                 thread_scratch(kPackFloats));
        });
    }
    parallel_for(channels_, g.threads, [&](int64_t channel) {
        const Timed timed(Work::pack);
        const int64_t size = steps() * kernel_width_;
        float* const gradient = thread_scratch(size);
        kernels.weights_gradient(kernel_width_, steps(), scratch + channel * gradient_row(), gradient_plane(),
                                 gradient);
        g.sink.take(g.offset + channel * size, 1, size, size, gradient, size);
    });
}

}  // namespace metagan
