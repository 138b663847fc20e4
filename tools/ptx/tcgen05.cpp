// Tensor memory and its products (tcgen05). All are asynchronous and arrive as late as possible: loads and stores when
// their thread waits for them, products when a thread has waited for the mbarrier that their commit arrives at, and for
// other threads at the barrier after that.
#include <algorithm>

#include "matrix.h"

namespace ptx {
namespace {

constexpr uint32_t kLanes = 128, kColumns = 512, kUnit = 32;  // allocation granularity in columns
constexpr uint32_t kRows = 64;                                // rows of a product, 16 of them to a warp's 32 lanes

bool is_allocated(uint32_t column) {
    const auto& all = block->tensor.allocations;
    return std::any_of(all.begin(), all.end(), [&](const Allocation& x) { return column - x.column < x.columns; });
}

uint32_t index_of(const Thread& thread, int line, uint32_t lane, uint32_t column) {
    if (lane >= kLanes || !is_allocated(column))
        fail(thread, line, "uses lane %u, column %u of tensor memory, which is not allocated", lane, column);
    return lane * kColumns + column;
}

// Return a cell that a thread reads or writes, itself or by a product that it starts.
Cell& check_use(const Thread& thread, int line, uint32_t index, bool writes) {
    Cell& cell = block->tensor.cells[index];
    const uint32_t lane = index / kColumns, column = index % kColumns;
    if (cell.storer != kNobody)
        fail(thread, line, "uses lane %u, column %u of tensor memory, to which thread %d stores: no wait between", lane,
             column, cell.storer);
    if (races(cell.writes, thread) || (writes && races(cell.reads, thread)))
        fail(thread, line, "uses lane %u, column %u of tensor memory, as another thread does: no barrier between", lane,
             column);
    if (writes && cell.loading)
        fail(thread, line, "writes lane %u, column %u of tensor memory, which is loaded: no wait between", lane,
             column);
    return cell;
}

void check_products(const Thread& thread, int line, uint32_t index, bool writes) {
    const Cell& cell = block->tensor.cells[index];
    if (!has_arrived(cell.writer, thread) || (writes && !has_arrived(cell.reader, thread)))
        fail(thread, line, "uses lane %u, column %u of tensor memory, as a product under way does: no wait between",
             index / kColumns, index % kColumns);
}

// Wait for all lanes of a warp, which give the same two words.
void gather_warp(Thread& thread, int line, uint32_t first, uint32_t second) {
    thread.deposit[0] = first;
    thread.deposit[1] = second;
    const Exchange& all = exchange(thread, line, ~0u);
    if (all.mask != ~0u) fail(thread, line, "needs all lanes of a warp");
    for (const auto& words : all.words)
        if (words[0] != first || words[1] != second) fail(thread, line, "has other operands than its warp");
}

// Call `use(cell, i)` for each of a lane's words in shape 16x32bx2: 16 lanes of tensor memory, the upper half of the
// warp `second` columns further.
template <class Use>
void for_each_cell(Thread& thread, int line, uint32_t address, uint32_t second, uint32_t count, Use use) {
    gather_warp(thread, line, address, second);
    const uint32_t lane = address >> 16, first = thread.warp % 4 * 32;
    if (lane != first && lane != first + 16)
        fail(thread, line, "reaches for lane %u of tensor memory, its warp has those from %u on", lane, first);
    const uint32_t column = (address & 0xFFFF) + thread.lane / 16 * second;
    for (uint32_t i = 0; i < count; ++i) use(index_of(thread, line, lane + thread.lane % 16, column + i), i);
}

// A product's shape and layouts, as its instruction descriptor has them.
struct Shape {
    uint32_t n;
    bool a_transposed, b_transposed;

    Shape(const Thread& thread, int line, bool is_bf16, uint32_t descriptor)
        : n((descriptor >> 17 & 63) * 8), a_transposed(descriptor >> 15 & 1), b_transposed(descriptor >> 16 & 1) {
        const uint32_t type = is_bf16 ? 1 : 2, shape_and_layouts = 63u << 17 | 31u << 24 | 3u << 15;
        if ((descriptor & ~shape_and_layouts) != (1u << 4 | type << 7 | type << 10))
            fail(thread, line, "an instruction descriptor of other types or with unknown bits: 0x%x", descriptor);
        const uint32_t m = (descriptor >> 24 & 31) * 16;
        if (m != kRows || !n || n > 256) fail(thread, line, "a product of %u rows and %u columns", m, n);
        if (!is_bf16 && (a_transposed || b_transposed)) fail(thread, line, "a transposed operand of 32 bits");
    }
};

uint32_t cell_of_row(const Thread& thread, int line, uint32_t address, uint32_t row, uint32_t column) {
    return index_of(thread, line, (address >> 16) + row / 16 * 32 + row % 16, (address & 0xFFFF) + column);
}

// A of tensor memory: a row's words one after the other, the first of a pair of bf16 in the lower half.
std::vector<float> read_cells(Thread& thread, int line, uint32_t address, bool is_bf16, int32_t product) {
    const uint32_t pack = is_bf16 ? 2 : 1, k = 8 * pack;
    std::vector<float> result(kRows * k);
    for (uint32_t row = 0; row < kRows; ++row)
        for (uint32_t word = 0; word < 8; ++word) {
            const uint32_t index = cell_of_row(thread, line, address, row, word);
            Cell& cell = check_use(thread, line, index, false);
            check_products(thread, line, index, false);
            cell.reader = product;
            for (uint32_t half = 0; half < pack; ++half)
                result[row * k + word * pack + half] =
                    is_bf16 ? operand_at<Bf16>(cell.value, half) : operand_at<float>(cell.value, half);
        }
    return result;
}

std::vector<float> read_shared(Thread& thread, int line, uint64_t descriptor, uint32_t rows, bool transposed,
                               bool is_bf16, int32_t product) {
    const Matrix matrix(thread, line, descriptor, transposed, 1ull << 46);
    std::vector<uint32_t> reading;
    auto result = read(thread, line, matrix, rows, is_bf16, last_proxy_fence(block->current, 1), reading);
    for (uint32_t address : reading) std::fill_n(block->tensor_readers.begin() + address, 16, product);
    return result;
}

}  // namespace

bool has_arrived(int32_t product, const Thread& thread) {
    if (product == kNobody) return true;
    const TensorProductRecord& record = block->tensor.products[product];
    const auto& arrived = block->fibers[thread.index].arrived;
    const auto found = arrived.find(record.thread);
    return record.known < block->interval || (found != arrived.end() && uint32_t(product) < found->second);
}

void know_arrived(Fiber& fiber, const Commit& commit) {
    uint32_t& known = fiber.arrived[commit.thread];
    for (; known < commit.products; ++known) {
        TensorProductRecord& record = block->tensor.products[known];
        if (record.thread == commit.thread) record.known = std::min(record.known, block->interval);
    }
}

// Columns are allocated from the end, so that code relying on address 0 fails.
void allocate_columns(Thread& thread, int line, uint64_t to, uint32_t columns) {
    gather_warp(thread, line, uint32_t(to), columns);
    if (thread.lane) return;
    TensorMemory& memory = block->tensor;
    if (!memory.may_allocate) fail(thread, line, "allocates after tcgen05.relinquish_alloc_permit");
    if (columns < kUnit || columns > kColumns || columns & (columns - 1))
        fail(thread, line, "allocates %u columns", columns);
    const auto is_free = [&](uint32_t from) {
        for (uint32_t column = from; column < from + columns; column += kUnit)
            if (is_allocated(column)) return false;
        return true;
    };
    int32_t at = int32_t(kColumns - columns);
    while (at >= 0 && !is_free(at)) at -= int32_t(kUnit);
    if (at < 0) fail(thread, line, "waits for %u columns of tensor memory, which are not free", columns);
    memory.cells.resize(kLanes * kColumns);
    memory.allocations.push_back({uint32_t(at), columns, line, thread.index});
    store(thread, line, Space::kShared, to, &at, 4);
}

void return_columns(Thread& thread, int line, uint32_t address, uint32_t columns) {
    gather_warp(thread, line, address, columns);
    if (thread.lane) return;
    auto& all = block->tensor.allocations;
    const auto found = std::find_if(all.begin(), all.end(),
                                    [&](const Allocation& x) { return x.column == address && x.columns == columns; });
    if (found == all.end()) fail(thread, line, "returns columns of tensor memory that were not allocated so");
    for (uint32_t lane = 0; lane < kLanes; ++lane)
        for (uint32_t column = address; column < address + columns; ++column) {
            check_products(thread, line, lane * kColumns + column, true);
            check_use(thread, line, lane * kColumns + column, true) = {};
        }
    all.erase(found);
}

void end_allocations(Thread& thread, int line) {
    gather_warp(thread, line, 0, 0);
    block->tensor.may_allocate = false;
}

void check_columns_returned() {
    for (const Allocation& x : block->tensor.allocations)
        fail(block->fibers[x.thread].thread, x.line, "allocates %u columns of tensor memory that nobody returns",
             x.columns);
}

void load_cells(Thread& thread, int line, uint32_t address, uint32_t second, uint32_t* const* to, uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) touch_loaded(thread, line, to[i]);
    for_each_cell(thread, line, address, second, count, [&](uint32_t index, uint32_t i) {
        check_products(thread, line, index, false);
        ++check_use(thread, line, index, false).loading;
        block->current->loads.push_back({to[i], index});
    });
}

void store_cells(Thread& thread, int line, uint32_t address, uint32_t second, const uint32_t* from, uint32_t count) {
    for_each_cell(thread, line, address, second, count, [&](uint32_t index, uint32_t i) {
        check_products(thread, line, index, true);
        check_use(thread, line, index, true).storer = int32_t(thread.index);
        block->current->stores.push_back({index, from[i]});
    });
}

void wait_for_loads(Thread& thread, int line) {
    gather_warp(thread, line, 0, 0);
    auto& loads = block->current->loads;
    for (const CellLoad& load : loads) {
        Cell& cell = block->tensor.cells[load.cell];
        --cell.loading;
        *load.to = cell.value;
        note(cell.reads, thread);
    }
    loads.clear();
}

void wait_for_stores(Thread& thread, int line) {
    gather_warp(thread, line, 0, 0);
    auto& stores = block->current->stores;
    for (const CellStore& store : stores) {
        Cell& cell = block->tensor.cells[store.cell];
        cell.value = store.value;
        cell.storer = cell.writer = cell.reader = kNobody;
        note(cell.writes, thread);
    }
    stores.clear();
}

void touch_loaded(Thread& thread, int line, const void* of) {
    for (const CellLoad& load : block->current->loads)
        if (load.to == of) fail(thread, line, "uses a register that tcgen05.ld loads: no tcgen05.wait::ld between");
}

// D (64, n) = A (64, k) B (k, n) + D, k of 32 bytes; rows 16 i to 16 i + 15 of D, and of A in tensor memory, have 16 of
// the 32 lanes of warp i. Products of one thread with the same D and shape follow one another. Exact products, one
// float sum.
void start_tensor_product(Thread& thread, int line, const TensorProduct& product) {
    const Shape shape(thread, line, product.is_bf16, product.descriptor);
    const auto is_aligned = [](uint64_t address) { return (address >> 16) == 0 || (address >> 16) == 16; };
    if (!is_aligned(product.d) ||
        (product.a_in_tensor_memory && (product.a >> 16 != product.d >> 16 || shape.a_transposed)))
        fail(thread, line, "other lanes of tensor memory than a product of 64 rows has");
    auto& products = block->tensor.products;
    const int32_t self = int32_t(products.size());
    const auto a = product.a_in_tensor_memory
                       ? read_cells(thread, line, uint32_t(product.a), product.is_bf16, self)
                       : read_shared(thread, line, product.a, kRows, shape.a_transposed, product.is_bf16, self);
    const auto b = read_shared(thread, line, product.b, shape.n, shape.b_transposed, product.is_bf16, self);
    products.push_back({int32_t(thread.index), product.d, product.descriptor});
    const auto follows = [&](const Cell& cell) {
        if (cell.writer == kNobody || cell.reader == self) return false;
        const TensorProductRecord& before = products[cell.writer];
        return before.thread == int32_t(thread.index) && before.d == product.d &&
               before.descriptor == product.descriptor && has_arrived(cell.reader, thread);
    };
    const uint32_t k = product.is_bf16 ? 16 : 8;
    for (uint32_t row = 0; row < kRows; ++row)
        for (uint32_t column = 0; column < shape.n; ++column) {
            const uint32_t index = cell_of_row(thread, line, product.d, row, column);
            Cell& cell = check_use(thread, line, index, true);
            if (!follows(cell)) check_products(thread, line, index, true);
            double sum = product.accumulates ? reinterpret<float>(cell.value) : 0;
            for (uint32_t l = 0; l < k; ++l) sum += double(a[row * k + l]) * b[column * k + l];
            cell.value = reinterpret<uint32_t>(float(sum));
            cell.writer = self;
        }
}

}  // namespace ptx
