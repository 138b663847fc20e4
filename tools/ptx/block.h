// A block that runs: its threads as fibers, its memory with who uses each byte, what is under way.
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

// A cp.async that its thread has not waited for; `data` are what the source held when it was started.
struct Copy {
    uint64_t to;
    const uint8_t* from;
    uint32_t size, from_size, group;
    uint8_t data[16];
};

// A tcgen05.ld or tcgen05.st of one word that its thread has not waited for: of the cell of tensor memory.
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
    bool has_tried;                           // its mbarrier.try_wait has returned false
    std::map<int32_t, uint32_t> arrived;  // by thread: its tensor products before this one are known to have arrived
    std::vector<CellLoad> loads;
    std::vector<CellStore> stores;
};

struct Warp {
    Exchange exchange;
    uint32_t phase;  // grows with each bar.warp.sync, which orders the accesses of the warp's threads; shuffles do not
};

// A register of a product under way: of its result, which is `value` when it arrives, or of its operand A.
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

// The last write of a byte other than by a product, and how many fence.proxy.async its thread had executed.
struct Write {
    int32_t thread = kNobody;
    uint32_t interval = 0, proxy_fences = 0;
};

// A tcgen05.mma: the thread that started it, where its sums are, and the interval in which a thread first knew that it
// had arrived.
struct TensorProductRecord {
    int32_t thread;
    uint32_t d, descriptor, known = ~0u;
};

// A word of tensor memory: who uses it, the thread whose tcgen05.st is under way, how many tcgen05.ld are, and the last
// products that write and read it.
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

// A tcgen05.commit that has not arrived at its mbarrier: of the thread's products before this one.
struct Commit {
    uint32_t mbarrier;
    int32_t thread;
    uint32_t products;
};

struct Mbarrier {
    uint32_t count, pending, phase;
    std::vector<Commit> arrivals, completed;  // of the phase that runs, and of those before
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
    std::vector<int32_t> copiers;         // the thread whose cp.async into a byte of shared memory is under way
    std::vector<uint32_t> products;       // how many products under way read a byte of shared memory
    std::vector<int32_t> tensor_readers;  // the last tensor product that reads a byte of shared memory
    std::vector<bool> in_mbarrier;        // whether a byte of shared memory is
    std::map<uint32_t, Mbarrier> mbarriers;
    std::vector<Commit> commits;
    TensorMemory tensor;
    uint32_t interval = 1;  // grows with each barrier
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
bool has_arrived(int32_t product, const Thread& thread);  // in tensor memory, as the thread knows
void know_arrived(Fiber& fiber, const Commit& commit);
void check_columns_returned();

}  // namespace ptx
