// Asynchronous matrix products of warp groups (wgmma): results arrive as late as possible, at the group's wait; until
// then no instruction may use their registers or change the shared memory that they read.
#include <algorithm>

#include "block.h"
#include "matrix.h"

namespace ptx {
namespace {

// A in the group's registers: 16 rows a warp, with the lane layout of `mma`.
std::vector<float> read_registers(WarpGroup& group, Fiber* fibers, bool is_bf16) {
    const uint32_t pack = is_bf16 ? 2 : 1, k = 8 * pack;
    std::vector<float> result(64 * k);
    for (uint32_t i = 0; i < kGroupThreads; ++i) {
        const Fiber& fiber = fibers[i];
        for (uint32_t word = 0; word < 4; ++word) {
            const uint32_t* from = fiber.product->a[word];
            const auto held = group.held.find(from);
            if (held != group.held.end() && held->second.is_result)
                fail(fiber.thread, fiber.line, "takes as A what a product under way gives: no wait between");
            if (fiber.touched.count(from))
                fail(fiber.thread, fiber.line, "takes a register as A that was used with no wgmma.fence after");
            group.held[from] = {false, 0, 0, group.groups, group.fences};
            const uint32_t row = i / 32 * 16 + i % 32 / 4 + word % 2 * 8, column = (i % 4 + word / 2 * 4) * pack;
            for (uint32_t half = 0; half < pack; ++half)
                result[row * k + column + half] =
                    is_bf16 ? operand_at<Bf16>(*from, half) : operand_at<float>(*from, half);
        }
    }
    return result;
}

bool is_same(const Product& a, const Product& b) {
    return a.is_bf16 == b.is_bf16 && a.n == b.n && !a.a == !b.a && a.b_descriptor == b.b_descriptor &&
           (a.a || a.a_descriptor == b.a_descriptor) && a.accumulates == b.accumulates && a.sign == b.sign &&
           a.a_transposed == b.a_transposed && a.b_transposed == b.b_transposed;
}

// D (64, n) = A (64, k) B (k, n) + D, k of 32 bytes. A warp has 16 rows of D; register i of a lane is at row
// lane / 4 + i / 2 % 2 * 8 and column i / 4 * 8 + lane % 4 * 2 + i % 2. Exact products, one float sum.
void multiply(WarpGroup& group, Fiber* fibers) {
    const Product& product = *fibers[0].product;
    const int line = fibers[0].line;
    for (size_t i = 1; i < kGroupThreads; ++i)
        if (!is_same(product, *fibers[i].product))
            fail(fibers[i].thread, line, "has another product than thread %u of its warp group",
                 fibers[0].thread.index);
    if (!group.fences) fail(fibers[0].thread, line, "a product with no wgmma.fence before");
    const uint32_t k = product.is_bf16 ? 16 : 8, n = product.n, shape = n << 1 | product.is_bf16;
    std::vector<uint32_t> reading;
    const uint32_t fenced = last_proxy_fence(fibers, kGroupThreads);
    const auto in_memory = [&](uint64_t descriptor, uint32_t rows, bool transposed) {
        const Matrix matrix(fibers[0].thread, line, descriptor, transposed);
        return read(fibers[0].thread, line, matrix, rows, product.is_bf16, fenced, reading);
    };
    const auto a = product.a ? read_registers(group, fibers, product.is_bf16)
                             : in_memory(product.a_descriptor, 64, product.a_transposed);
    const auto b = in_memory(product.b_descriptor, n, product.b_transposed);
    for (uint32_t i = 0; i < kGroupThreads; ++i)
        for (uint32_t j = 0; j < n / 2; ++j) {
            const Fiber& fiber = fibers[i];
            uint32_t* to = fiber.product->d[j];
            const auto found = group.held.find(to);
            const Held* held = found == group.held.end() ? nullptr : &found->second;
            if (fiber.touched.count(to))
                fail(fiber.thread, line, "adds to a register that was used with no wgmma.fence after");
            if (held && (!held->is_result || (held->shape != shape && held->fences == group.fences)))
                fail(fiber.thread, line, "adds to a register of another product under way");
            const uint32_t row = i / 32 * 16 + i % 32 / 4 + j / 2 % 2 * 8, column = j / 4 * 8 + i % 4 * 2 + j % 2;
            double sum = 0;
            for (uint32_t l = 0; l < k; ++l) sum += double(a[row * k + l]) * b[column * k + l];
            sum *= product.sign;
            if (product.accumulates) sum += reinterpret<float>(held ? held->value : *to);
            group.held[to] = {true, reinterpret<uint32_t>(float(sum)), shape, group.groups, group.fences};
            *to = ~0u;
        }
    for (uint32_t address : reading)
        for (uint32_t byte = address; byte < address + 16; ++byte) ++block->products[byte];
    group.readings.emplace_back(group.groups, std::move(reading));
}

// Finish all groups of products but the newest.
void finish(WarpGroup& group, uint32_t newest) {
    const auto is_done = [&](uint32_t of) { return uint64_t(of) + newest < group.groups; };
    for (auto item = group.held.begin(); item != group.held.end();) {
        const Held& held = item->second;
        if (!is_done(held.group)) {
            ++item;
            continue;
        }
        if (held.is_result) *static_cast<uint32_t*>(const_cast<void*>(item->first)) = held.value;
        item = group.held.erase(item);
    }
    auto& readings = group.readings;
    for (const auto& [of, addresses] : readings)
        if (is_done(of))
            for (uint32_t address : addresses)
                for (uint32_t byte = address; byte < address + 16; ++byte) {
                    --block->products[byte];
                    block->reads[byte] = {kManyWarps, 0, 0, block->interval};  // the group's warps read until now
                }
    readings.erase(std::remove_if(readings.begin(), readings.end(), [&](const auto& x) { return is_done(x.first); }),
                   readings.end());
}

void gather(Thread& thread, int line, GroupStep step) {
    Fiber& fiber = *block->current;
    if ((thread.index / kGroupThreads + 1) * kGroupThreads > block->fibers.size())
        fail(thread, line, "a warp group has %zu threads, the block %zu", kGroupThreads, block->fibers.size());
    fiber.state = State::kInGroup;
    fiber.line = line;
    fiber.step = step;
    yield();
}

}  // namespace

bool release_groups() {
    bool released = false;
    for (size_t g = 0; g < block->fibers.size() / kGroupThreads; ++g) {
        Fiber* fibers = &block->fibers[g * kGroupThreads];
        const auto has_come = [&](const Fiber& x) { return x.state == State::kInGroup && x.line == fibers[0].line; };
        if (!std::all_of(fibers, fibers + kGroupThreads, has_come)) continue;
        WarpGroup& group = block->groups[g];
        if (fibers[0].step == GroupStep::kMultiply) multiply(group, fibers);
        if (fibers[0].step == GroupStep::kCommit) ++group.groups;
        if (fibers[0].step == GroupStep::kWait) finish(group, fibers[0].newest);
        if (fibers[0].step == GroupStep::kFence) {
            ++group.fences;
            for (size_t i = 0; i < kGroupThreads; ++i) fibers[i].touched.clear();
        }
        for (size_t i = 0; i < kGroupThreads; ++i) fibers[i].state = State::kReady;
        released = true;
    }
    return released;
}

void start_product(Thread& thread, int line, const Product& product) {
    block->current->product = &product;
    gather(thread, line, GroupStep::kMultiply);
}

void fence_products(Thread& thread, int line) { gather(thread, line, GroupStep::kFence); }

void commit_products(Thread& thread, int line) { gather(thread, line, GroupStep::kCommit); }

void wait_for_products(Thread& thread, int line, uint32_t newest) {
    block->current->newest = newest;
    gather(thread, line, GroupStep::kWait);
}

void fence_proxy(Thread&) { block->current->proxy_fences.push_back(block->interval); }

void touch(Thread& thread, int line, const void* of) {
    if (block->groups[thread.index / kGroupThreads].held.count(of))
        fail(thread, line, "uses a register of a product under way: no wait between");
    block->current->touched.insert(of);
}

}  // namespace ptx
