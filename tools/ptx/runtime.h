// Runtime of translated kernels: a thread's state, checked memory, barriers, and PTX arithmetic where C++ differs
// (wrapping, shifts beyond the width, NaNs, saturation).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <type_traits>

namespace ptx {

struct Dim {
    uint32_t x, y, z;
};

enum class Space { kGeneric, kGlobal, kShared, kLocal };

constexpr uint64_t kSharedWindow = 1ull << 48;  // generic addresses: beyond the host's
constexpr uint64_t kLocalWindow = 1ull << 49;
constexpr int kDeposit = 10;  // words that a thread exchanges with its warp at once, at most: a matrix product's

struct Thread {
    Dim tid, ntid, ctaid, nctaid;
    uint32_t index, lane, warp;
    const uint8_t* parameters;
    uint32_t parameter_bytes;
    uint8_t* local;
    uint32_t local_bytes;
    uint64_t branches;
    uint32_t deposit[kDeposit];
};

// A thread's part of a warp-group product; `a` is null if A is in shared memory.
struct Product {
    bool is_bf16;
    uint32_t n;
    uint32_t* const* d;
    const uint32_t* const* a;
    uint64_t a_descriptor, b_descriptor;
    bool accumulates;
    int sign;
    bool a_transposed, b_transposed;
};

// A tcgen05.mma: `d` is an address in tensor memory; `a` is one, too, or a shared-memory descriptor like `b`.
struct TensorProduct {
    bool is_bf16, a_in_tensor_memory;
    uint32_t d;
    uint64_t a, b;
    uint32_t descriptor;
    bool accumulates;
};

// Words that the threads of a warp deposit at a common instruction.
struct Exchange {
    uint32_t mask;
    uint32_t words[32][kDeposit];
};

[[noreturn]] void fail(const Thread& thread, int line, const char* format, ...);
void load(Thread& thread, int line, Space space, uint64_t address, void* data, uint32_t size);
void store(Thread& thread, int line, Space space, uint64_t address, const void* data, uint32_t size);
void load_atomic(Thread& thread, int line, Space space, uint64_t address, void* data, uint32_t size);
void store_atomic(Thread& thread, int line, Space space, uint64_t address, const void* data, uint32_t size);
void start_copy(Thread& thread, int line, uint64_t to, uint64_t from, uint32_t size, uint32_t from_size);
void commit_copies(Thread& thread);
void wait_for_copies(Thread& thread, int line, uint32_t newest);  // for all but the newest groups
void barrier(Thread& thread, int line, uint32_t id);
const Exchange& exchange(Thread& thread, int line, uint32_t mask, bool orders = false);
void start_product(Thread& thread, int line, const Product& product);
void fence_products(Thread& thread, int line);
void commit_products(Thread& thread, int line);
void wait_for_products(Thread& thread, int line, uint32_t newest);  // for all but the newest groups
void fence_proxy(Thread& thread);
void touch(Thread& thread, int line, const void* of);  // a register of products is used by another instruction
void allocate_columns(Thread& thread, int line, uint64_t to, uint32_t columns);
void return_columns(Thread& thread, int line, uint32_t address, uint32_t columns);
void end_allocations(Thread& thread, int line);
void load_cells(Thread& thread, int line, uint32_t address, uint32_t second, uint32_t* const* to, uint32_t count);
void store_cells(Thread& thread, int line, uint32_t address, uint32_t second, const uint32_t* from, uint32_t count);
void wait_for_loads(Thread& thread, int line);
void wait_for_stores(Thread& thread, int line);
void touch_loaded(Thread& thread, int line, const void* of);  // a register of tcgen05.ld is used
void start_tensor_product(Thread& thread, int line, const TensorProduct& product);
void commit_tensor_products(Thread& thread, int line, uint64_t mbarrier);
void start_mbarrier(Thread& thread, int line, uint64_t address, uint32_t count);
void end_mbarrier(Thread& thread, int line, uint64_t address);
bool try_wait(Thread& thread, int line, uint64_t address, uint32_t parity);
void count_branch(Thread& thread, int line);

template <class To, class From>
To reinterpret(From from) {
    static_assert(std::is_trivially_copyable_v<To>);
    To to{};
    std::memcpy(&to, &from, sizeof(To) < sizeof(From) ? sizeof(To) : sizeof(From));
    return to;
}

struct Bf16 {
    uint16_t bits;

    operator float() const { return reinterpret<float>(uint32_t(bits) << 16); }
};

// A register wider than the instruction's type is read by its low bits and set with sign extension if signed.
template <class T, class Register>
T get(Register from) {
    if constexpr (std::is_same_v<T, bool>)
        return from;
    else
        return reinterpret<T>(from);
}

template <class T, class Register>
void set(Register& to, T value) {
    if constexpr (std::is_integral_v<T>)
        to = Register(value);
    else
        to = reinterpret<Register>(value);
}

// Change a value in memory atomically by `next`, which reads `old` by reference.
template <class T, class Next>
void update(Thread& thread, int line, Space space, uint64_t address, T& old, Next next) {
    load_atomic(thread, line, space, address, &old, sizeof old);
    const T value = next();
    store_atomic(thread, line, space, address, &value, sizeof value);
}

template <class T>
T load_parameter(const Thread& thread, int line, uint64_t offset, uint64_t size) {
    if (offset + size > thread.parameter_bytes)
        fail(thread, line, "reads %llu bytes at %llu of %u bytes of parameters", (unsigned long long)size,
             (unsigned long long)offset, thread.parameter_bytes);
    T value;
    std::memcpy(&value, thread.parameters + offset, sizeof value);
    return value;
}

// ---- integers

template <class T>
T add(T a, T b) {
    return T(uint64_t(a) + uint64_t(b));
}

template <class T>
T subtract(T a, T b) {
    return T(uint64_t(a) - uint64_t(b));
}

template <class T>
T multiply(T a, T b) {
    return T(uint64_t(a) * uint64_t(b));
}

template <class T>
T multiply_high(T a, T b) {
    using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return T(Wide(a) * Wide(b) >> 8 * sizeof(T));
}

template <class T>
bool overflows(T a, T b) {
    return std::is_signed_v<T> && a == std::numeric_limits<T>::min() && b == T(-1);
}

template <class T>
T divide(T a, T b) {
    return b == 0 ? T(-1) : overflows(a, b) ? a : T(a / b);
}

template <class T>
T remainder(T a, T b) {
    return b == 0 ? a : overflows(a, b) ? T(0) : T(a % b);
}

template <class T>
T shift_left(T a, uint32_t by) {
    return by < 8 * sizeof(T) ? T(uint64_t(a) << by) : T(0);
}

template <class T>
T shift_right(T a, uint32_t by) {
    return by < 8 * sizeof(T) ? T(a >> by) : T(a < 0 ? -1 : 0);
}

inline uint64_t funnel(uint32_t low, uint32_t high) { return uint64_t(high) << 32 | low; }

template <class T>
T extract_bits(T a, uint32_t from, uint32_t count) {
    constexpr uint32_t kWidth = 8 * sizeof(T);
    from &= 255;
    count &= 255;
    T result = 0;
    const uint32_t sign_at = from + count - 1 < kWidth - 1 ? from + count - 1 : kWidth - 1;
    const bool sign = std::is_signed_v<T> && count && (uint64_t(a) >> sign_at & 1);
    for (uint32_t i = 0; i < kWidth; ++i) {
        const bool bit = i < count && from + i < kWidth ? uint64_t(a) >> (from + i) & 1 : sign;
        result |= T(uint64_t(bit) << i);
    }
    return result;
}

template <class T>
T insert_bits(T a, T b, uint32_t at, uint32_t count) {
    at &= 255;
    count &= 255;
    for (uint32_t i = 0; i < count && at + i < 8 * sizeof(T); ++i) {
        const T bit = T(1) << (at + i);
        b = a >> i & 1 ? b | bit : b & ~bit;
    }
    return b;
}

inline uint32_t lookup3(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
    uint32_t result = 0;
    for (int i = 0; i < 32; ++i) result |= (table >> ((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1)) & 1) << i;
    return result;
}

inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t bytes = funnel(a, b);
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i) {
        const uint32_t choice = selector >> 4 * i & 15;
        uint32_t byte = bytes >> 8 * (choice & 7) & 255;
        if (choice & 8) byte = byte & 128 ? 255 : 0;
        result |= byte << 8 * i;
    }
    return result;
}

// ---- comparisons and floating point

// clang-format off
template <class T> bool eq(T a, T b) { return a == b; }
template <class T> bool ne(T a, T b) { return a != b; }
template <class T> bool lt(T a, T b) { return a < b; }
template <class T> bool le(T a, T b) { return a <= b; }
template <class T> bool gt(T a, T b) { return a > b; }
template <class T> bool ge(T a, T b) { return a >= b; }
template <class T> bool unordered(T a, T b) { return std::isnan(a) || std::isnan(b); }
// clang-format on

// A number is preferred to a NaN, and +0 exceeds -0.
template <class T>
T minimum(T a, T b) {
    if (std::isnan(a)) return b;
    if (a == b) return std::signbit(a) ? a : b;
    return b < a ? b : a;
}

template <class T>
T maximum(T a, T b) {
    if (std::isnan(a)) return b;
    if (a == b) return std::signbit(a) ? b : a;
    return b > a ? b : a;
}

template <class T>
T flush(T a) {
    if constexpr (std::is_same_v<T, float>)
        return std::fpclassify(a) == FP_SUBNORMAL ? std::copysign(0.0f, a) : a;
    else
        return a;
}

template <class Integer, class Float>
Integer saturate(Float rounded) {
    using Limits = std::numeric_limits<Integer>;
    if (std::isnan(rounded)) return 0;
    if (rounded <= Float(Limits::min())) return Limits::min();
    if (rounded >= Float(Limits::max())) return Limits::max();
    return Integer(rounded);
}

inline Bf16 round_bf16(float a) {
    if (std::isnan(a)) return {0x7FFF};
    const uint32_t bits = reinterpret<uint32_t>(a);
    return {uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}

// Round to odd, so that a later rounding is the only one: values between floats stay on their side of a tie.
inline float round_to_odd(double sum, double rest) {
    float a = float(sum);
    const double left = (sum - a) + rest;
    if (left != 0 && std::isfinite(a) && !(reinterpret<uint32_t>(a) & 1))
        a = std::nextafter(a, left > 0 ? INFINITY : -INFINITY);
    return a;
}

inline Bf16 add_bf16(Bf16 x, Bf16 y) { return round_bf16(float(x) + float(y)); }

inline Bf16 fma_bf16(Bf16 x, Bf16 y, Bf16 z) {
    const double product = double(x) * double(y), c = z, sum = product + c;
    if (!std::isfinite(sum)) return round_bf16(float(sum));
    const double part = sum - product, rest = (product - (sum - part)) + (c - part);
    return round_bf16(round_to_odd(sum, rest));
}

// Apply a function to both halves of words.
template <class Half, class Function, class Word, class... Words>
Word by_halves(Function function, Word first, Words... rest) {
    constexpr uint32_t kBits = 8 * sizeof(Half);
    Word result = 0;
    for (uint32_t at = 0; at < 2 * kBits; at += kBits) {
        const Half half = function(reinterpret<Half>(Word(first >> at)), reinterpret<Half>(Word(rest >> at))...);
        result |= reinterpret<Word>(half) << at;
    }
    return result;
}

inline uint32_t round_tf32(uint32_t bits) {
    if ((bits & 0x7F800000u) == 0x7F800000u) return bits;
    return (bits + 0x1000) & ~0x1FFFu;  // ties away from zero
}

// ---- warps

enum class Shuffle { up, down, bfly, idx };

inline uint32_t shuffle(Thread& thread, int line, Shuffle mode, uint32_t value, uint32_t b, uint32_t c, uint32_t mask,
                        bool& in_range) {
    thread.deposit[0] = value;
    const Exchange& all = exchange(thread, line, mask);
    const uint32_t lane = thread.lane, segment = c >> 8 & 31, clamp = c & 31;
    const uint32_t first = lane & segment, last = first | (clamp & ~segment);
    uint32_t source = lane;
    b &= 31;
    if (mode == Shuffle::up) source = lane - b, in_range = int(source) >= int(last);
    if (mode == Shuffle::down) source = lane + b, in_range = source <= last;
    if (mode == Shuffle::bfly) source = lane ^ b, in_range = source <= last;
    if (mode == Shuffle::idx) source = first | (b & ~segment), in_range = source <= last;
    if (!in_range) source = lane;
    if (!(all.mask >> source & 1)) fail(thread, line, "a shuffle reads lane %u, which does not take part", source);
    return all.words[source][0];
}

inline uint32_t ballot(Thread& thread, int line, bool value, uint32_t mask) {
    thread.deposit[0] = value;
    const Exchange& all = exchange(thread, line, mask);
    uint32_t result = 0;
    for (uint32_t lane = 0; lane < 32; ++lane)
        if (all.mask >> lane & 1 && all.words[lane][0]) result |= 1u << lane;
    return result;
}

// Elected lane: the highest, since code must not rely on lane 0.
inline uint32_t elect(Thread& thread, int line, uint32_t mask) {
    return 31 - __builtin_clz(exchange(thread, line, mask).mask);
}

// Lanes 8 i to 8 i + 7 have the addresses of matrix i's rows; a lane has two neighbours of each matrix. Calls
// `use(address, matrix, i)` for each of these elements of 16 bits.
template <int count, bool transposed, class Use>
void for_each_element(Thread& thread, int line, uint64_t address, Use use) {
    thread.deposit[0] = uint32_t(address);
    const Exchange all = exchange(thread, line, ~0u);
    if (all.mask != ~0u) fail(thread, line, "a matrix needs all lanes of a warp");
    for (int matrix = 0; matrix < count; ++matrix)
        for (uint32_t i = 0; i < 2; ++i) {
            const uint32_t major = thread.lane / 4, minor = thread.lane % 4 * 2 + i;
            const uint32_t row = transposed ? minor : major, column = transposed ? major : minor;
            const uint32_t start = all.words[8 * matrix + row][0];
            if (start % 16) fail(thread, line, "misaligned row of a matrix: %u", start);
            use(start + 2 * column, matrix, i);
        }
}

template <int count, bool transposed>
void load_matrix(Thread& thread, int line, uint64_t address, uint32_t* result) {
    std::memset(result, 0, 4 * count);
    for_each_element<count, transposed>(thread, line, address, [&](uint64_t from, int matrix, uint32_t i) {
        uint16_t value;
        load(thread, line, Space::kShared, from, &value, 2);
        result[matrix] |= uint32_t(value) << 16 * i;
    });
}

template <int count, bool transposed>
void store_matrix(Thread& thread, int line, uint64_t address, const uint32_t* values) {
    for_each_element<count, transposed>(thread, line, address, [&](uint64_t to, int matrix, uint32_t i) {
        const uint16_t value = values[matrix] >> 16 * i;
        store(thread, line, Space::kShared, to, &value, 2);
    });
}

// D (16, 8) = A (16, k) B (k, 8) + C; words 0 to 3 of a lane are A, then 2 of B, 4 of C. Exact products, one float sum.
template <class Operand>
float operand_at(uint32_t word, uint32_t half) {
    if constexpr (std::is_same_v<Operand, Bf16>)
        return Bf16{uint16_t(word >> 16 * half)};
    else
        return reinterpret<float>(word & ~0x1FFFu);
}

template <class Operand>
void multiply_matrices(Thread& thread, int line, const uint32_t* a, const uint32_t* b, const float* c, float* d) {
    constexpr uint32_t kPack = std::is_same_v<Operand, Bf16> ? 2 : 1, kHalf = 4 * kPack;
    std::memcpy(thread.deposit, a, 16);
    std::memcpy(thread.deposit + 4, b, 8);
    std::memcpy(thread.deposit + 6, c, 16);
    const Exchange& all = exchange(thread, line, ~0u);
    if (all.mask != ~0u) fail(thread, line, "a matrix needs all lanes of a warp");
    for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t row = thread.lane / 4, column = thread.lane % 4 * 2 + i % 2, lower = i / 2;
        double sum = reinterpret<float>(all.words[thread.lane][6 + i]);
        for (uint32_t k = 0; k < 2 * kHalf; ++k) {
            const uint32_t upper = k / kHalf, within = k % kHalf / kPack, half = k % kPack;
            const float left = operand_at<Operand>(all.words[4 * row + within][lower + 2 * upper], half);
            const float right = operand_at<Operand>(all.words[4 * column + within][4 + upper], half);
            sum += double(left) * right;
        }
        d[i] = float(sum);
    }
}

}  // namespace ptx
