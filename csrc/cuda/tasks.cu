// Launchers of the ops that combine tasks: one row of results, each thread loops over the tasks.
#include "launch.cuh"

namespace metagan::cuda {

void reptile_interpolate(const DeviceLaunch& launch, const void* initial, Matrix adapted, const void* weights,
                         void* out, Number step_size) {
    with_type(launch.dtype, [&](auto element) {
        using T = decltype(element);
        Operands<T> of(launch, 1);
        const ReptileInterpolate<T> op{of.buffer(initial, out), of.template tasks<true>(adapted, launch.rows, weights),
                                       of.scalar(step_size)};
        run(launch, 1, op, of.aligned());
    });
}

void reptile_gradient(const DeviceLaunch& launch, const void* initial, Matrix adapted, const void* weights, void* out) {
    with_type(launch.dtype, [&](auto element) {
        using T = decltype(element);
        Operands<T> of(launch, 1);
        const ReptileGradient<T> op{of.buffer(initial, out), of.template tasks<false>(adapted, launch.rows, weights)};
        run(launch, 1, op, of.aligned());
    });
}

void meta_adam_step(const DeviceLaunch& launch, const void* params, Matrix adapted, const void* weights,
                    const void* exp_avg, const void* exp_avg_sq, void* params_out, void* exp_avg_out,
                    void* exp_avg_sq_out, const LearningRate& lr, const AdamOptions& options) {
    with_type(launch.dtype, [&](auto element) {
        using T = decltype(element);
        Operands<T> of(launch, 1);
        const AdamStep<T> adam{of.buffer(params, params_out),
                               of.buffer(exp_avg, exp_avg_out),
                               of.buffer(exp_avg_sq, exp_avg_sq_out),
                               {nullptr, 0},
                               of.rate(lr),
                               AdamUpdate<Arithmetic<T>>(options),
                               of.scalar(options.inverse_bias1),
                               of.scalar(options.inverse_bias2)};
        const MetaAdamStep<T> op{adam, of.template tasks<false>(adapted, launch.rows, weights)};
        run(launch, 1, op, of.aligned());
    });
}

}  // namespace metagan::cuda
