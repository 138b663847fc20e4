// Objects with locks, replaced by fresh ones in a forked child.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

namespace metagan {

// Number of forks between the process that loaded this library and the calling one.
int64_t fork_generation();

// One object of T for each process. A forked child has only the thread that forked: locks held by other threads stay
// locked there, and data that they were changing stays inconsistent. So the child creates a new object at its first
// use, and neither touches nor frees the inherited one.
template <class T>
class PerProcess {
  public:
    PerProcess() = default;
    PerProcess(const PerProcess&) = delete;
    PerProcess& operator=(const PerProcess&) = delete;
    ~PerProcess() {
        Entry* const entry = entry_.load();
        if (entry && entry->generation == fork_generation()) delete entry;
    }

    // Returns this process's object. Thread-safe.
    T& get() {
        const int64_t generation = fork_generation();
        Entry* entry = entry_.load();
        while (!entry || entry->generation != generation) {
            auto fresh = std::make_unique<Entry>(generation);
            if (entry_.compare_exchange_strong(entry, fresh.get())) entry = fresh.release();
        }
        return entry->object;
    }

  private:
    struct Entry {
        explicit Entry(int64_t of) : generation(of) {}
        const int64_t generation;
        T object;
    };
    std::atomic<Entry*> entry_{nullptr};
};

}  // namespace metagan
