// Launchers of the ops that combine tasks: one row of results, each thread loops over the tasks.
#include "launch.cuh"

namespace metagan::cuda {

void reptile_interpolate(const DeviceLaunch& launch, const void* initial, Matrix adapted, const void* weights,
                         void* out, Number step_size) {
    run<ReptileInterpolate>(launch, 1, InOut(initial, out), Tasks<true>{adapted, launch.rows, weights}, step_size);
}

void reptile_gradient(const DeviceLaunch& launch, const void* initial, Matrix adapted, const void* weights, void* out) {
    run<ReptileGradient>(launch, 1, InOut(initial, out), Tasks<false>{adapted, launch.rows, weights});
}

void meta_adam_step(const DeviceLaunch& launch, const void* params, Matrix adapted, const void* weights,
                    const void* exp_avg, const void* exp_avg_sq, void* params_out, void* exp_avg_out,
                    void* exp_avg_sq_out, const LearningRate& lr, const AdamOptions& options) {
    run<MetaAdamStep>(launch, 1, InOut(params, params_out), InOut(exp_avg, exp_avg_out),
                      InOut(exp_avg_sq, exp_avg_sq_out), Matrix{}, lr, options, options.inverse_bias1,
                      options.inverse_bias2, Tasks<false>{adapted, launch.rows, weights});
}

}  // namespace metagan::cuda
