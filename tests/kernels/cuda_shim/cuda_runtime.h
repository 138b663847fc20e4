// Stand-in for CUDA's header: a host compiler builds csrc/cuda unchanged, g++ -x c++ -I tests/kernels/cuda_shim.
//
// A launch runs the blocks one after another. The threads of a block are either fibers, resumed in the order that
// shim::order names, so that a result which depends on the order shows; or, with SHIM_THREADS, threads of the system,
// so that ThreadSanitizer and AddressSanitizer see them. A barrier that not all threads of a block reach, or that they
// reach at different places, is an error. Warps do not exist here.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>
#include <typeinfo>
#include <vector>

#ifdef SHIM_THREADS
#include <condition_variable>
#include <mutex>
#include <thread>
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreSyncBegin(const char*, int);
void AnnotateIgnoreSyncEnd(const char*, int);
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#endif
#else
#include <ucontext.h>
#endif

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static  // blocks run one after another
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

inline dim3 blockIdx, blockDim, gridDim;
inline thread_local dim3 threadIdx;

inline void __stwb(uint4* address, uint4 value) {
    if (reinterpret_cast<uintptr_t>(address) % 16 != 0) throw std::runtime_error("16 bytes at an unaligned address");
    *address = value;
}

namespace shim {

enum class Order { forward, reverse, shuffled };

inline Order order = Order::forward;
inline unsigned seed = 0;

// A launch that is recorded, not run: its kernel's mangled type, and the bytes of its arguments.
struct Recorded {
    std::string type;
    std::vector<std::string> arguments;
};

inline bool recording = false;
inline Recorded recorded;

// State of the current block's threads.
class Barrier {
  public:
    void reset(unsigned threads) {
        threads_ = threads;
        waiting_ = 0;
        line_ = 0;
        error_.clear();
    }
    // Whether the block's last thread has arrived.
    bool arrive(int line) {
        if (waiting_ > 0 && line_ != line) fail("threads wait at different barriers");
        line_ = line;
        if (++waiting_ < threads_) return false;
        waiting_ = 0;
        ++generation_;
        return true;
    }
    void leave() {
        --threads_;
        if (waiting_ > 0) fail("a thread left the kernel while others wait at a barrier");
    }
    void fail(const char* what) {
        if (error_.empty())
            error_ = std::string("divergent barrier: ") + what + " (block " + std::to_string(blockIdx.x) + ", " +
                     std::to_string(blockIdx.y) + ")";
    }
    unsigned generation() const { return generation_; }
    bool waits() const { return waiting_ > 0; }
    const std::string& error() const { return error_; }

  private:
    unsigned threads_ = 0, waiting_ = 0, generation_ = 0;
    int line_ = 0;
    std::string error_;
};

inline Barrier barrier;

inline dim3 index_of(unsigned thread) {
    return dim3(thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / blockDim.x / blockDim.y);
}

#ifdef SHIM_THREADS

inline std::mutex mutex;
inline std::condition_variable moved;

struct Abandoned {};

// Hides the shim's own mutex from ThreadSanitizer: threads that take it one after another would seem ordered by it, and
// a race between the end of one barrier and the beginning of the next would go unseen.
struct Hidden {
#ifdef __SANITIZE_THREAD__
    Hidden() {
        AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
        AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
        AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
    }
    ~Hidden() {
        AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
        AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
        AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
    }
#else
    Hidden() {}
    ~Hidden() {}
#endif
};

// What a barrier does order: all that came before it in any thread, before all that follows. Two marks in turn.
inline char marks[2];
inline thread_local unsigned passed;

inline void synchronize(int line) {
    [[maybe_unused]] char* const mark = &marks[passed++ % 2];
#ifdef __SANITIZE_THREAD__
    __tsan_release(mark);
#endif
    {
        const Hidden hidden;
        std::unique_lock<std::mutex> lock(mutex);
        const unsigned before = barrier.generation();
        if (barrier.arrive(line))
            moved.notify_all();
        else
            moved.wait(lock, [&] { return barrier.generation() != before || !barrier.error().empty(); });
        if (!barrier.error().empty()) throw Abandoned{};
    }
#ifdef __SANITIZE_THREAD__
    __tsan_acquire(mark);
#endif
}

inline void run_block(unsigned threads, const std::function<void()>& kernel) {
    std::vector<std::thread> running;
    for (unsigned i = 0; i < threads; ++i)
        running.emplace_back([&, i] {
            threadIdx = index_of(i);
            try {
                kernel();
            } catch (const Abandoned&) {
                return;
            }
            const Hidden hidden;
            const std::lock_guard<std::mutex> lock(mutex);
            barrier.leave();
            if (!barrier.error().empty()) moved.notify_all();
        });
    for (std::thread& thread : running) thread.join();
}

#else

struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    bool done;
};

inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline unsigned current;
inline const std::function<void()>* body;

inline void to_scheduler() { swapcontext(&fibers[current].context, &scheduler); }

inline void start() {
    (*body)();
    fibers[current].done = true;
    barrier.leave();
    to_scheduler();
}

inline void synchronize(int line) {
    const unsigned before = barrier.generation();
    barrier.arrive(line);
    while (barrier.generation() == before) to_scheduler();
}

inline void run_block(unsigned threads, const std::function<void()>& kernel) {
    constexpr size_t kStack = 64 << 10;
    if (fibers.size() < threads) fibers.resize(threads);
    std::vector<unsigned> ids(threads);
    for (unsigned i = 0; i < threads; ++i) {
        Fiber& fiber = fibers[i];
        ids[i] = i;
        fiber.done = false;
        fiber.stack.resize(kStack);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = kStack;
        makecontext(&fiber.context, start, 0);
    }
    body = &kernel;
    static std::mt19937 random;
    random.seed(seed);
    if (order == Order::reverse) std::reverse(ids.begin(), ids.end());
    while (!ids.empty() && barrier.error().empty()) {
        if (order == Order::shuffled) std::shuffle(ids.begin(), ids.end(), random);
        for (const unsigned id : ids) {
            current = id;
            threadIdx = index_of(id);
            swapcontext(&scheduler, &fibers[id].context);
        }
        ids.erase(std::remove_if(ids.begin(), ids.end(), [](unsigned id) { return fibers[id].done; }), ids.end());
    }
}

#endif

inline void launch(dim3 grid, dim3 block, const std::function<void()>& kernel) {
    const unsigned threads = block.x * block.y * block.z;
    if (threads == 0 || threads > 1024 || grid.x == 0 || grid.y == 0 || grid.y > 65535 || grid.z != 1)
        throw std::runtime_error("invalid configuration argument");
    gridDim = grid;
    blockDim = block;
    for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x) {
            blockIdx = dim3(x, y, 0);
            barrier.reset(threads);
            run_block(threads, kernel);
            if (!barrier.error().empty()) throw std::runtime_error(barrier.error());
        }
}

}  // namespace shim

#define __syncthreads() ::shim::synchronize(__LINE__)

// The part of the runtime that the launchers call.
enum cudaError_t { cudaSuccess, cudaErrorNoDevice, cudaErrorInsufficientDriver };
using cudaStream_t = void*;

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
};

inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaGetDeviceCount(int* count) {
    *count = 0;
    return cudaErrorNoDevice;
}

template <class... Parameters>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Parameters... arguments) {
    if (shim::recording) {
        const auto bytes = [](const auto& x) { return std::string(reinterpret_cast<const char*>(&x), sizeof x); };
        shim::recorded = {typeid(kernel).name(), {bytes(arguments)...}};
        return cudaSuccess;
    }
    shim::launch(config->gridDim, config->blockDim, [=] { kernel(arguments...); });
    return cudaSuccess;
}
