// Parallel loops on a small pool of threads, which sleep between loops.
#pragma once

#include <algorithm>
#include <cstdint>

namespace metagan {

using IndexedFunction = void (*)(const void* context, int64_t index);

// Callback that the calling thread runs every 50 ms while it waits for the others.
struct Idle {
    void (*function)(const void* context) = nullptr;
    const void* context = nullptr;
};

// Returns `threads`, at most the number of processors that the caller may run on: more threads would only take turns.
int usable_threads(int64_t threads);

// Calls function(context, i) once for every i in [0, count), in no particular order, on the caller and at most
// usable_threads(threads) - 1 workers. Returns when all calls have returned. The function must not throw. Runs on the
// caller alone while the pool is in use by another thread or an enclosing loop. A forked child starts with a new pool.
void parallel_for(int64_t count, int threads, IndexedFunction function, const void* context, Idle idle = {});

// The same for a callable, body(i).
template <class Body>
void parallel_for(int64_t count, int threads, const Body& body, Idle idle = {}) {
    parallel_for(
        count, threads, [](const void* context, int64_t index) { (*static_cast<const Body*>(context))(index); }, &body,
        idle);
}

// Each thread's share of `size` (at least 1), rounded up to a multiple of `unit`; the last may be smaller or empty.
inline int64_t share_of(int64_t size, int64_t threads, int64_t unit) {
    const int64_t share = (size + threads - 1) / threads;
    return (share + unit - 1) / unit * unit;
}

// Calls body(first, last) for parts of `count` rows, which hold `numbers` elements in all. Several parts for each
// thread balance the load; none has fewer than kLeast elements, or it would be done before a worker wakes
// (docs/tuning.md#threads-smallest-part).
template <class Body>
void parallel_parts(int64_t count, int64_t numbers, int threads, const Body& body) {
    constexpr int64_t kLeast = 16 * 1024;
    const int64_t most = threads == 1 ? 1 : std::min<int64_t>(4 * threads, numbers / kLeast);
    const int64_t parts = std::max<int64_t>(1, std::min(count, most));
    parallel_for(parts, threads, [&](int64_t part) { body(count * part / parts, count * (part + 1) / parts); });
}

}  // namespace metagan
