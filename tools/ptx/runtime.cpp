// Scheduler and memory checks: threads of a block run as fibers that switch at barriers and warp exchanges, blocks one
// after another, and every access to memory is checked.
#include "block.h"

#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <new>
#include <numeric>
#include <random>

namespace ptx {

Block* block;

void yield() { swapcontext(&block->current->context, &block->scheduler); }

namespace {

constexpr uint64_t kMaxBranches = 50'000'000;

// Stack of a fiber behind a guard page, which stops a kernel whose registers overflow it.
Stack new_stack() {
    void* const memory = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, size_t(sysconf(_SC_PAGESIZE)), PROT_NONE);
    return Stack(static_cast<char*>(memory));
}

void enter() {
    try {
        block->kernel(block->current->thread);
    } catch (const Fault& fault) {
        block->error = fault.message;
    }
    block->current->state = State::kDone;
    yield();
}

std::string format(const char* text, va_list arguments) {
    char buffer[400];
    vsnprintf(buffer, sizeof buffer, text, arguments);
    return buffer;
}

}  // namespace

// Tell whether an earlier access races with one of `thread`: no barrier or bar.warp.sync of their warp lies between.
bool races(const Access& earlier, const Thread& thread) {
    if (earlier.thread == kNobody || earlier.interval != block->interval || earlier.thread == int32_t(thread.index))
        return false;
    if (earlier.thread == kManyWarps || earlier.warp != thread.warp) return true;
    return earlier.phase == block->warps[thread.warp].phase;
}

void note(Access& access, const Thread& thread) {
    const uint32_t phase = block->warps[thread.warp].phase;
    const bool same_warp = access.thread != kManyWarps && access.warp == thread.warp;
    const bool alone = access.thread == kNobody || access.interval != block->interval ||
                       access.thread == int32_t(thread.index) || (same_warp && access.phase != phase);
    access.thread = alone ? int32_t(thread.index) : same_warp ? kOneWarp : kManyWarps;
    access.warp = thread.warp;
    access.phase = phase;
    access.interval = block->interval;
}

namespace {

void note_write(uint64_t address, const Thread& thread) {
    note(block->writes[address], thread);
    block->last_writes[address] = {int32_t(thread.index), block->interval,
                                   uint32_t(block->current->proxy_fences.size())};
}

}  // namespace

void check_read(const Thread& thread, int line, uint64_t address, uint32_t size) {
    for (uint64_t i = address; i < address + size; ++i) {
        const Access& write = block->writes[i];
        // Threads of one warp that wrote the same value may read it back.
        if (write.thread != kOneWarp || write.warp != thread.warp)
            if (races(write, thread))
                fail(thread, line, "reads shared byte %llu, which another thread writes: no barrier between",
                     (unsigned long long)i);
        note(block->reads[i], thread);
    }
}

// `data` is null if the bytes count as changed in any case.
void check_write(const Thread& thread, int line, uint64_t address, const uint8_t* data, uint32_t size) {
    for (uint64_t i = address; i < address + size; ++i) {
        const bool changes = !data || block->shared[i] != data[i - address];
        if (block->products[i] || !has_arrived(block->tensor_readers[i], thread))
            fail(thread, line, "writes shared byte %llu, which a product under way reads: no wait between",
                 (unsigned long long)i);
        if (changes && (races(block->writes[i], thread) || races(block->reads[i], thread)))
            fail(thread, line, "writes shared byte %llu, which another thread uses: no barrier between",
                 (unsigned long long)i);
        note_write(i, thread);
    }
}

uint8_t* locate(Thread& thread, int line, Space& space, uint64_t& address, uint32_t size, uint32_t alignment) {
    if (space == Space::kGeneric) {
        const bool local = address >= kLocalWindow && address < 2 * kLocalWindow;
        const bool shared = address >= kSharedWindow && address < kLocalWindow;
        space = local ? Space::kLocal : shared ? Space::kShared : Space::kGlobal;
        address -= local ? kLocalWindow : shared ? kSharedWindow : 0;
    }
    if (address % alignment)
        fail(thread, line, "misaligned access of %u bytes at 0x%llx", size, (unsigned long long)address);
    if (space == Space::kGlobal) {
        for (size_t i = 0; i < block->buffer_count; ++i) {
            const Buffer& buffer = block->buffers[i];
            if (address >= buffer.begin && address < buffer.end && size <= buffer.end - address)
                return reinterpret_cast<uint8_t*>(address);
        }
        fail(thread, line, "access of %u bytes at global 0x%llx, outside of every buffer", size,
             (unsigned long long)address);
    }
    const bool local = space == Space::kLocal;
    const uint64_t bytes = local ? thread.local_bytes : block->shared.size();
    if (address > bytes || size > bytes - address)
        fail(thread, line, "access of %u bytes at %llu of %llu bytes of %s memory", size, (unsigned long long)address,
             (unsigned long long)bytes, local ? "local" : "shared");
    if (space == Space::kShared)
        for (uint64_t i = address; i < address + size; ++i) {
            if (block->copiers[i] != kNobody)
                fail(thread, line, "uses shared byte %llu, to which thread %d copies: no wait between",
                     (unsigned long long)i, block->copiers[i]);
            if (block->in_mbarrier[i])
                fail(thread, line, "uses shared byte %llu, which is an mbarrier's", (unsigned long long)i);
        }
    return (local ? thread.local : block->shared.data()) + address;
}

namespace {

bool release_warps() {
    bool released = false;
    for (size_t w = 0; w < block->warps.size(); ++w) {
        const size_t first = 32 * w, count = std::min<size_t>(32, block->fibers.size() - first);
        for (size_t leader = first; leader < first + count; ++leader) {
            const Fiber& one = block->fibers[leader];
            if (one.state != State::kInExchange) continue;
            uint32_t arrived = 0;
            for (size_t i = 0; i < count; ++i) {
                const Fiber& other = block->fibers[first + i];
                if (other.state == State::kInExchange && other.line == one.line && other.mask == one.mask)
                    arrived |= 1u << i;
            }
            const uint32_t present = count == 32 ? ~0u : (1u << count) - 1;
            if (arrived != (one.mask & present)) continue;
            Warp& warp = block->warps[w];
            warp.exchange.mask = arrived;
            if (one.orders) ++warp.phase;
            for (size_t i = 0; i < count; ++i)
                if (arrived >> i & 1) {
                    Fiber& other = block->fibers[first + i];
                    std::copy_n(other.thread.deposit, kDeposit, warp.exchange.words[i]);
                    other.state = State::kReady;
                }
            released = true;
            break;  // a warp has one exchange at a time, which its threads read before the next
        }
    }
    return released;
}

void release_barrier() {
    const Fiber *first = nullptr, *left = nullptr;
    for (Fiber& fiber : block->fibers) {
        if (fiber.state == State::kDone) left = &fiber;
        if (fiber.state == State::kInExchange)
            fail(fiber.thread, fiber.line, "waits for threads of its warp that do not come");
        if (fiber.state == State::kInGroup)
            fail(fiber.thread, fiber.line, "waits for threads of its warp group that do not come");
        if (fiber.state != State::kAtBarrier) continue;
        if (first && (fiber.line != first->line || fiber.id != first->id))
            fail(fiber.thread, fiber.line, "divergent barrier: thread %u waits at line %d", first->thread.index,
                 first->line);
        if (!first) first = &fiber;
    }
    if (left) fail(first->thread, first->line, "divergent barrier: thread %u has left", left->thread.index);
    ++block->interval;
    for (Fiber& fiber : block->fibers) fiber.state = State::kReady;
}

enum class Order { kForward, kReverse, kRandom };

void run_block(Order order, std::mt19937& random) {
    std::vector<size_t> turns(block->fibers.size());
    std::iota(turns.begin(), turns.end(), size_t(0));
    if (order == Order::kReverse) std::reverse(turns.begin(), turns.end());
    for (;;) {
        if (order == Order::kRandom) std::shuffle(turns.begin(), turns.end(), random);
        for (size_t turn : turns) {
            Fiber& fiber = block->fibers[turn];
            if (fiber.state != State::kReady) continue;
            block->current = &fiber;
            swapcontext(&block->scheduler, &fiber.context);
            if (!block->error.empty()) throw Fault{block->error};
        }
        if (release_warps() | release_groups()) continue;
        if (release_mbarriers()) continue;
        const auto done = [](const Fiber& fiber) { return fiber.state == State::kDone; };
        if (std::all_of(block->fibers.begin(), block->fibers.end(), done)) return check_columns_returned();
        release_barrier();
    }
}

}  // namespace

void fail(const Thread& thread, int line, const char* text, ...) {
    va_list arguments;
    va_start(arguments, text);
    const std::string what = format(text, arguments);
    va_end(arguments);
    throw Fault{"line " + std::to_string(line) + ", block (" + std::to_string(thread.ctaid.x) + ", " +
                std::to_string(thread.ctaid.y) + ", " + std::to_string(thread.ctaid.z) + "), thread " +
                std::to_string(thread.index) + ": " + what};
}

void load(Thread& thread, int line, Space space, uint64_t address, void* data, uint32_t size) {
    const uint8_t* from = locate(thread, line, space, address, size, size);
    if (space == Space::kShared) check_read(thread, line, address, size);
    std::memcpy(data, from, size);
}

void store(Thread& thread, int line, Space space, uint64_t address, const void* data, uint32_t size) {
    uint8_t* to = locate(thread, line, space, address, size, size);
    if (space == Space::kShared) check_write(thread, line, address, static_cast<const uint8_t*>(data), size);
    std::memcpy(to, data, size);
}

void load_atomic(Thread& thread, int line, Space space, uint64_t address, void* data, uint32_t size) {
    std::memcpy(data, locate(thread, line, space, address, size, size), size);
}

void store_atomic(Thread& thread, int line, Space space, uint64_t address, const void* data, uint32_t size) {
    std::memcpy(locate(thread, line, space, address, size, size), data, size);
}

// The bytes arrive as late as possible, at this thread's wait; until then no thread may access them.
void start_copy(Thread& thread, int line, uint64_t to, uint64_t from, uint32_t size, uint32_t from_size) {
    if (from_size > size) fail(thread, line, "copies %u bytes of %u", from_size, size);
    Space shared = Space::kShared, global = Space::kGlobal;
    uint8_t* target = locate(thread, line, shared, to, size, size);
    Copy copy{to, nullptr, size, from_size, block->current->groups, {}};
    if (from_size) {
        copy.from = locate(thread, line, global, from, from_size, size);
        std::memcpy(copy.data, copy.from, from_size);
    }
    check_write(thread, line, to, nullptr, size);
    std::memset(target, 0xFF, size);
    std::fill_n(block->copiers.begin() + to, size, int32_t(thread.index));
    block->current->copies.push_back(copy);
}

void commit_copies(Thread&) { ++block->current->groups; }

void wait_for_copies(Thread& thread, int line, uint32_t newest) {
    Fiber& fiber = *block->current;
    const auto waits = [&](const Copy& copy) { return uint64_t(copy.group) + newest >= fiber.groups; };
    for (const Copy& copy : fiber.copies) {
        if (waits(copy)) continue;
        if (copy.from_size && std::memcmp(copy.from, copy.data, copy.from_size))
            fail(thread, line, "waits for a copy whose source has changed since it was started");
        std::memcpy(block->shared.data() + copy.to, copy.data, copy.size);
        for (uint64_t i = copy.to; i < copy.to + copy.size; ++i) {
            block->copiers[i] = kNobody;
            note_write(i, thread);
        }
    }
    auto& copies = fiber.copies;
    copies.erase(std::stable_partition(copies.begin(), copies.end(), waits), copies.end());
}

void barrier(Thread&, int line, uint32_t id) {
    Fiber& fiber = *block->current;
    fiber.state = State::kAtBarrier;
    fiber.line = line;
    fiber.id = id;
    yield();
}

const Exchange& exchange(Thread& thread, int line, uint32_t mask, bool orders) {
    if (!(mask >> thread.lane & 1)) fail(thread, line, "a lane that is not in its own mask 0x%x", mask);
    Fiber& fiber = *block->current;
    fiber.state = State::kInExchange;
    fiber.line = line;
    fiber.mask = mask;
    fiber.orders = orders;
    yield();
    return block->warps[thread.warp].exchange;
}

void count_branch(Thread& thread, int line) {
    if (++thread.branches > kMaxBranches) fail(thread, line, "a loop that does not end");
}

// Return 0, or 1 with the reason in `message` (400 bytes).
extern "C" int ptx_launch(void (*kernel)(Thread&), const uint32_t* grid, const uint32_t* shape,
                          const uint8_t* parameters, uint32_t parameter_bytes, uint32_t shared_bytes,
                          const Buffer* buffers, uint64_t buffer_count, int order, uint32_t seed, char* message) {
    Block here;
    block = &here;
    const size_t threads = size_t(shape[0]) * shape[1] * shape[2];
    here.kernel = kernel;
    here.buffers = buffers;
    here.buffer_count = buffer_count;
    here.fibers.resize(threads);
    here.warps.resize((threads + 31) / 32);
    for (Fiber& fiber : here.fibers) fiber.stack = new_stack();
    std::mt19937 random(seed);
    try {
        for (uint32_t z = 0; z < grid[2]; ++z)
            for (uint32_t y = 0; y < grid[1]; ++y)
                for (uint32_t x = 0; x < grid[0]; ++x) {
                    here.shared.assign(shared_bytes, 0xFF);  // NaNs, so that unwritten memory shows in results
                    here.writes.assign(shared_bytes, {});
                    here.reads.assign(shared_bytes, {});
                    here.last_writes.assign(shared_bytes, {});
                    here.copiers.assign(shared_bytes, kNobody);
                    here.products.assign(shared_bytes, 0);
                    here.tensor_readers.assign(shared_bytes, kNobody);
                    here.in_mbarrier.assign(shared_bytes, false);
                    here.mbarriers.clear();
                    here.commits.clear();
                    here.tensor = {};
                    here.groups.assign(threads / kGroupThreads + 1, {});
                    for (Warp& warp : here.warps) warp.phase = 0;
                    for (uint32_t i = 0; i < threads; ++i) {
                        Fiber& fiber = here.fibers[i];
                        fiber.thread = {};
                        fiber.thread.tid = {i % shape[0], i / shape[0] % shape[1], i / shape[0] / shape[1]};
                        fiber.thread.ntid = {shape[0], shape[1], shape[2]};
                        fiber.thread.ctaid = {x, y, z};
                        fiber.thread.nctaid = {grid[0], grid[1], grid[2]};
                        fiber.thread.index = i;
                        fiber.thread.lane = i % 32;
                        fiber.thread.warp = i / 32;
                        fiber.thread.parameters = parameters;
                        fiber.thread.parameter_bytes = parameter_bytes;
                        fiber.copies.clear();
                        fiber.groups = 0;
                        fiber.touched.clear();
                        fiber.proxy_fences.clear();
                        fiber.has_tried = false;
                        fiber.arrived.clear();
                        fiber.loads.clear();
                        fiber.stores.clear();
                        fiber.state = State::kReady;
                        getcontext(&fiber.context);
                        fiber.context.uc_stack.ss_sp = fiber.stack.get();
                        fiber.context.uc_stack.ss_size = kStack;
                        fiber.context.uc_link = nullptr;
                        makecontext(&fiber.context, enter, 0);
                    }
                    run_block(static_cast<Order>(order), random);
                }
    } catch (const Fault& fault) {
        snprintf(message, 400, "%s", fault.message.c_str());
        return 1;
    }
    return 0;
}

}  // namespace ptx
