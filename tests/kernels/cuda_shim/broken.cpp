// A kernel and three broken ones; each must be caught. The argument names which one runs.
#include <cuda_runtime.h>

#include <cstdio>

constexpr int kSize = 64;

// Reverses an array by way of shared memory.
__global__ void sound(const float* in, float* out) {
    __shared__ float stage[kSize];
    stage[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = stage[kSize - 1 - threadIdx.x];
}

__global__ void missing_barrier(const float* in, float* out) {
    __shared__ float stage[kSize];
    stage[threadIdx.x] = in[threadIdx.x];
    out[threadIdx.x] = stage[kSize - 1 - threadIdx.x];
}

__global__ void overrun(const float* in, float* out) {
    for (unsigned i = threadIdx.x; i <= kSize; i += blockDim.x) out[i] = in[0];
}

__global__ void divergent_barrier(const float* in, float* out) {
    if (threadIdx.x < kSize / 2) __syncthreads();
    out[threadIdx.x] = in[threadIdx.x];
}

__global__ void two_barriers(const float* in, float* out) {
    if (threadIdx.x < kSize / 2) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[threadIdx.x] = in[threadIdx.x];
}

int main(int count, char** arguments) {
    const std::string name = count > 1 ? arguments[1] : "";
    std::vector<float> in(kSize), out(kSize);
    for (int i = 0; i < kSize; ++i) in[i] = static_cast<float>(i);
    const auto kernel = name == "sound"               ? sound
                        : name == "missing_barrier"   ? missing_barrier
                        : name == "overrun"           ? overrun
                        : name == "divergent_barrier" ? divergent_barrier
                                                      : two_barriers;
    cudaLaunchConfig_t config{};
    config.blockDim = dim3(kSize);
    try {
        cudaLaunchKernelEx(&config, kernel, static_cast<const float*>(in.data()), out.data());
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 2;
    }
    bool reversed = true;
    for (int i = 0; i < kSize; ++i) reversed = reversed && out[i] == static_cast<float>(kSize - 1 - i);
    std::puts(reversed ? "reversed" : "not reversed");
}
