// State of a running block: threads as fibers, memory with the users of each byte, operations in flight.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "runtime.h"

namespace ptx {

constexpr int32_t kNobody = -1, kOneWarp = -2, kManyWarps = -3;
constexpr size_t kGroupThreads = 128;  // of a warp group

struct Fault {
    std::string message;
};

enum class State { kReady, kAtBarrier, kInExchange, kInGroup, kAtMbarrier, kDone };
enum class GroupStep { kFence, kMultiply, kCommit, kWait };

// A cp.async in flight; `data` holds the source's bytes at its start.
struct Copy {
    uint64_t to;
    const uint8_t* from;
    uint32_t size, from_size, group;
    uint8_t data[16];
};

// A tcgen05.ld of one word of tensor memory in flight; below, a tcgen05.st.
struct CellLoad {
    uint32_t* to;
    uint32_t cell;
};

struct CellStore {
    uint32_t cell, value;
};

constexpr size_t kStack = 512 << 10;

struct Unmap {
    void operator()(char* stack) const { munmap(stack, kStack); }
};
using Stack = std::unique_ptr<char[], Unmap>;

struct Fiber {
    Thread thread;
    ucontext_t context;
    Stack stack;
    State state;
    int line;
    uint32_t id, mask;
    bool orders;  // whether its exchange orders memory too
    std::vector<Copy> copies;
    uint32_t groups;  // of copies, committed so far
    GroupStep step;
    uint32_t newest;                          // of a kWait
    const Product* product;                   // of a kMultiply
    std::unordered_set<const void*> touched;  // registers of products that other instructions used since wgmma.fence
    std::vector<uint32_t> proxy_fences;       // the interval of each fence.proxy.async
    uint32_t mbarrier, parity;                // that it waits for
    bool has_tried;                           // whether its mbarrier.try_wait has returned false
    std::map<int32_t, uint32_t> arrived;  // by thread: its tensor products before this number are known to have arrived
    std::vector<CellLoad> loads;
    std::vector<CellStore> stores;
};

struct Warp {
    Exchange exchange;
    uint32_t phase;  // incremented by bar.warp.sync, which orders accesses of the warp's threads, as shuffles do not
};

// A register of a product in flight: of the result, which will be `value`, or of operand A.
struct Held {
    bool is_result;
    uint32_t value, shape, group, fences;
};

struct WarpGroup {
    std::unordered_map<const void*, Held> held;
    std::vector<std::pair<uint32_t, std::vector<uint32_t>>> readings;  // group, addresses of 16 bytes each
    uint32_t groups = 0, fences = 0;                                   // committed, executed
};

struct Access {
    int32_t thread = kNobody;
    uint32_t warp = 0, phase = 0, interval = 0;
};

// The last write to a byte, products excepted, with its thread's count of fence.proxy.async so far.
struct Write {
    int32_t thread = kNobody;
    uint32_t interval = 0, proxy_fences = 0;
};

// A tcgen05.mma: its thread, the place of its sums, and the interval in which its arrival was first known.
struct TensorProductRecord {
    int32_t thread;
    uint32_t d, descriptor, known = ~0u;
};

// A word of tensor memory: its users, the thread of a tcgen05.st in flight, the number of tcgen05.ld in flight, and the
// last products that write and read it.
struct Cell {
    uint32_t value = ~0u;
    Access writes, reads;
    int32_t storer = kNobody;
    uint32_t loading = 0;
    int32_t writer = kNobody, reader = kNobody;
};

struct Allocation {
    uint32_t column, columns;
    int line;
    uint32_t thread;
};

struct TensorMemory {
    std::vector<Cell> cells;  // of all lanes and columns, none before the first allocation
    std::vector<Allocation> allocations;
    std::vector<TensorProductRecord> products;
    bool may_allocate = true;
};

// A tcgen05.commit yet to arrive at its mbarrier; it covers the thread's products before this number.
struct Commit {
    uint32_t mbarrier;
    int32_t thread;
    uint32_t products;
};

struct Mbarrier {
    uint32_t count, pending, phase;
    std::vector<Commit> arrivals, completed;  // of the current phase, and of earlier ones
};

struct Buffer {
    uint64_t begin, end;
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<WarpGroup> groups;
    std::vector<uint8_t> shared;
    std::vector<Access> writes, reads;  // of each byte of shared memory
    std::vector<Write> last_writes;
    std::vector<int32_t> copiers;         // the thread of a cp.async in flight into a byte of shared memory
    std::vector<uint32_t> products;       // number of products in flight that read a byte of shared memory
    std::vector<int32_t> tensor_readers;  // the last tensor product that reads a byte of shared memory
    std::vector<bool> in_mbarrier;        // whether a byte of shared memory belongs to one
    std::map<uint32_t, Mbarrier> mbarriers;
    std::vector<Commit> commits;
    TensorMemory tensor;
    uint32_t interval = 1;  // incremented by each barrier
    const Buffer* buffers = nullptr;
    size_t buffer_count = 0;
    ucontext_t scheduler;
    Fiber* current = nullptr;
    void (*kernel)(Thread&) = nullptr;
    std::string error;
};

extern Block* block;

void yield();
uint8_t* locate(Thread& thread, int line, Space& space, uint64_t& address, uint32_t size, uint32_t alignment);
bool races(const Access& earlier, const Thread& thread);
void note(Access& access, const Thread& thread);
void check_read(const Thread& thread, int line, uint64_t address, uint32_t size);
void check_write(const Thread& thread, int line, uint64_t address, const uint8_t* data, uint32_t size);
bool release_groups();
bool release_mbarriers();
bool has_arrived(int32_t product, const Thread& thread);  // whether the thread knows of its arrival in tensor memory
void know_arrived(Fiber& fiber, const Commit& commit);
void check_columns_returned();

}  // namespace ptx
