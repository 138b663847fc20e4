// Sum over tasks in index order, independent of the order in which they finish.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <vector>

#include "cpu/runtime/array.h"

namespace metagan {

// Reorder buffer of at most `arrays` arrays. A finished task's array is parked until all earlier tasks are added. With
// one array more than threads, a thread waits only if two consecutive tasks are late.
class OrderedSum {
  public:
    OrderedSum(int64_t arrays, int64_t floats) : most_(arrays), floats_(floats) {}

    // Starts a sum: `add(task, array)` is called for tasks 0, 1, 2, ..., by one thread at a time.
    void begin(std::function<void(int64_t, const float*)> add) {
        add_ = std::move(add);
        next_ = 0;
    }

    // Returns an uninitialized array; null if `stopped`, polled while waiting, returns true. The last array is reserved
    // for the next task to be added, on which all others may have to wait.
    template <class Stopped>
    float* acquire(int64_t task, const Stopped& stopped) {
        std::unique_lock<std::mutex> lock(mutex_);
        const auto allowed = [&] {
            const auto left = most_ - static_cast<int64_t>(arrays_.size()) + static_cast<int64_t>(free_.size());
            return left > 1 || (left == 1 && (task == next_ || begun_.count(next_) > 0));
        };
        while (!available_.wait_for(lock, std::chrono::milliseconds(50), allowed)) {
            lock.unlock();
            if (stopped()) return nullptr;
            lock.lock();
        }
        begun_.insert(task);
        if (free_.empty()) {
            arrays_.emplace_back(floats_);
            return arrays_.back().data();
        }
        float* const array = free_.back();
        free_.pop_back();
        return array;
    }

    void finish(int64_t task, float* array) {
        std::unique_lock<std::mutex> lock(mutex_);
        parked_[task] = array;
        if (adding_) return;
        adding_ = true;
        for (auto next = parked_.find(next_); next != parked_.end(); next = parked_.find(next_)) {
            float* const done = next->second;
            parked_.erase(next);
            lock.unlock();
            add_(next_, done);
            lock.lock();
            begun_.erase(next_++);
            free_.push_back(done);
            available_.notify_all();
        }
        adding_ = false;
    }

  private:
    const int64_t most_, floats_;
    std::vector<Array<float>> arrays_;
    std::mutex mutex_;
    std::condition_variable available_;
    std::vector<float*> free_;
    std::set<int64_t> begun_;  // tasks that hold an array
    std::map<int64_t, float*> parked_;
    std::function<void(int64_t, const float*)> add_;
    int64_t next_ = 0;
    bool adding_ = false;
};

}  // namespace metagan
