// Arrays aligned for vectors and zero-initialised.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "huge_pages.h"

namespace metagan {

template <class T>
class Array {
  public:
    Array() = default;
    // Zero-initialised lazily: the system clears each page at its first touch, in the thread that touches it, so
    // allocating gigabytes is immediate and only pages in use take memory.
    explicit Array(int64_t size) : size_(size) {
        if (size <= 0) return;
        // Padding: kernels read up to a few vectors past the last element.
        const size_t bytes = static_cast<size_t>(size) * sizeof(T) + 11 * kAlignment;
        memory_.reset(std::calloc(bytes + kAlignment, 1));
        if (!memory_) throw std::bad_alloc();
        ask_for_huge_pages(memory_.get(), bytes + kAlignment);
    }

    // Grows to at least `size` elements; growing discards the contents.
    T* at_least(int64_t size) {
        if (size > size_) *this = Array(size);
        return data();
    }

    T* data() { return aligned(); }
    const T* data() const { return aligned(); }

  private:
    static constexpr size_t kAlignment = 64;
    struct Free {
        void operator()(void* memory) const { std::free(memory); }
    };

    T* aligned() const {
        return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory_.get()) + kAlignment - 1) &
                                    ~uintptr_t{kAlignment - 1});
    }

    int64_t size_ = 0;
    std::unique_ptr<void, Free> memory_;
};

}  // namespace metagan
