// How the kernels reach memory: packs of adjacent elements, rows of buffers, learning rates. Plain C++ beside the
// qualifiers, so that a host compiler takes it too.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "ops/dtypes.h"
#include "ops/launch.h"

#define METAGAN_DEVICE __device__ __forceinline__

namespace metagan {

// Adjacent elements that move together: 16 bytes an access, or one element where addresses are not aligned.
template <class T, int kWidth>
struct Pack {
    T at[kWidth];
};

// Elements of 16 bytes.
template <class T>
constexpr int kPack = 16 / sizeof(T);

// What a pack moves as.
template <class T, int kWidth>
struct WordOf {
    using type = uint4;
};
template <class T>
struct WordOf<T, 1> {
    using type = T;
};

template <class T>
METAGAN_DEVICE void store_word(T* address, T pair) {
    *address = pair;
}
// By name, since the compiler splits an assignment of 16 bytes now and then.
METAGAN_DEVICE void store_word(uint4* address, uint4 pair) { __stwb(address, pair); }

// Loads in the arithmetic type.
template <int kWidth, class T>
METAGAN_DEVICE Pack<Arithmetic<T>, kWidth> load(const T* address) {
    using Word = typename WordOf<T, kWidth>::type;
    constexpr int kPairs = kWidth * sizeof(T) / sizeof(Word);
    Word pairs[kPairs];
#pragma unroll
    for (int i = 0; i < kPairs; ++i) pairs[i] = reinterpret_cast<const Word*>(address)[i];
    Pack<T, kWidth> stored;
    __builtin_memcpy(&stored, pairs, sizeof stored);
    Pack<Arithmetic<T>, kWidth> values;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values.at[i] = widen(stored.at[i]);
    return values;
}

// Rounds to the storage type.
template <int kWidth, class T>
METAGAN_DEVICE void store(T* address, const Pack<Arithmetic<T>, kWidth>& values) {
    using Word = typename WordOf<T, kWidth>::type;
    constexpr int kPairs = kWidth * sizeof(T) / sizeof(Word);
    Pack<T, kWidth> stored;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) narrow(values.at[i], stored.at[i]);
    Word pairs[kPairs];
    __builtin_memcpy(pairs, &stored, sizeof stored);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) store_word(reinterpret_cast<Word*>(address) + i, pairs[i]);
}

// Rows that are read; null: absent.
template <class T>
struct Input {
    const T* data;
    int64_t stride;

    template <int kWidth>
    METAGAN_DEVICE Pack<Arithmetic<T>, kWidth> load(int64_t row, int64_t column) const {
        return metagan::load<kWidth>(data + row * stride + column);
    }
};

// Rows that are read and written, in place or not. Nothing here may go through a cache that expects constant memory.
template <class T>
struct Buffer {
    Input<T> in;
    T* out;
    int64_t out_stride;

    template <int kWidth>
    METAGAN_DEVICE Pack<Arithmetic<T>, kWidth> load(int64_t row, int64_t column) const {
        return in.template load<kWidth>(row, column);
    }
    template <int kWidth>
    METAGAN_DEVICE void store(int64_t row, int64_t column, const Pack<Arithmetic<T>, kWidth>& values) const {
        metagan::store<kWidth>(out + row * out_stride + column, values);
    }
};

// Number in the arithmetic type.
template <class A>
struct Scalar {
    A value;
    const double* data;

    METAGAN_DEVICE A load() const { return data ? static_cast<A>(*data) : value; }
};

// LearningRate in the arithmetic type; `segment_ends` on the device.
template <class A>
struct Rate {
    A value;
    const A* data;
    int64_t row_stride, segment_stride, element_stride;
    const int64_t* segment_ends;
    int64_t segments;

    template <int kWidth>
    METAGAN_DEVICE Pack<A, kWidth> load(int64_t row, int64_t column) const {
        if (!data) return filled<kWidth>(value);
        const A* const of_row = data + row * row_stride;
        if (!segment_ends) {
            return element_stride ? metagan::load<kWidth>(of_row + column) : filled<kWidth>(*of_row);
        }
        Pack<A, kWidth> rates;
        int64_t segment = segment_of(column), end = segment_ends[segment];
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
            while (end <= column + i) end = segment_ends[++segment];  // the last one lies beyond every column
            rates.at[i] = of_row[segment * segment_stride + (column + i) * element_stride];
        }
        return rates;
    }

  private:
    template <int kWidth>
    METAGAN_DEVICE static Pack<A, kWidth> filled(A rate) {
        Pack<A, kWidth> rates;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) rates.at[i] = rate;
        return rates;
    }

    METAGAN_DEVICE int64_t segment_of(int64_t column) const {
        int64_t first = 0, last = segments - 1;
        while (first < last) {
            const int64_t middle = first + (last - first) / 2;
            if (segment_ends[middle] <= column)
                first = middle + 1;
            else
                last = middle;
        }
        return first;
    }
};

}  // namespace metagan
