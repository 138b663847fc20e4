// Memory for vectors: aligned, zero to begin with, allocated once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "huge_pages.h"

namespace metagan {

template <class T>
class Array {
  public:
    Array() = default;
    explicit Array(int64_t size) : size_(size) {
        if (size <= 0) return;
        // The last element may be read as part of a vector, or of a few.
        const size_t bytes = (static_cast<size_t>(size) * sizeof(T) + 11 * kAlignment - 1) / kAlignment * kAlignment;
        data_.reset(static_cast<T*>(std::aligned_alloc(kAlignment, bytes)));
        if (!data_) throw std::bad_alloc();
        ask_for_huge_pages(data_.get(), bytes);
        std::memset(data_.get(), 0, bytes);
    }

    // At least `size` elements; those that were there are lost when it has to grow.
    T* at_least(int64_t size) {
        if (size > size_) *this = Array(size);
        return data();
    }

    T* data() { return data_.get(); }
    const T* data() const { return data_.get(); }

  private:
    static constexpr size_t kAlignment = 64;
    struct Free {
        void operator()(T* data) const { std::free(data); }
    };
    int64_t size_ = 0;
    std::unique_ptr<T, Free> data_;
};

}  // namespace metagan
