// Launchers of the row-wise updates, and the check for a usable GPU.
#include "launch.cuh"

namespace metagan::cuda {

void sgd_step(const DeviceLaunch& launch, Matrix params, Matrix grads, Matrix momentum_buffer, Matrix params_out,
              Matrix momentum_buffer_out, const LearningRate& lr, const SgdOptions& options) {
    with_type(launch.dtype, [&](auto element) {
        using T = decltype(element);
        Operands<T> of(launch, launch.rows);
        const SgdStep<T> op{of.buffer(params, params_out), of.buffer(momentum_buffer, momentum_buffer_out),
                            of.input(grads), of.rate(lr), SgdUpdate<Arithmetic<T>>(options)};
        run(launch, launch.rows, op, of.aligned());
    });
}

void adam_step(const DeviceLaunch& launch, Matrix params, Matrix grads, Matrix exp_avg, Matrix exp_avg_sq,
               Matrix params_out, Matrix exp_avg_out, Matrix exp_avg_sq_out, const LearningRate& lr,
               const AdamOptions& options) {
    with_type(launch.dtype, [&](auto element) {
        using T = decltype(element);
        Operands<T> of(launch, launch.rows);
        const AdamStep<T> op{of.buffer(params, params_out),
                             of.buffer(exp_avg, exp_avg_out),
                             of.buffer(exp_avg_sq, exp_avg_sq_out),
                             of.input(grads),
                             of.rate(lr),
                             AdamUpdate<Arithmetic<T>>(options),
                             of.scalar(options.inverse_bias1),
                             of.scalar(options.inverse_bias2)};
        run(launch, launch.rows, op, of.aligned());
    });
}

void rmsprop_step(const DeviceLaunch& launch, Matrix params, Matrix grads, Matrix square_avg, Matrix momentum_buffer,
                  Matrix grad_avg, Matrix params_out, Matrix square_avg_out, Matrix momentum_buffer_out,
                  Matrix grad_avg_out, const LearningRate& lr, const RmspropOptions& options) {
    with_type(launch.dtype, [&](auto element) {
        using T = decltype(element);
        Operands<T> of(launch, launch.rows);
        const RmspropStep<T> op{of.buffer(params, params_out),
                                of.buffer(square_avg, square_avg_out),
                                of.buffer(momentum_buffer, momentum_buffer_out),
                                of.buffer(grad_avg, grad_avg_out),
                                of.input(grads),
                                of.rate(lr),
                                RmspropUpdate<Arithmetic<T>>(options)};
        run(launch, launch.rows, op, of.aligned());
    });
}

void ema_update(const DeviceLaunch& launch, Matrix average, Matrix params, Matrix average_out, double decay) {
    with_type(launch.dtype, [&](auto element) {
        using T = decltype(element);
        Operands<T> of(launch, launch.rows);
        const EmaUpdate<T> op{of.buffer(average, average_out), of.input(params), static_cast<Arithmetic<T>>(1 - decay)};
        run(launch, launch.rows, op, of.aligned());
    });
}

std::string cuda_problem() {
    int devices = 0;
    const cudaError_t error = cudaGetDeviceCount(&devices);
    if (error != cudaSuccess) cudaGetLastError();
    // Without any driver the runtime reports one that is too old (cudaErrorInsufficientDriver).
    if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver || (error == cudaSuccess && devices == 0))
        return "there is no CUDA device";
    return error == cudaSuccess ? "" : std::string("CUDA cannot be used: ") + cudaGetErrorString(error);
}

}  // namespace metagan::cuda
