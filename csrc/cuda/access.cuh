// Memory access of the CUDA kernels: packs of adjacent elements, rows of buffers, learning rates. Plain C++ but for the
// qualifiers, so that a host compiler accepts it too.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "ops/dtypes.h"
#include "ops/launch.h"

#define METAGAN_DEVICE __device__ __forceinline__

namespace metagan::cuda {

// Adjacent elements that one thread moves together: one 16-byte access, or one element where addresses are unaligned.
template <class T, int kWidth>
struct Pack {
    T at[kWidth];
};

// Elements in 16 bytes.
template <class T>
constexpr int kPack = 16 / sizeof(T);

// Machine word that a pack is moved in: 16 bytes, or one element.
template <class T, int kWidth>
struct WordOf {
    using type = uint4;
};
template <class T>
struct WordOf<T, 1> {
    using type = T;
};

template <class T>
METAGAN_DEVICE void store_word(T* address, T word) {
    *address = word;
}
// An intrinsic, because the compiler sometimes splits a 16-byte assignment.
METAGAN_DEVICE void store_word(uint4* address, uint4 word) { __stwb(address, word); }

// Loads a pack and converts it to the arithmetic type.
template <int kWidth, class T>
METAGAN_DEVICE Pack<Arithmetic<T>, kWidth> load(const T* address) {
    using Word = typename WordOf<T, kWidth>::type;
    constexpr int kWords = kWidth * sizeof(T) / sizeof(Word);
    Word words[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = reinterpret_cast<const Word*>(address)[i];
    Pack<T, kWidth> stored;
    __builtin_memcpy(&stored, words, sizeof stored);
    Pack<Arithmetic<T>, kWidth> values;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values.at[i] = widen(stored.at[i]);
    return values;
}

// Rounds a pack to the storage type and stores it.
template <int kWidth, class T>
METAGAN_DEVICE void store(T* address, const Pack<Arithmetic<T>, kWidth>& values) {
    using Word = typename WordOf<T, kWidth>::type;
    constexpr int kWords = kWidth * sizeof(T) / sizeof(Word);
    Pack<T, kWidth> stored;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) narrow(values.at[i], stored.at[i]);
    Word words[kWords];
    __builtin_memcpy(words, &stored, sizeof stored);
#pragma unroll
    for (int i = 0; i < kWords; ++i) store_word(reinterpret_cast<Word*>(address) + i, words[i]);
}

// Input rows; null: absent.
template <class T>
struct Input {
    const T* data;
    int64_t stride;

    template <int kWidth>
    METAGAN_DEVICE Pack<Arithmetic<T>, kWidth> load(int64_t row, int64_t column) const {
        return cuda::load<kWidth>(data + row * stride + column);
    }
};

// Rows that are read and written, in place or not, so loads must not use the read-only cache (ld.global.nc).
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
        cuda::store<kWidth>(out + row * out_stride + column, values);
    }
};

// Number in the arithmetic type.
template <class A>
struct Scalar {
    A value;
    const double* data;

    METAGAN_DEVICE A load() const { return data ? static_cast<A>(*data) : value; }
};

// LearningRate in the arithmetic type; `segment_ends` is in device memory.
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
            return element_stride ? cuda::load<kWidth>(of_row + column) : filled<kWidth>(*of_row);
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

}  // namespace metagan::cuda
