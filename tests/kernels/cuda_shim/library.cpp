// The launchers of csrc/cuda, run on the CPU, behind C functions that tests/kernels/cuda_on_cpu.py calls.
#include <cstdio>
#include <exception>

#include "../../../csrc/cuda/clip_grad_norm.cu"
#include "../../../csrc/cuda/tasks.cu"
#include "../../../csrc/cuda/updates.cu"

using namespace metagan;
using namespace metagan::cuda;

namespace {

// Returns 0, or 1 with the error's message written.
template <class Body>
int guarded(char* message, const Body& body) {
    try {
        body();
        return 0;
    } catch (const std::exception& error) {
        std::snprintf(message, 256, "%s", error.what());
        return 1;
    }
}

}  // namespace

extern "C" {

void shim_order(int order, unsigned seed) {
    shim::order = static_cast<shim::Order>(order);
    shim::seed = seed;
}

int64_t shim_clip_grad_norm_parts(int64_t columns) { return clip_grad_norm_parts(columns); }

int shim_sgd_step(char* message, const DeviceLaunch* launch, const Matrix* m, const LearningRate* lr, const double* x,
                  bool nesterov) {
    return guarded(message,
                   [=] { sgd_step(*launch, m[0], m[1], m[2], m[3], m[4], *lr, {x[0], x[1], x[2], nesterov}); });
}

int shim_adam_step(char* message, const DeviceLaunch* launch, const Matrix* m, const LearningRate* lr,
                   const AdamOptions* options) {
    return guarded(message, [=] { adam_step(*launch, m[0], m[1], m[2], m[3], m[4], m[5], m[6], *lr, *options); });
}

int shim_rmsprop_step(char* message, const DeviceLaunch* launch, const Matrix* m, const LearningRate* lr,
                      const double* x) {
    return guarded(message, [=] {
        rmsprop_step(*launch, m[0], m[1], m[2], m[3], m[4], m[5], m[6], m[7], m[8], *lr, {x[0], x[1], x[2], x[3]});
    });
}

int shim_reptile_interpolate(char* message, const DeviceLaunch* launch, void* initial, const Matrix* adapted,
                             void* weights, void* out, const Number* step_size) {
    return guarded(message, [=] { reptile_interpolate(*launch, initial, *adapted, weights, out, *step_size); });
}

int shim_reptile_gradient(char* message, const DeviceLaunch* launch, void* initial, const Matrix* adapted,
                          void* weights, void* out) {
    return guarded(message, [=] { reptile_gradient(*launch, initial, *adapted, weights, out); });
}

int shim_meta_adam_step(char* message, const DeviceLaunch* launch, void* params, const Matrix* adapted, void* weights,
                        void* const* buffers, const LearningRate* lr, const AdamOptions* options) {
    return guarded(message, [=] {
        meta_adam_step(*launch, params, *adapted, weights, buffers[0], buffers[1], buffers[2], buffers[3], buffers[4],
                       *lr, *options);
    });
}

int shim_clip_grad_norm(char* message, const DeviceLaunch* launch, const Matrix* m, void* norms, double max_norm,
                        double* sums) {
    return guarded(message, [=] { clip_grad_norm(*launch, m[0], m[1], norms, max_norm, sums); });
}

int shim_clip_in_parts(char* message, const DeviceLaunch* launch, const Matrix* m, void* norms, double max_norm,
                       double* sums, int64_t parts) {
    return guarded(message, [=] { clip_in_parts(*launch, m[0], m[1], norms, max_norm, sums, parts); });
}

int shim_ema_update(char* message, const DeviceLaunch* launch, const Matrix* m, double decay) {
    return guarded(message, [=] { ema_update(*launch, m[0], m[1], m[2], decay); });
}
}
