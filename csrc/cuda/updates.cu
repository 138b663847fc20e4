// Launchers of the row-wise updates, and the check for a usable GPU.
#include "launch.cuh"

namespace metagan::cuda {

void sgd_step(const DeviceLaunch& launch, Matrix params, Matrix grads, Matrix momentum_buffer, Matrix params_out,
              Matrix momentum_buffer_out, const LearningRate& lr, const SgdOptions& options) {
    run<SgdStep>(launch, launch.rows, InOut(params, params_out), InOut(momentum_buffer, momentum_buffer_out), grads, lr,
                 options);
}

void adam_step(const DeviceLaunch& launch, Matrix params, Matrix grads, Matrix exp_avg, Matrix exp_avg_sq,
               Matrix params_out, Matrix exp_avg_out, Matrix exp_avg_sq_out, const LearningRate& lr,
               const AdamOptions& options) {
    run<AdamStep>(launch, launch.rows, InOut(params, params_out), InOut(exp_avg, exp_avg_out),
                  InOut(exp_avg_sq, exp_avg_sq_out), grads, lr, options, options.inverse_bias1, options.inverse_bias2);
}

void rmsprop_step(const DeviceLaunch& launch, Matrix params, Matrix grads, Matrix square_avg, Matrix momentum_buffer,
                  Matrix grad_avg, Matrix params_out, Matrix square_avg_out, Matrix momentum_buffer_out,
                  Matrix grad_avg_out, const LearningRate& lr, const RmspropOptions& options) {
    run<RmspropStep>(launch, launch.rows, InOut(params, params_out), InOut(square_avg, square_avg_out),
                     InOut(momentum_buffer, momentum_buffer_out), InOut(grad_avg, grad_avg_out), grads, lr, options);
}

void ema_update(const DeviceLaunch& launch, Matrix average, Matrix params, Matrix average_out, double decay) {
    run<EmaUpdate>(launch, launch.rows, InOut(average, average_out), params, 1 - decay);
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
