#include "implicit_gemm.h"

#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/profile.h"
#include "engine/scratch.h"

namespace metagan {
namespace {

bool is_one_pixel(const Axis& a) { return a.large == 1 && a.small == 1 && a.kernel == 1 && a.padding == 0; }

// Divides columns among threads, or rows where columns are few: then each thread packs all columns, but reads only
// its part of the weights, which matters if they must be converted.
void multiply(const Filtering& f, const std::vector<Product>& products, const Weights& weights, int64_t rows,
              bool accumulate) {
    const GemmKernels& kernels = gemm_kernels(f.precision);
    const int64_t threads = f.threads;
    int64_t panels = 0;
    for (const Product& product : products)
        panels += (product.patches.columns() + kernels.tile_columns - 1) / kernels.tile_columns;
    const bool by_columns = weights.pairs ? panels >= threads : panels * kernels.tile_columns >= threads * (kWidth / 2);
    const int64_t size = by_columns ? panels : rows;
    const int64_t share = share_of(size, threads, by_columns ? 1 : kernels.tile_rows);
    parallel_for((size + share - 1) / share, f.threads, [&](int64_t piece) {
        const Timed timed(Work::multiply);
        const Interval part{piece * share, std::min(size, (piece + 1) * share)};
        kernels.multiply(products.data(), static_cast<int>(products.size()), weights,
                         by_columns ? Interval{0, rows} : part, by_columns ? part : Interval{0, panels}, f.bias,
                         accumulate, thread_scratch(kPackFloats));
    });
}

}  // namespace

ImplicitGemm::ImplicitGemm(const Geometry& g, const Border& border, bool spreads)
    : geometry_(g),
      spreads_(spreads),
      one_pixel_(is_one_pixel(g.y) && is_one_pixel(g.x)),
      rows_(spreads ? g.large_channels : g.small_channels),
      channels_(spreads ? g.small_channels : g.large_channels) {
    for (const Grouping grouping : kGroupings)
        add_way(groupings_, spreads ? spread::groups(g, border, grouping) : gather::groups(g, border, grouping));
    if (!spreads) gradient_table_ = gather::all(g, border);
}

int64_t ImplicitGemm::converted_floats(Precision precision) const {
    return converts(precision) ? rows_ * pairs_row(spreads_) : 0;
}

void ImplicitGemm::apply(const Filtering& f, ConvertedWeights& cache, float*) const {
    const Groups& groups = cheapest(groupings_, [&](const IndirectionTable& t) {
        return gemm_kernels(f.precision)
            .cost(static_cast<int64_t>(t.b_tap.size()), f.images * static_cast<int64_t>(t.b_position.size()));
    });
    bool accumulate = f.accumulate;
    const bool uncovered =
        std::any_of(groups.begin(), groups.end(), [](const IndirectionTable& t) { return t.b_tap.empty(); });
    if (uncovered && !accumulate) {  // no tap reaches some positions
        for (int64_t channel = 0; channel < rows_; ++channel)
            std::fill_n(f.y.data + channel * f.y.channel, f.images * f.y.image, f.bias ? f.bias[channel] : 0.f);
        accumulate = true;
    }
    const Weights weights = weights_of(f, cache);
    thread_local std::vector<Product> products;  // reuses its memory
    products.clear();
    for (const IndirectionTable& t : groups) {
        if (t.b_tap.empty()) continue;
        Product product{
            patches_of(t, f.x, f.images), t.w_tap.data(), {f.y.data, f.y.channel, f.y.image, t.y_position.data()}};
        if (one_pixel_) product.result.y_position = product.patches.b_position;
        products.push_back(product);
    }
    if (!products.empty()) multiply(f, products, weights, rows_, accumulate);
}

void ImplicitGemm::weight_gradient(const FilterGradient& g, float*) const {
    const Patches patches = patches_of(gradient_table_, g.large, g.images);
    Result result{g.small.data, g.small.channel, g.small.image, gradient_table_.y_position.data()};
    if (one_pixel_) result.y_position = patches.b_position;
    const int64_t rows = rows_, columns = geometry_.weights_of_small();
    const GemmKernels& kernels = gemm_kernels(g.precision);
    // Chunks as large as the cache holds, but enough of them to divide among the threads.
    const int64_t fits = std::min(kChunk, kPackFloats / rows), share = columns / (4 * g.threads);
    const int64_t even = std::max<int64_t>(kChunk / 3, g.threads > 1 ? std::min(fits, share) : fits);
    const int64_t wanted = std::min(even, columns);
    const int64_t unit = kernels.tile_columns, chunk = (wanted + unit - 1) / unit * unit;
    parallel_for((columns + chunk - 1) / chunk, g.threads, [&](int64_t index) {
        const Timed timed(Work::weight_gradient);
        const int64_t first = index * chunk, last = std::min(columns, first + chunk);
        float* const pack = thread_scratch(kPackFloats + rows * chunk);
        float* const out = pack + kPackFloats;
        kernels.weight_gradient(patches, result, rows, {first, last}, false, out, chunk, pack);
        g.sink.take(g.offset + first, rows, last - first, columns, out, chunk);
    });
}

Weights ImplicitGemm::weights_of(const Filtering& f, ConvertedWeights& cache) const {
    Weights weights;
    weights.w = f.weights;
    weights.w_row = spreads_ ? geometry_.taps() : geometry_.weights_of_small();
    weights.w_channel = spreads_ ? geometry_.weights_of_small() : geometry_.taps();
    if (f.version != 0 && converts(f.precision)) {
        if (cache.of(spreads_).version != f.version) convert_to_bf16_pairs(f, cache);
        weights.pairs = cache.of(spreads_).weights.data();
        weights.pairs_row = pairs_row(spreads_);
        weights.pairs_channel = geometry_.taps();
    }
    return weights;
}

int64_t ImplicitGemm::pairs_row(bool spreads) const {
    return gemm_kernels(Precision::bf16)
        .pairs_row(spreads ? geometry_.small_channels : geometry_.large_channels, geometry_.taps());
}

// Converts for both directions, because the weights come from memory once.
void ImplicitGemm::convert_to_bf16_pairs(const Filtering& f, ConvertedWeights& cache) const {
    const int64_t rows = geometry_.small_channels, share = 32;  // whole cache lines in both tables
    const Bf16PairTables to{cache.gather.weights.at_least(rows * pairs_row(false)), pairs_row(false),
                            cache.spread.weights.at_least(geometry_.large_channels * pairs_row(true)), pairs_row(true)};
    parallel_for((rows + share - 1) / share, f.threads, [&](int64_t part) {
        const Timed timed(Work::pack);
        const Interval some{part * share, std::min(rows, (part + 1) * share)};
        gemm_kernels(f.precision)
            .to_bf16_pairs(f.weights + some.first * geometry_.weights_of_small(), geometry_.weights_of_small(), some,
                           {0, geometry_.large_channels}, geometry_.taps(), to);
    });
    cache.gather.version = cache.spread.version = f.version;
}

Patches ImplicitGemm::patches_of(const IndirectionTable& t, const Images<const float>& source, int64_t images) const {
    Patches p;
    p.b = source.data;
    p.b_channel = source.channel;
    p.b_tap = t.b_tap.data();
    p.channels = static_cast<int>(channels_);
    p.taps = static_cast<int>(t.b_tap.size());
    if (one_pixel_) {  // images are adjacent and take the place of positions
        p.b_position = thread_iota(images);
        p.images = 1;
        p.positions = p.run = static_cast<int>(images);
    } else {
        p.b_image = source.image;
        p.b_position = t.b_position.data();
        p.images = static_cast<int>(images);
        p.positions = static_cast<int>(t.b_position.size());
        p.run = t.run;
    }
    return p;
}

}  // namespace metagan
