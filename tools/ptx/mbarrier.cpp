// Barriers in shared memory (mbarrier), at which products in tensor memory arrive: as late as they may, when no thread
// can go on without.
#include <algorithm>

#include "block.h"

namespace ptx {
namespace {

// Return the mbarrier, which another thread may have initialised before a barrier.
Mbarrier& find(const Thread& thread, int line, uint64_t address) {
    const auto found = block->mbarriers.find(uint32_t(address));
    if (address > ~0u || found == block->mbarriers.end())
        fail(thread, line, "no mbarrier was initialised at shared %llu", (unsigned long long)address);
    check_read(thread, line, address, 8);
    return found->second;
}

bool is_complete(const Mbarrier& mbarrier, uint32_t parity) { return (mbarrier.phase & 1) != parity; }

void arrive(const Commit& commit) {
    Mbarrier& mbarrier = block->mbarriers.at(commit.mbarrier);
    mbarrier.arrivals.push_back(commit);
    if (--mbarrier.pending) return;
    mbarrier.completed.insert(mbarrier.completed.end(), mbarrier.arrivals.begin(), mbarrier.arrivals.end());
    mbarrier.arrivals.clear();
    mbarrier.pending = mbarrier.count;
    ++mbarrier.phase;
}

bool is_waited_for(uint32_t address) {
    const auto waits = [&](const Fiber& x) { return x.state == State::kAtMbarrier && x.mbarrier == address; };
    return std::any_of(block->fibers.begin(), block->fibers.end(), waits);
}

}  // namespace

bool release_mbarriers() {
    const Fiber* waiting = nullptr;
    bool released = false;
    for (Fiber& fiber : block->fibers) {
        if (fiber.state != State::kAtMbarrier) continue;
        waiting = &fiber;
        if (!is_complete(block->mbarriers.at(fiber.mbarrier), fiber.parity)) continue;
        fiber.state = State::kReady;
        released = true;
    }
    if (released || !waiting) return released;
    auto& commits = block->commits;
    const auto next = std::find_if(commits.begin(), commits.end(),
                                   [](const Commit& commit) { return is_waited_for(commit.mbarrier); });
    if (next == commits.end())
        fail(waiting->thread, waiting->line, "waits for a phase of the mbarrier at %u that does not complete",
             waiting->mbarrier);
    arrive(*next);
    commits.erase(next);
    return true;
}

void start_mbarrier(Thread& thread, int line, uint64_t address, uint32_t count) {
    Space space = Space::kShared;
    locate(thread, line, space, address, 8, 8);
    if (!count || count >= 1u << 20) fail(thread, line, "an mbarrier of %u arrivals", count);
    check_write(thread, line, address, nullptr, 8);
    block->mbarriers[uint32_t(address)] = {count, count, 0, {}, {}};
    std::fill_n(block->in_mbarrier.begin() + address, 8, true);
}

void end_mbarrier(Thread& thread, int line, uint64_t address) {
    find(thread, line, address);
    const auto arrives = [&](const Commit& commit) { return commit.mbarrier == address; };
    if (is_waited_for(uint32_t(address)) || std::any_of(block->commits.begin(), block->commits.end(), arrives))
        fail(thread, line, "invalidates an mbarrier that is waited for or arrived at");
    check_write(thread, line, address, nullptr, 8);
    block->mbarriers.erase(uint32_t(address));
    std::fill_n(block->in_mbarrier.begin() + address, 8, false);
    std::memset(block->shared.data() + address, 0xFF, 8);
}

// An attempt may end before the phase does; the first attempt always does.
bool try_wait(Thread& thread, int line, uint64_t address, uint32_t parity) {
    Fiber& fiber = *block->current;
    if (parity > 1) fail(thread, line, "waits for a phase of parity %u", parity);
    const Mbarrier& mbarrier = find(thread, line, address);
    if (!is_complete(mbarrier, parity)) {
        if (!fiber.has_tried) {
            fiber.has_tried = true;
            return false;
        }
        fiber.state = State::kAtMbarrier;
        fiber.line = line;
        fiber.mbarrier = uint32_t(address);
        fiber.parity = parity;
        yield();
    }
    fiber.has_tried = false;
    for (const Commit& commit : mbarrier.completed) know_arrived(fiber, commit);
    return true;
}

void commit_tensor_products(Thread& thread, int line, uint64_t mbarrier) {
    find(thread, line, mbarrier);
    block->commits.push_back({uint32_t(mbarrier), int32_t(thread.index), uint32_t(block->tensor.products.size())});
}

}  // namespace ptx
