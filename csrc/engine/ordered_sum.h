// Sums over tasks in the order of their index, whatever order they finish in.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <vector>

#include "../cpu/array.h"

namespace metagan {

// A fixed number of arrays that tasks fill. What a task has left is added when its turn comes, and parked until then;
// with one array more than threads, a thread waits only where two tasks in a row are late.
class OrderedSum {
  public:
    OrderedSum(int64_t arrays, int64_t floats) {
        for (int64_t i = 0; i < arrays; ++i) {
            arrays_.emplace_back(floats);
            free_.push_back(arrays_.back().data());
        }
    }

    // Starts a sum: `add(task, array)` is called for task 0, 1, 2..., by one thread at a time.
    void begin(std::function<void(int64_t, const float*)> add) {
        add_ = std::move(add);
        next_ = 0;
    }

    float* acquire() {
        std::unique_lock<std::mutex> lock(mutex_);
        available_.wait(lock, [this] { return !free_.empty(); });
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
            ++next_;
            free_.push_back(done);
            available_.notify_one();
        }
        adding_ = false;
    }

  private:
    std::vector<Array<float>> arrays_;
    std::mutex mutex_;
    std::condition_variable available_;
    std::vector<float*> free_;
    std::map<int64_t, float*> parked_;
    std::function<void(int64_t, const float*)> add_;
    int64_t next_ = 0;
    bool adding_ = false;
};

}  // namespace metagan
