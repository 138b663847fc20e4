// Compiled once for each instruction set, with METAGAN_ISA naming it. Nothing here may leave behind a function that the
// linker could share between them: everything is in an anonymous namespace, and no standard library code is used.
#include "update_kernels.h"

#include "../updates.h"

// Inputs and outputs are the same element or apart, so nothing is carried from one iteration to the next.
#ifdef __clang__
#define METAGAN_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define METAGAN_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace metagan {
namespace {

// Tasks are added a chunk at a time, so that the sum stays in the first-level cache.
constexpr int64_t kChunk = 2048;
constexpr int64_t kLanes = 32;

template <class T>
struct Elements {
    const T* in;
    T* out;

    Elements(Buffer buffer) : in(static_cast<const T*>(buffer.in)), out(static_cast<T*>(buffer.out)) {}
    Elements(const void* address) : Elements(Buffer{address, nullptr}) {}

    METAGAN_INLINE Arithmetic<T> load(int64_t i) const { return widen(in[i]); }
    METAGAN_INLINE void store(int64_t i, Arithmetic<T> value) const { narrow(value, out[i]); }
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

template <class Body>
METAGAN_INLINE void for_each(int64_t begin, int64_t end, Body body) {
    METAGAN_INDEPENDENT
    for (int64_t i = begin; i < end; ++i) body(i);
}

// Calls body(i, lr).
template <class A, class Body>
METAGAN_INLINE void for_each(int64_t begin, int64_t end, Rate rate, Body body) {
    if (rate.elements) {
        const A* lr = static_cast<const A*>(rate.elements);
        for_each(begin, end, [=](int64_t i) { body(i, lr[i]); });
    } else {
        const A lr = static_cast<A>(rate.value);
        for_each(begin, end, [=](int64_t i) { body(i, lr); });
    }
}

void sgd_step(DType dtype, int64_t size, Buffer params, const void* grads, Buffer momentum_buffer, Rate rate,
              const SgdOptions& options) {
    with_type(dtype, [&](auto element) {
        using T = decltype(element);
        using A = Arithmetic<T>;
        const SgdUpdate<A> update(options);
        const Elements<T> p(params), g(grads), buffer(momentum_buffer);
        if (momentum_buffer.in) {
            for_each<A>(0, size, rate, [=](int64_t i, A lr) {
                A param = p.load(i), momentum = buffer.load(i);
                update(param, g.load(i), momentum, lr);
                p.store(i, param);
                buffer.store(i, momentum);
            });
        } else {
            for_each<A>(0, size, rate, [=](int64_t i, A lr) {
                A param = p.load(i);
                update(param, g.load(i), lr);
                p.store(i, param);
            });
        }
    });
}

void adam_step(DType dtype, int64_t size, Buffer params, const void* grads, Buffer exp_avg, Buffer exp_avg_sq,
               Rate rate, const AdamOptions& options) {
    with_type(dtype, [&](auto element) {
        using T = decltype(element);
        using A = Arithmetic<T>;
        const AdamUpdate<A> update(options);
        const Elements<T> p(params), g(grads), m(exp_avg), v(exp_avg_sq);
        for_each<A>(0, size, rate, [=](int64_t i, A lr) {
            A param = p.load(i), first = m.load(i), second = v.load(i);
            update(param, g.load(i), first, second, lr);
            p.store(i, param);
            m.store(i, first);
            v.store(i, second);
        });
    });
}

template <class T, bool kMomentum, bool kCentered>
METAGAN_INLINE void rmsprop_loop(int64_t size, Elements<T> p, Elements<T> g, Elements<T> v, Elements<T> buffer,
                                 Elements<T> average, Rate rate, const RmspropUpdate<Arithmetic<T>>& update) {
    using A = Arithmetic<T>;
    for_each<A>(0, size, rate, [=](int64_t i, A lr) {
        A param = p.load(i), square = v.load(i), momentum = 0, mean = 0;
        if constexpr (kMomentum) momentum = buffer.load(i);
        if constexpr (kCentered) mean = average.load(i);
        update(param, g.load(i), square, kMomentum ? &momentum : nullptr, kCentered ? &mean : nullptr, lr);
        p.store(i, param);
        v.store(i, square);
        if constexpr (kMomentum) buffer.store(i, momentum);
        if constexpr (kCentered) average.store(i, mean);
    });
}

void rmsprop_step(DType dtype, int64_t size, Buffer params, const void* grads, Buffer square_avg,
                  Buffer momentum_buffer, Buffer grad_avg, Rate rate, const RmspropOptions& options) {
    with_type(dtype, [&](auto element) {
        using T = decltype(element);
        const RmspropUpdate<Arithmetic<T>> update(options);
        const bool has_momentum = momentum_buffer.in, is_centered = grad_avg.in;
        const auto loop = has_momentum ? (is_centered ? rmsprop_loop<T, true, true> : rmsprop_loop<T, true, false>)
                                       : (is_centered ? rmsprop_loop<T, false, true> : rmsprop_loop<T, false, false>);
        loop(size, params, grads, square_avg, momentum_buffer, grad_avg, rate, update);
    });
}

// Calls finish(begin, end, total) for one chunk after another, with total[i - begin] the mean or weighted sum over
// tasks, added in index order, of initial - adapted, or of adapted - initial.
template <class T, bool kTowardsAdapted, class Finish>
METAGAN_INLINE void sum_tasks(int64_t size, Elements<T> initial, const Tasks& tasks, Finish finish) {
    using A = Arithmetic<T>;
    alignas(64) A total[kChunk];
    const A* weights = static_cast<const A*>(tasks.weights);
    const A scale = weights ? A(1) : static_cast<A>(1.0 / static_cast<double>(tasks.count));
    for (int64_t begin = 0; begin < size; begin += kChunk) {
        const int64_t end = size - begin < kChunk ? size : begin + kChunk;
        for (int64_t task = 0; task < tasks.count; ++task) {
            const Elements<T> row(static_cast<const T*>(tasks.adapted.data) + task * tasks.adapted.row_stride);
            const A weight = weights ? weights[task] : A(1);
            const auto contribution = [=](int64_t i) {
                return weight * (kTowardsAdapted ? reptile_difference(row.load(i), initial.load(i))
                                                 : reptile_difference(initial.load(i), row.load(i)));
            };
            if (task == 0)
                for_each(begin, end, [=, &total](int64_t i) { total[i - begin] = contribution(i); });
            else
                for_each(begin, end, [=, &total](int64_t i) { total[i - begin] += contribution(i); });
        }
        for_each(begin, end, [=, &total](int64_t i) { total[i - begin] *= scale; });
        finish(begin, end, total);
    }
}

void reptile_interpolate(DType dtype, int64_t size, Buffer initial, Tasks tasks, double step_size) {
    with_type(dtype, [&](auto element) {
        using T = decltype(element);
        using A = Arithmetic<T>;
        const Elements<T> start(initial);
        const A step = static_cast<A>(step_size);
        sum_tasks<T, true>(size, start, tasks, [=](int64_t begin, int64_t end, const A* total) {
            for_each(begin, end, [=](int64_t i) {
                start.store(i, metagan::reptile_interpolate(start.load(i), total[i - begin], step));
            });
        });
    });
}

void reptile_gradient(DType dtype, int64_t size, Buffer initial, Tasks tasks) {
    with_type(dtype, [&](auto element) {
        using T = decltype(element);
        using A = Arithmetic<T>;
        const Elements<T> start(initial);
        sum_tasks<T, false>(size, start, tasks, [=](int64_t begin, int64_t end, const A* total) {
            for_each(begin, end, [=](int64_t i) { start.store(i, total[i - begin]); });
        });
    });
}

void meta_adam_step(DType dtype, int64_t size, Buffer params, Tasks tasks, Buffer exp_avg, Buffer exp_avg_sq, Rate rate,
                    const AdamOptions& options) {
    with_type(dtype, [&](auto element) {
        using T = decltype(element);
        using A = Arithmetic<T>;
        const AdamUpdate<A> update(options);
        const Elements<T> p(params), m(exp_avg), v(exp_avg_sq);
        sum_tasks<T, false>(size, p, tasks, [=](int64_t begin, int64_t end, const A* total) {
            for_each<A>(begin, end, rate, [=](int64_t i, A lr) {
                A param = p.load(i), first = m.load(i), second = v.load(i);
                update(param, total[i - begin], first, second, lr);
                p.store(i, param);
                m.store(i, first);
                v.store(i, second);
            });
        });
    });
}

void ema_update(DType dtype, int64_t size, Buffer average, const void* params, double decay) {
    with_type(dtype, [&](auto element) {
        using T = decltype(element);
        using A = Arithmetic<T>;
        const Elements<T> a(average), p(params);
        const A one_minus_decay = static_cast<A>(1 - decay);
        for_each(0, size, [=](int64_t i) { a.store(i, metagan::ema_update(a.load(i), p.load(i), one_minus_decay)); });
    });
}

// The order of the additions is the same for every instruction set: lane by lane, then over lanes.
double sum_of_squares(DType dtype, int64_t size, const void* grads) {
    return with_type(dtype, [&](auto element) {
        using T = decltype(element);
        const Elements<T> g(grads);
        double lanes[kLanes] = {};
        const auto add = [&](int64_t first, int64_t count) {
            for (int64_t lane = 0; lane < count; ++lane) {
                const double x = static_cast<double>(g.load(first + lane));
                lanes[lane] += x * x;
            }
        };
        int64_t i = 0;
        for (; i + kLanes <= size; i += kLanes) add(i, kLanes);
        add(i, size - i);
        double total = 0;
        for (const double lane : lanes) total += lane;
        return total;
    });
}

void scale(DType dtype, int64_t size, Buffer grads, double factor) {
    with_type(dtype, [&](auto element) {
        using T = decltype(element);
        const Elements<T> g(grads);
        const auto by = static_cast<Arithmetic<T>>(factor);
        for_each(0, size, [=](int64_t i) { g.store(i, g.load(i) * by); });
    });
}

}  // namespace

#define METAGAN_JOIN(a, b) a##b
#define METAGAN_TABLE(isa) METAGAN_JOIN(update_kernels_, isa)

const UpdateKernels METAGAN_TABLE(METAGAN_ISA) = {
    sgd_step,   adam_step,      rmsprop_step, reptile_interpolate, reptile_gradient, meta_adam_step,
    ema_update, sum_of_squares, scale,
};

}  // namespace metagan
