// A loop shared by a small pool of threads that sleep in between.
#pragma once

#include <algorithm>
#include <cstdint>

namespace metagan {

using IndexedFunction = void (*)(const void* context, int64_t index);

// What the calling thread does now and then while it waits for others to finish.
struct Idle {
    void (*function)(const void* context) = nullptr;
    const void* context = nullptr;
};

// The number of threads, or of the processors that the caller may run on if that is less: more would only take turns.
int usable_threads(int64_t threads);

// Calls function(context, i) once for every i in [0, count), on at most `threads` threads that are usable, the caller
// among them, in no particular order. Returns when all are done. The function must not throw. Runs on the caller alone
// when the pool is in use, by another thread or by an enclosing loop. A forked child starts with a fresh pool.
void parallel_for(int64_t count, int threads, IndexedFunction function, const void* context, Idle idle = {});

// The same for a callable body(i).
template <class Body>
void parallel_for(int64_t count, int threads, const Body& body, Idle idle = {}) {
    parallel_for(
        count, threads, [](const void* context, int64_t index) { (*static_cast<const Body*>(context))(index); }, &body,
        idle);
}

// Equal shares of `size` (at least 1) for so many threads, in whole units; the last of them may be smaller, or missing.
inline int64_t share_of(int64_t size, int64_t threads, int64_t unit) {
    const int64_t share = (size + threads - 1) / threads;
    return (share + unit - 1) / unit * unit;
}

// Calls body(first, last) for parts of `count` rows that hold so many numbers in all: some for each thread, so that
// whoever is free takes the next, but none that is done before another thread has woken (25 us on two Zen 4 cores).
template <class Body>
void parallel_parts(int64_t count, int64_t numbers, int threads, const Body& body) {
    constexpr int64_t kLeast = 16 * 1024;
    const int64_t most = threads == 1 ? 1 : std::min<int64_t>(4 * threads, numbers / kLeast);
    const int64_t parts = std::max<int64_t>(1, std::min(count, most));
    parallel_for(parts, threads, [&](int64_t part) { body(count * part / parts, count * (part + 1) / parts); });
}

}  // namespace metagan
