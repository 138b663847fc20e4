// Launcher of clip_grad_norm.
#include "clip_grad_norm.cuh"

#include "launch.cuh"

namespace metagan::cuda {
namespace {

constexpr int64_t kShortRow = 8192;  // most columns that one block clips; reason: metagan_fast/ops/clip_grad_norm.py
constexpr int64_t kPart = 8192;      // fewest elements of a partial sum
constexpr int64_t kMaxParts = 1024;  // most partial sums of a row, because every block of the second pass adds them all

// Launches one kernel, which needs no `sums`, if `parts` is 0; else two.
void clip_in_parts(const DeviceLaunch& launch, Matrix grads, Matrix grads_out, void* norms_out, double max_norm,
                   double* sums, int64_t parts) {
    if (launch.rows <= 0) return;
    with_type(launch.dtype, [&](auto element) {
        using T = decltype(element);
        constexpr int kWide = kPack<T>;
        Operands<T> of(launch, launch.rows);
        const Buffer<T> buffer = of(InOut(grads, grads_out));
        const bool aligned = of.aligned(), in_place = grads.data == grads_out.data;
        const auto norms = static_cast<Arithmetic<T>*>(norms_out);
        const int64_t across = std::max<int64_t>(1, parts);
        const int64_t down = std::min({launch.rows, kMaxGridY, std::max<int64_t>(1, kMaxBlocks / across)});
        const dim3 grid(static_cast<unsigned>(across), static_cast<unsigned>(down)), block(kClipThreads);
        if (parts == 0) {
            enqueue(launch.queue, grid, block, aligned ? clip_short_rows<kWide, T> : clip_short_rows<1, T>, launch.rows,
                    launch.columns, buffer, norms, max_norm, in_place);
            return;
        }
        enqueue(launch.queue, grid, block, aligned ? sum_of_squares<kWide, T> : sum_of_squares<1, T>, launch.rows,
                launch.columns, buffer.in, sums);
        enqueue(launch.queue, grid, block, aligned ? scale_to_norm<kWide, T> : scale_to_norm<1, T>, launch.rows,
                launch.columns, buffer, sums, parts, norms, max_norm, in_place);
    });
}

}  // namespace

int64_t clip_grad_norm_parts(int64_t columns) {
    return columns <= kShortRow ? 0 : std::min({divide_up(columns, kPart), kMaxParts, kMaxBlocks});
}

void clip_grad_norm(const DeviceLaunch& launch, Matrix grads, Matrix grads_out, void* norms_out, double max_norm,
                    double* sums) {
    clip_in_parts(launch, grads, grads_out, norms_out, max_norm, sums, clip_grad_norm_parts(launch.columns));
}

}  // namespace metagan::cuda
