// Objects with locks, which a forked child makes anew.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

namespace metagan {

// Forks between the process that loaded this library and the calling one.
int64_t fork_generation();

// One object of T in each process. Of a forked process's threads the child has only the one that forked: there, locks
// that another held stay locked, and what it was changing stays half changed. So the child makes a new object when it
// first asks for one, and neither touches nor frees the one that it inherited.
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

    // This process's object. May be called by several threads at once.
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
