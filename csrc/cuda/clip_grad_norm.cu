// Launcher of clip_grad_norm.
#include "clip_grad_norm.cuh"

#include "launch.cuh"

namespace metagan {
namespace {

constexpr int64_t kPart = 8192;      // elements of a partial sum at least
constexpr int64_t kMaxParts = 1024;  // every block of the second pass adds all of them up

}  // namespace

int64_t clip_grad_norm_parts(int64_t columns) {
    return std::max<int64_t>(1, std::min({divide_up(columns, kPart), kMaxParts, kMaxBlocks}));
}

void clip_grad_norm(const DeviceLaunch& launch, Matrix grads, Matrix grads_out, void* norms_out, double max_norm,
                    double* sums) {
    if (launch.rows <= 0) return;
    with_type(launch.dtype, [&](auto element) {
        using T = decltype(element);
        constexpr int kWide = kPack<T>;
        Operands<T> of(launch, launch.rows);
        const Buffer<T> buffer = of.buffer(grads, grads_out);
        const bool aligned = of.aligned();
        const int64_t parts = clip_grad_norm_parts(launch.columns);
        const int64_t down = std::min({launch.rows, kMaxGridY, std::max<int64_t>(1, kMaxBlocks / parts)});
        const auto grid = [&](int64_t across) {
            return dim3(static_cast<unsigned>(across), static_cast<unsigned>(down));
        };
        enqueue(launch.queue, grid(parts), dim3(kClipThreads),
                aligned ? sum_of_squares<kWide, T> : sum_of_squares<1, T>, launch.rows, launch.columns, buffer.in,
                sums);
        enqueue(launch.queue, grid(parts), dim3(kClipThreads), aligned ? scale_to_norm<kWide, T> : scale_to_norm<1, T>,
                launch.rows, launch.columns, buffer, sums, parts, static_cast<Arithmetic<T>*>(norms_out), max_norm,
                grads.data == grads_out.data);
    });
}

}  // namespace metagan
