// A pool of threads, and the loop that they share.
#include "parallel.h"

#include <pthread.h>
#ifdef __linux__
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "per_process.h"

namespace metagan {
namespace {

// CPU affinity of the calling thread.
class Processors {
  public:
#ifdef __linux__
    Processors() { known_ = pthread_getaffinity_np(pthread_self(), sizeof set_, &set_) == 0; }

    // INT_MAX if unknown.
    int count() const { return known_ ? CPU_COUNT(&set_) : INT_MAX; }
    bool known() const { return known_; }
    cpu_set_t set() const { return set_; }

  private:
    cpu_set_t set_;
    bool known_;
#else
    int count() const {
        const unsigned count = std::thread::hardware_concurrency();
        return count ? static_cast<int>(count) : INT_MAX;
    }
#endif
};

// Workers that take indices of a loop from a shared counter.
class Pool {
  public:
    // Returns false without running anything if another loop holds the pool or the caller has one processor.
    bool run(int64_t count, int threads, IndexedFunction function, const void* context, Idle idle) {
        const std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
        if (!owner.owns_lock()) return false;
        const Processors processors;
        threads = std::min(threads, processors.count());
        if (threads < 2) return false;
        spawn_workers(threads - 1);
        pin_workers(processors);
        function_ = function;
        context_ = context;
        count_ = count;
        next_.store(0, std::memory_order_relaxed);
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            places_ = std::min(threads - 1, workers());
        }
        wake_.notify_all();
        drain();
        std::unique_lock<std::mutex> lock(mutex_);
        places_ = 0;  // workers that have not woken yet are not needed
        const auto done = [this] { return active_ == 0; };
        if (!idle.function) finished_.wait(lock, done);
        while (!finished_.wait_for(lock, std::chrono::milliseconds(50), done)) {
            lock.unlock();
            idle.function(idle.context);
            lock.lock();
        }
        return true;
    }

  private:
    int workers() const { return static_cast<int>(handles_.size()); }

    void spawn_workers(int wanted) {
        try {
            while (workers() < wanted) {
                handles_.reserve(handles_.size() + 1);
                std::thread worker(&Pool::work, this);
                handles_.push_back(worker.native_handle());
                worker.detach();
#ifdef __linux__
                CPU_ZERO(&affinity_);
#endif
            }
        } catch (const std::system_error&) {
            // The system refuses more threads: the loop runs on fewer.
        }
    }

    // Pins workers off the caller's CPU if there are enough CPUs: VM schedulers may co-locate them with the caller
    // after idling (docs/tuning.md#threads-pinning-workers).
    void pin_workers(const Processors& processors) {
#ifdef __linux__
        cpu_set_t others = processors.set();
        const int here = sched_getcpu();
        if (here < 0 || !processors.known()) return;
        if (CPU_COUNT(&others) > workers()) CPU_CLR(here, &others);
        if (CPU_EQUAL(&others, &affinity_)) return;
        for (const pthread_t worker : handles_) pthread_setaffinity_np(worker, sizeof others, &others);
        affinity_ = others;
#else
        static_cast<void>(processors);
#endif
    }

    [[noreturn]] void work() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [this] { return places_ > 0; });
            --places_;
            ++active_;
            lock.unlock();
            drain();
            lock.lock();
            if (--active_ == 0) finished_.notify_one();
        }
    }

    void drain() {
        for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) function_(context_, i);
    }

    std::mutex owner_;  // held while a loop runs
    std::vector<pthread_t> handles_;
#ifdef __linux__
    cpu_set_t affinity_{};  // affinity of all workers; empty: to be set again
#endif

    std::mutex mutex_;  // guards places_ and active_
    std::condition_variable wake_, finished_;
    int places_ = 0;  // workers that may still join the loop
    int active_ = 0;  // workers in the loop

    IndexedFunction function_ = nullptr;
    const void* context_ = nullptr;
    int64_t count_ = 0;
    std::atomic<int64_t> next_{0};
};

// Never destroyed, because its threads sleep in it until the process ends. Threads do not survive a fork, so a child
// makes its own pool.
PerProcess<Pool>* const pool = new PerProcess<Pool>;

}  // namespace

int usable_threads(int64_t threads) { return static_cast<int>(std::min<int64_t>(threads, Processors().count())); }

void parallel_for(int64_t count, int threads, IndexedFunction function, const void* context, Idle idle) {
    threads = static_cast<int>(std::min<int64_t>(threads, count));
    if (threads > 1 && pool->get().run(count, threads, function, context, idle)) return;
    for (int64_t i = 0; i < count; ++i) function(context, i);
}

}  // namespace metagan
