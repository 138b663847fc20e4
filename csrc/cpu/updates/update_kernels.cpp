// Update kernels, compiled once for every instruction set, METAGAN_ISA. The linker must not share a function between
// instruction sets: everything is in an anonymous namespace, and no standard library code is used (see
// gemm_kernels.cpp).
#include "update_kernels.h"

#include "cpu/simd/vector.h"  // before the formulas, which call its square root

#include "ops/formulas.h"

namespace metagan::cpu {
namespace {

using metagan::for_each;  // beside the overload below

constexpr int kLanes = 32;  // partial sums of sum_of_squares

// Typed Buffer. The type of `kind`, a number or a vector, says how many elements are accessed at index i.
template <class T>
struct Elements {
    const T* in;
    T* out;

    Elements(Buffer buffer) : in(static_cast<const T*>(buffer.in)), out(static_cast<T*>(buffer.out)) {}
    Elements(const void* address) : Elements(Buffer{address, nullptr}) {}

    template <class V>
    METAGAN_INLINE V load(int64_t i, V kind) const {
        return metagan::load(in + i, kind);
    }
    template <class V>
    METAGAN_INLINE void store(int64_t i, V value) const {
        metagan::store(out + i, value);
    }
};

// Typed Gradient.
template <class T>
struct Gradients {
    Elements<T> elements;
    bool ascend;

    Gradients(Gradient gradient) : elements(gradient.data), ascend(gradient.ascend) {}

    template <class V>
    METAGAN_INLINE V load(int64_t i, V kind) const {
        const V grad = elements.load(i, kind);
        return ascend ? -grad : grad;
    }
};

// Calls body(T{}) with the storage type.
template <class Body>
METAGAN_INLINE auto with_type(DType dtype, Body body) {
    switch (dtype) {
        case DType::bfloat16:
            return body(BFloat16{});
        case DType::float64:
            return body(double{});
        default:
            return body(float{});
    }
}

// Calls body(i, kind, lr) for [begin, end), with the learning rate of each element.
template <class A, class Body>
METAGAN_INLINE void for_each(int64_t begin, int64_t end, Rate rate, const Body& body) {
    if (rate.elements) {
        const Elements<A> lr(rate.elements);
        for_each<A>(begin, end, [=](int64_t i, auto kind) { body(i, kind, lr.load(i, kind)); });
    } else {
        const A lr = static_cast<A>(rate.value);
        for_each<A>(begin, end, [=](int64_t i, auto kind) { body(i, kind, lr); });
    }
}

void sgd_step(DType dtype, int64_t size, Buffer params, Gradient grads, Buffer momentum_buffer, Rate rate,
              const SgdOptions& options) {
    with_type(dtype, [&](auto element) {
        using T = decltype(element);
        using A = Arithmetic<T>;
        const SgdUpdate<A> update(options);
        const Elements<T> p(params), buffer(momentum_buffer);
        const Gradients<T> g(grads);
        if (momentum_buffer.in) {
            for_each<A>(0, size, rate, [=](int64_t i, auto kind, auto lr) {
                auto param = p.load(i, kind), momentum = buffer.load(i, kind);
                update(param, g.load(i, kind), momentum, lr);
                p.store(i, param);
                buffer.store(i, momentum);
            });
        } else {
            for_each<A>(0, size, rate, [=](int64_t i, auto kind, auto lr) {
                auto param = p.load(i, kind);
                update(param, g.load(i, kind), lr);
                p.store(i, param);
            });
        }
    });
}

template <class T, bool kAmsgrad>
METAGAN_INLINE void adam_loop(int64_t size, Elements<T> p, Gradients<T> g, Elements<T> m, Elements<T> v,
                              Elements<T> max_v, Rate rate, const AdamUpdate<Arithmetic<T>>& update) {
    for_each<Arithmetic<T>>(0, size, rate, [=](int64_t i, auto kind, auto lr) {
        auto param = p.load(i, kind), first = m.load(i, kind), second = v.load(i, kind), largest = kind;
        if constexpr (kAmsgrad) largest = max_v.load(i, kind);
        update(param, g.load(i, kind), first, second, kAmsgrad ? &largest : nullptr, lr);
        p.store(i, param);
        m.store(i, first);
        v.store(i, second);
        if constexpr (kAmsgrad) max_v.store(i, largest);
    });
}

void adam_step(DType dtype, int64_t size, Buffer params, Gradient grads, Buffer exp_avg, Buffer exp_avg_sq,
               Buffer max_exp_avg_sq, Rate rate, const AdamOptions& options) {
    with_type(dtype, [&](auto element) {
        using T = decltype(element);
        const AdamUpdate<Arithmetic<T>> update(options);
        const auto loop = max_exp_avg_sq.in ? adam_loop<T, true> : adam_loop<T, false>;
        loop(size, params, grads, exp_avg, exp_avg_sq, max_exp_avg_sq, rate, update);
    });
}

template <class T, bool kMomentum, bool kCentered>
METAGAN_INLINE void rmsprop_loop(int64_t size, Elements<T> p, Gradients<T> g, Elements<T> v, Elements<T> buffer,
                                 Elements<T> average, Rate rate, const RmspropUpdate<Arithmetic<T>>& update) {
    using A = Arithmetic<T>;
    for_each<A>(0, size, rate, [=](int64_t i, auto kind, auto lr) {
        auto param = p.load(i, kind), square = v.load(i, kind), momentum = kind, mean = kind;
        if constexpr (kMomentum) momentum = buffer.load(i, kind);
        if constexpr (kCentered) mean = average.load(i, kind);
        update(param, g.load(i, kind), square, kMomentum ? &momentum : nullptr, kCentered ? &mean : nullptr, lr);
        p.store(i, param);
        v.store(i, square);
        if constexpr (kMomentum) buffer.store(i, momentum);
        if constexpr (kCentered) average.store(i, mean);
    });
}

void rmsprop_step(DType dtype, int64_t size, Buffer params, Gradient grads, Buffer square_avg, Buffer momentum_buffer,
                  Buffer grad_avg, Rate rate, const RmspropOptions& options) {
    with_type(dtype, [&](auto element) {
        using T = decltype(element);
        const RmspropUpdate<Arithmetic<T>> update(options);
        const bool has_momentum = momentum_buffer.in, is_centered = grad_avg.in;
        const auto loop = has_momentum ? (is_centered ? rmsprop_loop<T, true, true> : rmsprop_loop<T, true, false>)
                                       : (is_centered ? rmsprop_loop<T, false, true> : rmsprop_loop<T, false, false>);
        loop(size, params, grads, square_avg, momentum_buffer, grad_avg, rate, update);
    });
}

// Mean or weighted sum over tasks of initial - adapted, or of adapted - initial, added in index order.
//
// Rows are read in groups of eight tasks, about as many streams as the hardware prefetchers follow, over blocks of
// columns long enough for them to lock on; partial sums stay in the second-level cache between groups. Software
// prefetch runs 512 bytes ahead in each row (docs/tuning.md#updates-task-groups).
template <class T, bool kTowardsAdapted>
struct TaskSum {
    using A = Arithmetic<T>;
    static constexpr int64_t kTaskGroup = 8, kColumnBlock = 8192, kPrefetchDistance = 512 / sizeof(T);
    const T* adapted;
    int64_t row_stride, count;
    const A* weights;
    A scale;

    TaskSum(const Tasks& tasks)
        : adapted(static_cast<const T*>(tasks.adapted.data)),
          row_stride(tasks.adapted.row_stride),
          count(tasks.count),
          weights(static_cast<const A*>(tasks.weights)),
          scale(static_cast<A>(1.0 / static_cast<double>(tasks.count))) {}

    template <class V>
    METAGAN_INLINE V difference(V initial, int64_t task, int64_t i) const {
        const T* const from = adapted + task * row_stride + i;
        __builtin_prefetch(from + kPrefetchDistance);
        const V row = metagan::load(from, V{});
        const V result = kTowardsAdapted ? reptile_difference(row, initial) : reptile_difference(initial, row);
        return weights ? weights[task] * result : result;
    }

    // Adds tasks [first, last) to `total`, which task 0 initialises.
    template <class V>
    METAGAN_INLINE V add(V total, V initial, int64_t first, int64_t last, int64_t i) const {
        for (int64_t task = first; task < last; ++task) {
            const V term = difference(initial, task, i);
            total = task == 0 ? term : total + term;
        }
        return total;
    }

    // Calls body(i, kind, initial, sum) for i in [0, size); body may overwrite the initial parameters at i.
    template <class Body>
    METAGAN_INLINE void for_each(int64_t size, const Elements<T>& initial, const Body& body) const {
        alignas(64) A partial[kColumnBlock];
        const int64_t last = (count - 1) / kTaskGroup * kTaskGroup;  // first task of the last group
        for (int64_t begin = 0; begin < size; begin += kColumnBlock) {
            const int64_t end = begin + kColumnBlock < size ? begin + kColumnBlock : size;
            for (int64_t first = 0; first < last; first += kTaskGroup)
                metagan::for_each<A>(begin, end, [&](int64_t i, auto kind) {
                    const auto before = first ? load(partial + i - begin, kind) : kind;
                    store(partial + i - begin, add(before, initial.load(i, kind), first, first + kTaskGroup, i));
                });
            metagan::for_each<A>(begin, end, [&](int64_t i, auto kind) {
                const auto from = initial.load(i, kind);
                const auto before = last ? load(partial + i - begin, kind) : kind;
                const auto total = add(before, from, last, count, i);
                body(i, kind, from, weights ? total : total * scale);
            });
        }
    }
};

void reptile_interpolate(DType dtype, int64_t size, Buffer initial, Tasks tasks, double step_size) {
    with_type(dtype, [&](auto element) {
        using T = decltype(element);
        const Elements<T> start(initial);
        const auto step = static_cast<Arithmetic<T>>(step_size);
        TaskSum<T, true>(tasks).for_each(size, start, [=](int64_t i, auto, auto from, auto sum) {
            start.store(i, metagan::reptile_interpolate(from, sum, step));
        });
    });
}

void reptile_gradient(DType dtype, int64_t size, Buffer initial, Tasks tasks) {
    with_type(dtype, [&](auto element) {
        using T = decltype(element);
        const Elements<T> start(initial);
        TaskSum<T, false>(tasks).for_each(size, start, [=](int64_t i, auto, auto, auto sum) { start.store(i, sum); });
    });
}

void meta_adam_step(DType dtype, int64_t size, Buffer params, Tasks tasks, Buffer exp_avg, Buffer exp_avg_sq, Rate rate,
                    const AdamOptions& options) {
    with_type(dtype, [&](auto element) {
        using T = decltype(element);
        using A = Arithmetic<T>;
        const AdamUpdate<A> update(options);
        const Elements<T> p(params), m(exp_avg), v(exp_avg_sq);
        const auto apply = [=](int64_t i, auto kind, auto param, auto sum, auto lr) {
            auto first = m.load(i, kind), second = v.load(i, kind);
            update(param, sum, first, second, lr);
            p.store(i, param);
            m.store(i, first);
            v.store(i, second);
        };
        const TaskSum<T, false> tasks_sum(tasks);
        if (rate.elements) {
            const Elements<A> lr(rate.elements);
            tasks_sum.for_each(size, p, [=](int64_t i, auto kind, auto param, auto sum) {
                apply(i, kind, param, sum, lr.load(i, kind));
            });
        } else {
            const A lr = static_cast<A>(rate.value);
            tasks_sum.for_each(size, p,
                               [=](int64_t i, auto kind, auto param, auto sum) { apply(i, kind, param, sum, lr); });
        }
    });
}

void ema_update(DType dtype, int64_t size, Buffer average, const void* params, double decay) {
    with_type(dtype, [&](auto element) {
        using T = decltype(element);
        using A = Arithmetic<T>;
        const Elements<T> a(average), p(params);
        const A one_minus_decay = static_cast<A>(1 - decay);
        for_each<A>(0, size, [=](int64_t i, auto kind) {
            a.store(i, metagan::ema_update(a.load(i, kind), p.load(i, kind), one_minus_decay));
        });
    });
}

// Adds up kLanes interleaved partial sums, then these: the same order for every instruction set.
double sum_of_squares(DType dtype, int64_t size, const void* grads) {
    return with_type(dtype, [=](auto element) {
        using T = decltype(element);
        const T* g = static_cast<const T*>(grads);
        DoubleVector sums[kLanes / kDoubles] = {};
        int64_t i = 0;
        for (; i + kLanes <= size; i += kLanes) {
#pragma GCC unroll 16
            for (int lane = 0; lane < kLanes; lane += kDoubles) {
                const DoubleVector x = load_doubles(g + i + lane);
                sums[lane / kDoubles] += x * x;
            }
        }
        double lanes[kLanes];
        __builtin_memcpy(lanes, sums, sizeof lanes);
        for (int lane = 0; i < size; ++i, ++lane) {
            const double x = static_cast<double>(widen(g[i]));
            lanes[lane] += x * x;
        }
        double total = 0;
        for (const double lane : lanes) total += lane;
        return total;
    });
}

void scale(DType dtype, int64_t size, Buffer grads, double factor) {
    with_type(dtype, [&](auto element) {
        using T = decltype(element);
        using A = Arithmetic<T>;
        const Elements<T> g(grads);
        const A by = static_cast<A>(factor);
        for_each<A>(0, size, [=](int64_t i, auto kind) { g.store(i, g.load(i, kind) * by); });
    });
}

}  // namespace

const UpdateKernels METAGAN_FOR_ISA(update_kernels_) = {
    sgd_step,   adam_step,      rmsprop_step, reptile_interpolate, reptile_gradient, meta_adam_step,
    ema_update, sum_of_squares, scale,
};

}  // namespace metagan::cpu
