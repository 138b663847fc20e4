// Winograd transforms, compiled once for every instruction set, METAGAN_ISA; no standard library code (see
// gemm_kernels.cpp).
#include "winograd_kernels.h"

#include "cpu/simd/vector.h"

namespace metagan {
namespace {

// Permutes two vectors: element i of the result is element from(i) of a followed by b.
template <class From>
METAGAN_INLINE FloatVector shuffle(FloatVector a, FloatVector b, const From& from) {
#ifdef __clang__
    FloatVector result;
    for (int i = 0; i < kFloats; ++i) result[i] = from(i) < kFloats ? a[from(i)] : b[from(i) - kFloats];
    return result;
#else
    using Index = int32_t __attribute__((vector_size(kVectorBytes)));
    Index index;
    for (int i = 0; i < kFloats; ++i) index[i] = from(i);
    return __builtin_shuffle(a, b, index);
#endif
}

// Every second element of a followed by b, beginning with kFirst (0 or 1).
template <int kFirst>
METAGAN_INLINE FloatVector every_second(FloatVector a, FloatVector b) {
    return shuffle(a, b, [](int i) { return 2 * i + kFirst; });
}

// Half kHalf of the interleaved sequence a[0], b[0], a[1], b[1]...
template <int kHalf>
METAGAN_INLINE FloatVector interleave(FloatVector a, FloatVector b) {
    return shuffle(a, b, [](int i) { return kHalf * (kFloats / 2) + i / 2 + i % 2 * kFloats; });
}

// Gathers column kColumn of a contiguous kFloats x kWidth matrix, which takes kWidth vectors, one vector at a time.
template <int kWidth, int kColumn, int kVector = 1>
METAGAN_INLINE FloatVector column_of(const FloatVector* rows, FloatVector so_far) {
    const FloatVector with_this = shuffle(so_far, rows[kVector], [](int i) {
        const int at = i * kWidth + kColumn;
        if (at / kFloats == kVector) return kFloats + at % kFloats;
        return kVector == 1 && at < kFloats ? at : i;
    });
    if constexpr (kVector + 1 < kWidth)
        return column_of<kWidth, kColumn, kVector + 1>(rows, with_this);
    else
        return with_this;
}

// Transposes a contiguous kFloats x kWidth matrix: one vector for each column.
template <int kWidth, int kColumn = 0>
METAGAN_INLINE void split_rows(const FloatVector* rows, FloatVector* columns) {
    columns[kColumn] = column_of<kWidth, kColumn>(rows, rows[0]);
    if constexpr (kColumn + 1 < kWidth) split_rows<kWidth, kColumn + 1>(rows, columns);
}

// Vector kVector of the contiguous matrix, from its columns: the inverse of column_of.
template <int kWidth, int kVector, int kColumn = 1>
METAGAN_INLINE FloatVector rows_of(const FloatVector* columns, FloatVector so_far) {
    const FloatVector with_this = shuffle(so_far, columns[kColumn], [](int i) {
        const int at = kVector * kFloats + i;
        if (at % kWidth == kColumn) return kFloats + at / kWidth;
        return kColumn == 1 && at % kWidth == 0 ? at / kWidth : i;
    });
    if constexpr (kColumn + 1 < kWidth)
        return rows_of<kWidth, kVector, kColumn + 1>(columns, with_this);
    else
        return with_this;
}

// The inverse of split_rows.
template <int kWidth, int kVector = 0>
METAGAN_INLINE void join_rows(const FloatVector* columns, FloatVector* rows) {
    rows[kVector] = rows_of<kWidth, kVector>(columns, columns[0]);
    if constexpr (kVector + 1 < kWidth) join_rows<kWidth, kVector + 1>(columns, rows);
}

// Deinterleaves four vectors: phase i holds the elements i, i + 4, i + 8...
METAGAN_INLINE void load_phases(const float* from, FloatVector* phase) {
    FloatVector part[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) part[v] = load(from + v * kFloats, FloatVector{});
    const FloatVector even[2] = {every_second<0>(part[0], part[1]), every_second<0>(part[2], part[3])};
    const FloatVector odd[2] = {every_second<1>(part[0], part[1]), every_second<1>(part[2], part[3])};
    phase[0] = every_second<0>(even[0], even[1]);
    phase[1] = every_second<0>(odd[0], odd[1]);
    phase[2] = every_second<1>(even[0], even[1]);
    phase[3] = every_second<1>(odd[0], odd[1]);
}

// The inverse of load_phases.
METAGAN_INLINE void store_phases(float* to, const FloatVector* phase) {
    const FloatVector even[2] = {interleave<0>(phase[0], phase[2]), interleave<1>(phase[0], phase[2])};
    const FloatVector odd[2] = {interleave<0>(phase[1], phase[3]), interleave<1>(phase[1], phase[3])};
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
        store(to + 2 * half * kFloats, interleave<0>(even[half], odd[half]));
        store(to + (2 * half + 1) * kFloats, interleave<1>(even[half], odd[half]));
    }
}

// The transforms G w, B^T x and A^T s for kernels kWidth wide, and the transposes G^T u and A y.
template <int kWidth>
struct Transform;

template <>
struct Transform<5> {
    static METAGAN_INLINE void weights(const FloatVector* w, FloatVector* u) {
        const FloatVector even = w[0] + w[2] + w[4], odd = w[1] + w[3];
        const FloatVector even2 = w[0] + 4 * w[2] + 16 * w[4], odd2 = 2 * w[1] + 8 * w[3];
        const FloatVector even_half = w[0] + 0.25f * w[2] + 0.0625f * w[4], odd_half = 0.5f * w[1] + 0.125f * w[3];
        u[0] = w[0];
        u[1] = (even + odd) * (-2.f / 9);
        u[2] = (even - odd) * (-2.f / 9);
        u[3] = (even2 + odd2) * (1.f / 90);
        u[4] = (even2 - odd2) * (1.f / 90);
        u[5] = (even_half + odd_half) * (32.f / 45);
        u[6] = (even_half - odd_half) * (32.f / 45);
        u[7] = w[4];
    }

    static METAGAN_INLINE void weights_transposed(const FloatVector* u, FloatVector* w) {
        const FloatVector even = (u[1] + u[2]) * (-2.f / 9), odd = (u[1] - u[2]) * (-2.f / 9);
        const FloatVector even2 = (u[3] + u[4]) * (1.f / 90), odd2 = (u[3] - u[4]) * (1.f / 90);
        const FloatVector even_half = (u[5] + u[6]) * (2.f / 45), odd_half = (u[5] - u[6]) * (2.f / 45);
        w[0] = u[0] + even + even2 + 16 * even_half;
        w[1] = odd + 2 * odd2 + 8 * odd_half;
        w[2] = even + 4 * even2 + 4 * even_half;
        w[3] = odd + 8 * odd2 + 2 * odd_half;
        w[4] = even + 16 * even2 + even_half + u[7];
    }

    static METAGAN_INLINE void input(const FloatVector* x, FloatVector* v) {
        const FloatVector even = x[2] + x[6] - 4.25f * x[4], odd = x[1] + x[5] - 4.25f * x[3];
        const FloatVector even2 = x[6] + 0.25f * x[2] - 1.25f * x[4], odd2 = 0.5f * x[1] - 2.5f * x[3] + 2 * x[5];
        const FloatVector even_half = x[6] + 4 * x[2] - 5 * x[4], odd_half = 2 * x[1] - 2.5f * x[3] + 0.5f * x[5];
        v[0] = x[0] - x[6] + 5.25f * (x[4] - x[2]);
        v[1] = even + odd;
        v[2] = even - odd;
        v[3] = even2 + odd2;
        v[4] = even2 - odd2;
        v[5] = even_half + odd_half;
        v[6] = even_half - odd_half;
        v[7] = x[7] - x[1] + 5.25f * (x[3] - x[5]);
    }

    static METAGAN_INLINE void output(const FloatVector* s, FloatVector* y) {
        const FloatVector even = s[1] + s[2], odd = s[1] - s[2], even2 = s[3] + s[4], odd2 = s[3] - s[4];
        const FloatVector even_half = s[5] + s[6], odd_half = s[5] - s[6];
        y[0] = s[0] + even + even2 + even_half;
        y[1] = odd + 2 * odd2 + 0.5f * odd_half;
        y[2] = even + 4 * even2 + 0.25f * even_half;
        y[3] = odd + 8 * odd2 + 0.125f * odd_half + s[7];
    }

    static METAGAN_INLINE void output_transposed(const FloatVector* y, FloatVector* s) {
        const FloatVector even = y[0] + y[2], odd = y[1] + y[3];
        const FloatVector even2 = y[0] + 4 * y[2], odd2 = 2 * y[1] + 8 * y[3];
        const FloatVector even_half = y[0] + 0.25f * y[2], odd_half = 0.5f * y[1] + 0.125f * y[3];
        s[0] = y[0];
        s[1] = even + odd;
        s[2] = even - odd;
        s[3] = even2 + odd2;
        s[4] = even2 - odd2;
        s[5] = even_half + odd_half;
        s[6] = even_half - odd_half;
        s[7] = y[3];
    }
};

template <>
struct Transform<3> {
    static METAGAN_INLINE void weights(const FloatVector* w, FloatVector* u) {
        const FloatVector even = w[0] + w[2], even2 = w[0] + 4 * w[2], odd2 = 2 * w[1];
        u[0] = w[0] * 0.25f;
        u[1] = (even + w[1]) * (-1.f / 6);
        u[2] = (even - w[1]) * (-1.f / 6);
        u[3] = (even2 + odd2) * (1.f / 24);
        u[4] = (even2 - odd2) * (1.f / 24);
        u[5] = w[2];
    }

    static METAGAN_INLINE void weights_transposed(const FloatVector* u, FloatVector* w) {
        const FloatVector even = (u[1] + u[2]) * (-1.f / 6), odd = (u[1] - u[2]) * (-1.f / 6);
        const FloatVector even2 = (u[3] + u[4]) * (1.f / 24), odd2 = (u[3] - u[4]) * (1.f / 24);
        w[0] = 0.25f * u[0] + even + even2;
        w[1] = odd + 2 * odd2;
        w[2] = even + 4 * even2 + u[5];
    }

    static METAGAN_INLINE void input(const FloatVector* x, FloatVector* v) {
        const FloatVector even = x[4] - 4 * x[2], odd = x[3] - 4 * x[1], even2 = x[4] - x[2], odd2 = 2 * (x[3] - x[1]);
        v[0] = 4 * x[0] - 5 * x[2] + x[4];
        v[1] = even + odd;
        v[2] = even - odd;
        v[3] = even2 + odd2;
        v[4] = even2 - odd2;
        v[5] = 4 * x[1] - 5 * x[3] + x[5];
    }

    static METAGAN_INLINE void output(const FloatVector* s, FloatVector* y) {
        const FloatVector even = s[1] + s[2], odd = s[1] - s[2], even2 = s[3] + s[4], odd2 = s[3] - s[4];
        y[0] = s[0] + even + even2;
        y[1] = odd + 2 * odd2;
        y[2] = even + 4 * even2;
        y[3] = odd + 8 * odd2 + s[5];
    }

    static METAGAN_INLINE void output_transposed(const FloatVector* y, FloatVector* s) {
        const FloatVector even = y[0] + y[2], odd = y[1] + y[3];
        const FloatVector even2 = y[0] + 4 * y[2], odd2 = 2 * y[1] + 8 * y[3];
        s[0] = y[0];
        s[1] = even + odd;
        s[2] = even - odd;
        s[3] = even2 + odd2;
        s[4] = even2 - odd2;
        s[5] = y[3];
    }
};

// Clamps `count` to [0, kFloats].
METAGAN_INLINE int part_of_vector(int64_t count) { return static_cast<int>(count < 0 ? 0 : smaller(kFloats, count)); }

template <int kWidth>
void weights_of(bool reversed, int64_t rows, const float* w, float* planes, int64_t stride) {
    constexpr int kPoints = winograd_points(kWidth);
    for (int64_t row = 0; row < rows; row += kFloats) {
        const int64_t left = smaller(kFloats, rows - row);
        FloatVector kernels[kWidth], columns[kWidth], taps[kWidth], points[kPoints];
#pragma GCC unroll 5
        for (int v = 0; v < kWidth; ++v)
            kernels[v] = load_first(w + row * kWidth + v * kFloats, part_of_vector(left * kWidth - v * kFloats));
        split_rows<kWidth>(kernels, columns);
#pragma GCC unroll 5
        for (int k = 0; k < kWidth; ++k) taps[k] = columns[reversed ? kWidth - 1 - k : k];
        Transform<kWidth>::weights(taps, points);
#pragma GCC unroll 8
        for (int e = 0; e < kPoints; ++e) store_first(planes + e * stride + row, static_cast<int>(left), points[e]);
    }
}

template <int kWidth>
void weights_gradient_of(int64_t rows, const float* planes, int64_t stride, float* w) {
    constexpr int kPoints = winograd_points(kWidth);
    for (int64_t row = 0; row < rows; row += kFloats) {
        const int64_t left = smaller(kFloats, rows - row);
        FloatVector kernels[kWidth], taps[kWidth], points[kPoints];
#pragma GCC unroll 8
        for (int e = 0; e < kPoints; ++e) points[e] = load_first(planes + e * stride + row, static_cast<int>(left));
        Transform<kWidth>::weights_transposed(points, taps);
        join_rows<kWidth>(taps, kernels);
#pragma GCC unroll 5
        for (int v = 0; v < kWidth; ++v)
            store_first(w + row * kWidth + v * kFloats, part_of_vector(left * kWidth - v * kFloats), kernels[v]);
    }
}

template <int kTiles>
METAGAN_INLINE void copy_rows(int64_t rows, int64_t tiles, int64_t pitch, const float* from, float* to,
                              int64_t row_tiles) {
    const size_t bytes = static_cast<size_t>(kTiles ? kTiles : tiles) * sizeof(float);
    for (int64_t row = 0; row < rows; ++row) __builtin_memcpy(to + row * row_tiles, from + row * pitch, bytes);
}

// B^T x, whose tiles overlap (kInput), or A y.
template <int kWidth, bool kInput>
METAGAN_INLINE void transform_pixels(const float* from, FloatVector* points) {
    FloatVector pixels[2 * kTileOutputs];
    load_phases(from, pixels);
    if constexpr (kInput) {
        load_phases(from + kTileOutputs, pixels + kTileOutputs);
        Transform<kWidth>::input(pixels, points);
    } else {
        Transform<kWidth>::output_transposed(pixels, points);
    }
}

// Transforms all tiles of the adjacent rows in order, even those that straddle two rows, and copies the wanted ones.
// Rows of whole vectors of tiles need no copy.
template <int kWidth, bool kInput>
void transform_rows(int64_t rows, int64_t tiles, int64_t pitch, const float* x, float* planes, int64_t row_tiles,
                    int64_t stride) {
    constexpr int kPoints = winograd_points(kWidth);
    if (tiles % kFloats == 0) {
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t tile = 0; tile < tiles; tile += kFloats) {
                FloatVector points[kPoints];
                transform_pixels<kWidth, kInput>(x + (row * pitch + tile) * kTileOutputs, points);
#pragma GCC unroll 8
                for (int e = 0; e < kPoints; ++e) store(planes + e * stride + row * row_tiles + tile, points[e]);
            }
        return;
    }
    constexpr int64_t kMost = 512;  // tiles at a time, so that the scratch buffer stays in the first-level cache
    alignas(64) float scratch[kPoints][kMost + kFloats];
    const int64_t at_a_time = pitch < kMost ? kMost / pitch : 1;
    for (int64_t row = 0; row < rows; row += at_a_time) {
        const int64_t count = smaller(at_a_time, rows - row);
        const float* const from = x + row * pitch * kTileOutputs;
        for (int64_t tile = 0; tile < count * pitch; tile += kFloats) {
            FloatVector points[kPoints];
            transform_pixels<kWidth, kInput>(from + tile * kTileOutputs, points);
#pragma GCC unroll 8
            for (int e = 0; e < kPoints; ++e) store(scratch[e] + tile, points[e]);
        }
        for (int e = 0; e < kPoints; ++e) {
            float* const to = planes + e * stride + row * row_tiles;
            switch (tiles) {  // constant copy lengths for short rows
                case 1:
                    copy_rows<1>(count, tiles, pitch, scratch[e], to, row_tiles);
                    break;
                case 2:
                    copy_rows<2>(count, tiles, pitch, scratch[e], to, row_tiles);
                    break;
                case 4:
                    copy_rows<4>(count, tiles, pitch, scratch[e], to, row_tiles);
                    break;
                case 8:
                    copy_rows<8>(count, tiles, pitch, scratch[e], to, row_tiles);
                    break;
                default:
                    copy_rows<0>(count, tiles, pitch, scratch[e], to, row_tiles);
            }
        }
    }
}

// Computes the outputs of all images contiguously, as their tiles lie, then copies them to each image.
template <int kWidth>
void output_of(int64_t images, int64_t tiles, const float* planes, int64_t stride, float bias, bool add, float* y,
               int64_t image_stride) {
    constexpr int kPoints = winograd_points(kWidth);
    constexpr int64_t kMost = 512;
    alignas(64) float scratch[(kMost + kFloats) * kTileOutputs];
    const int64_t width = tiles * kTileOutputs, at_a_time = tiles < kMost ? kMost / tiles : 1;
    for (int64_t first = 0; first < images; first += at_a_time) {
        const int64_t last = smaller(images, first + at_a_time);
        const float* const from = planes + first * tiles;
        for (int64_t tile = 0; tile < (last - first) * tiles; tile += kFloats) {
            FloatVector points[kPoints], outputs[kTileOutputs];
#pragma GCC unroll 8
            for (int e = 0; e < kPoints; ++e) points[e] = load(from + e * stride + tile, FloatVector{});
            Transform<kWidth>::output(points, outputs);
            store_phases(scratch + tile * kTileOutputs, outputs);
        }
        for (int64_t image = first; image < last; ++image) {
            const float* const made = scratch + (image - first) * width;
            float* const to = y + image * image_stride;
            for (int64_t i = 0; i < width; i += kFloats) {
                const int count = static_cast<int>(smaller(kFloats, width - i));
                const FloatVector before = add ? load_first(to + i, count) : FloatVector{} + bias;
                store_first(to + i, count, before + load(made + i, FloatVector{}));
            }
        }
    }
}

void weights(int width, bool reversed, int64_t rows, const float* w, float* planes, int64_t stride) {
    (width == 5 ? weights_of<5> : weights_of<3>)(reversed, rows, w, planes, stride);
}

void weights_gradient(int width, int64_t rows, const float* planes, int64_t stride, float* w) {
    (width == 5 ? weights_gradient_of<5> : weights_gradient_of<3>)(rows, planes, stride, w);
}

void input(int width, int64_t rows, int64_t tiles, int64_t pitch, const float* x, float* planes, int64_t row_tiles,
           int64_t stride) {
    (width == 5 ? transform_rows<5, true> : transform_rows<3, true>)(rows, tiles, pitch, x, planes, row_tiles, stride);
}

void output_cotangent(int width, int64_t rows, int64_t tiles, int64_t pitch, const float* y, float* planes,
                      int64_t row_tiles, int64_t stride) {
    (width == 5 ? transform_rows<5, false> : transform_rows<3, false>)(rows, tiles, pitch, y, planes, row_tiles,
                                                                       stride);
}

void output(int width, int64_t images, int64_t tiles, const float* planes, int64_t stride, float bias, bool add,
            float* y, int64_t image_stride) {
    (width == 5 ? output_of<5> : output_of<3>)(images, tiles, planes, stride, bias, add, y, image_stride);
}

}  // namespace

const WinogradKernels METAGAN_FOR_ISA(winograd_kernels_) = {weights, weights_gradient, input, output_cotangent, output};

}  // namespace metagan
