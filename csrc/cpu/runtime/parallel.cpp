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

// Processors that the calling thread may run on.
class Processors {
  public:
#ifdef __linux__
    Processors() { known_ = pthread_getaffinity_np(pthread_self(), sizeof set_, &set_) == 0; }

    // INT_MAX where the system does not say.
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

class Pool {
  public:
    // Returns false, having done nothing, when another loop holds the pool or the caller has one processor.
    bool run(int64_t count, int threads, IndexedFunction function, const void* context, Idle idle) {
        const std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
        if (!owner.owns_lock()) return false;
        const Processors processors;
        threads = std::min(threads, processors.count());
        if (threads < 2) return false;
        hire(threads - 1);
        keep_apart(processors);
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
        places_ = 0;  // whoever has not woken by now is not needed
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

    void hire(int wanted) {
        try {
            while (workers() < wanted) {
                handles_.reserve(handles_.size() + 1);
                std::thread worker(&Pool::work, this);
                handles_.push_back(worker.native_handle());
                worker.detach();
#ifdef __linux__
                CPU_ZERO(&kept_to_);
#endif
            }
        } catch (const std::system_error&) {
            // No more threads to be had: fewer do the same work.
        }
    }

    // Where there are processors enough, keeps workers off the caller's: a virtual machine's kernel takes a processor
    // that has slept for some milliseconds for a busy one, and wakes them beside the caller, to wait for it. (Of inner
    // loops that followed 30 ms of sleep on a machine of two, half took 1.8 times as long.)
    void keep_apart(const Processors& processors) {
#ifdef __linux__
        cpu_set_t others = processors.set();
        const int here = sched_getcpu();
        if (here < 0 || !processors.known()) return;
        if (CPU_COUNT(&others) > workers()) CPU_CLR(here, &others);
        if (CPU_EQUAL(&others, &kept_to_)) return;
        for (const pthread_t worker : handles_) pthread_setaffinity_np(worker, sizeof others, &others);
        kept_to_ = others;
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

    std::mutex owner_;  // held for the length of a loop
    std::vector<pthread_t> handles_;
#ifdef __linux__
    cpu_set_t kept_to_{};  // where workers may run; none: not all of them have been told
#endif

    std::mutex mutex_;  // guards places_ and active_
    std::condition_variable wake_, finished_;
    int places_ = 0;  // workers that may still join the loop
    int active_ = 0;  // workers in it

    IndexedFunction function_ = nullptr;
    const void* context_ = nullptr;
    int64_t count_ = 0;
    std::atomic<int64_t> next_{0};
};

// Never destroyed: its threads sleep in it until the process ends. They do not survive a fork.
PerProcess<Pool>* const pool = new PerProcess<Pool>;

}  // namespace

int usable_threads(int64_t threads) { return static_cast<int>(std::min<int64_t>(threads, Processors().count())); }

void parallel_for(int64_t count, int threads, IndexedFunction function, const void* context, Idle idle) {
    threads = static_cast<int>(std::min<int64_t>(threads, count));
    if (threads > 1 && pool->get().run(count, threads, function, context, idle)) return;
    for (int64_t i = 0; i < count; ++i) function(context, i);
}

}  // namespace metagan
