// CPU launchers of the fused ops: divide rows and columns into blocks for threads and learning-rate segments.
#include "ops/formulas.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/runtime/parallel.h"
#include "ops/launch.h"

namespace metagan {
namespace {

using cpu::Buffer;
using cpu::Rate;
using cpu::Tasks;
using cpu::UpdateKernels;

constexpr int64_t kBlock = 16384;       // elements of a block, the unit of work of a thread
constexpr int64_t kSmall = 2 * kBlock;  // fewer elements are done before another thread wakes

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls body(row, begin, end) for blocks of columns that cover every row; one unit of work holds several short rows.
template <class Body>
void for_each_block(int64_t rows, int64_t columns, int threads, const Body& body) {
    if (rows <= 0 || columns <= 0) return;
    const int64_t blocks = divide_up(columns, kBlock);
    const int64_t rows_at_a_time = std::max<int64_t>(1, kBlock / columns);
    if (rows * columns < kSmall) threads = 1;
    parallel_for(divide_up(rows, rows_at_a_time) * blocks, threads, [&](int64_t index) {
        const int64_t first = index / blocks * rows_at_a_time;
        const int64_t begin = index % blocks * kBlock;
        for (int64_t row = first; row < std::min(first + rows_at_a_time, rows); ++row)
            body(row, begin, std::min(begin + kBlock, columns));
    });
}

int64_t storage_size(DType dtype) { return dtype == DType::bfloat16 ? 2 : dtype == DType::float64 ? 8 : 4; }

// Address arithmetic and access to numbers for the untyped buffers of one dtype.
class Addresses {
  public:
    explicit Addresses(DType dtype) : dtype_(dtype), size_(storage_size(dtype)) {}

    void* at(void* row, int64_t column) const { return row ? static_cast<char*>(row) + column * size_ : nullptr; }
    const void* at(const void* row, int64_t column) const { return at(const_cast<void*>(row), column); }
    void* at(Matrix matrix, int64_t row, int64_t column) const {
        return at(matrix.data, row * matrix.row_stride + column);
    }
    Buffer at(Matrix in, Matrix out, int64_t row, int64_t column) const {
        return {at(in, row, column), at(out, row, column)};
    }
    Buffer at(const void* in, void* out, int64_t column) const { return {at(in, column), at(out, column)}; }
    Tasks at(Matrix adapted, int64_t tasks, const void* weights, int64_t column) const {
        return {{at(adapted, 0, column), adapted.row_stride}, tasks, weights};
    }

    // Calls body(begin, end, rate) for each segment of the learning rate within [begin, end).
    template <class Body>
    void for_each_segment(const LearningRate& lr, int64_t row, int64_t begin, int64_t end, const Body& body) const {
        if (!lr.data) return body(begin, end, Rate{nullptr, lr.value});
        const int64_t* const last = lr.segment_ends + lr.segments;
        const int64_t* stop = lr.segment_ends ? std::upper_bound(lr.segment_ends, last, begin) : nullptr;
        while (begin < end) {
            const int64_t segment = stop ? stop - lr.segment_ends : 0;
            const int64_t until = stop ? std::min(end, *stop) : end;
            body(begin, until, rate(lr, row * lr.row_stride + segment * lr.segment_stride, begin));
            begin = until;
            while (stop && stop != last && *stop <= begin) ++stop;
        }
    }

    double arithmetic(const void* values, int64_t index) const {
        return dtype_ == DType::float64 ? static_cast<const double*>(values)[index]
                                        : static_cast<const float*>(values)[index];
    }
    void set_arithmetic(void* values, int64_t index, double value) const {
        if (dtype_ == DType::float64)
            static_cast<double*>(values)[index] = value;
        else
            static_cast<float*>(values)[index] = static_cast<float>(value);
    }

  private:
    Rate rate(const LearningRate& lr, int64_t offset, int64_t column) const {
        if (lr.element_stride == 0) return {nullptr, arithmetic(lr.data, offset)};
        const int64_t size = dtype_ == DType::float64 ? 8 : 4;
        return {static_cast<const char*>(lr.data) + (offset + column * lr.element_stride) * size, 0};
    }

    DType dtype_;
    int64_t size_;
};

// Elements [begin, end) of one piece.
struct Part {
    DType dtype;
    int64_t size;
    Buffer params;
    const void* grads;
    Buffer state[kMostState];
    double step;

    Part(const Piece& piece, int64_t begin, int64_t end) : dtype(piece.dtype), size(end - begin), step(piece.step) {
        const Addresses of(dtype);
        params = of.at(piece.params, piece.params, begin);
        grads = of.at(piece.grads, begin);
        for (int i = 0; i < kMostState; ++i) state[i] = of.at(piece.state[i], piece.state[i], begin);
    }
};

// Calls body(part) for parts that cover all pieces. Blocks are taken from the concatenation of all pieces.
template <class Body>
void for_each_part(const std::vector<Piece>& pieces, int threads, const Body& body) {
    std::vector<int64_t> ends;
    ends.reserve(pieces.size());
    int64_t total = 0;
    for (const Piece& piece : pieces) ends.push_back(total += piece.size);
    if (total < kSmall) threads = 1;
    parallel_for(divide_up(total, kBlock), threads, [&](int64_t index) {
        int64_t begin = index * kBlock;
        const int64_t end = std::min(begin + kBlock, total);
        for (size_t i = std::upper_bound(ends.begin(), ends.end(), begin) - ends.begin(); begin < end; ++i) {
            const int64_t first = ends[i] - pieces[i].size, until = std::min(end, ends[i]);
            if (begin < until) body(Part(pieces[i], begin - first, until - first));
            begin = std::max(begin, until);
        }
    });
}

// Returns the value of a number.
double read(const Number& number) { return number.data ? *number.data : number.value; }

AdamOptions read(AdamOptions options) {
    options.inverse_bias1 = read(options.inverse_bias1);
    options.inverse_bias2 = read(options.inverse_bias2);
    return options;
}

}  // namespace

void sgd_step(const Launch& launch, Matrix params, Matrix grads, Matrix momentum_buffer, Matrix params_out,
              Matrix momentum_buffer_out, const LearningRate& lr, const SgdOptions& options) {
    const Addresses of(launch.dtype);
    const auto& kernel = update_kernels().sgd_step;
    for_each_block(launch.rows, launch.columns, launch.threads, [&](int64_t row, int64_t first, int64_t last) {
        of.for_each_segment(lr, row, first, last, [&](int64_t begin, int64_t end, Rate rate) {
            kernel(launch.dtype, end - begin, of.at(params, params_out, row, begin), of.at(grads, row, begin),
                   of.at(momentum_buffer, momentum_buffer_out, row, begin), rate, options);
        });
    });
}

void adam_step(const Launch& launch, Matrix params, Matrix grads, Matrix exp_avg, Matrix exp_avg_sq, Matrix params_out,
               Matrix exp_avg_out, Matrix exp_avg_sq_out, const LearningRate& lr, const AdamOptions& options) {
    const Addresses of(launch.dtype);
    const AdamOptions known = read(options);
    const auto& kernel = update_kernels().adam_step;
    for_each_block(launch.rows, launch.columns, launch.threads, [&](int64_t row, int64_t first, int64_t last) {
        of.for_each_segment(lr, row, first, last, [&](int64_t begin, int64_t end, Rate rate) {
            kernel(launch.dtype, end - begin, of.at(params, params_out, row, begin), of.at(grads, row, begin),
                   of.at(exp_avg, exp_avg_out, row, begin), of.at(exp_avg_sq, exp_avg_sq_out, row, begin), Buffer{},
                   rate, known);
        });
    });
}

void rmsprop_step(const Launch& launch, Matrix params, Matrix grads, Matrix square_avg, Matrix momentum_buffer,
                  Matrix grad_avg, Matrix params_out, Matrix square_avg_out, Matrix momentum_buffer_out,
                  Matrix grad_avg_out, const LearningRate& lr, const RmspropOptions& options) {
    const Addresses of(launch.dtype);
    const auto& kernel = update_kernels().rmsprop_step;
    for_each_block(launch.rows, launch.columns, launch.threads, [&](int64_t row, int64_t first, int64_t last) {
        of.for_each_segment(lr, row, first, last, [&](int64_t begin, int64_t end, Rate rate) {
            kernel(launch.dtype, end - begin, of.at(params, params_out, row, begin), of.at(grads, row, begin),
                   of.at(square_avg, square_avg_out, row, begin),
                   of.at(momentum_buffer, momentum_buffer_out, row, begin), of.at(grad_avg, grad_avg_out, row, begin),
                   rate, options);
        });
    });
}

void sgd_steps(const std::vector<Piece>& pieces, int threads, bool maximize, double lr, const SgdOptions& options) {
    const auto& kernel = update_kernels().sgd_step;
    for_each_part(pieces, threads, [&](const Part& part) {
        kernel(part.dtype, part.size, part.params, {part.grads, maximize}, part.state[0], Rate{nullptr, lr}, options);
    });
}

void adam_steps(const std::vector<Piece>& pieces, int threads, bool maximize, double lr, const AdamOptions& options) {
    const auto& kernel = update_kernels().adam_step;
    for_each_part(pieces, threads, [&](const Part& part) {
        AdamOptions at_step = options;
        at_step.inverse_bias1 = 1 / (1 - std::pow(options.beta1, part.step));
        at_step.inverse_bias2 = 1 / (1 - std::pow(options.beta2, part.step));
        kernel(part.dtype, part.size, part.params, {part.grads, maximize}, part.state[0], part.state[1], part.state[2],
               Rate{nullptr, lr}, at_step);
    });
}

void rmsprop_steps(const std::vector<Piece>& pieces, int threads, bool maximize, double lr,
                   const RmspropOptions& options) {
    const auto& kernel = update_kernels().rmsprop_step;
    for_each_part(pieces, threads, [&](const Part& part) {
        kernel(part.dtype, part.size, part.params, {part.grads, maximize}, part.state[0], part.state[1], part.state[2],
               Rate{nullptr, lr}, options);
    });
}

void reptile_interpolate(const Launch& launch, const void* initial, Matrix adapted, const void* weights, void* out,
                         Number step_size) {
    const Addresses of(launch.dtype);
    const double known = read(step_size);
    const auto& kernel = update_kernels().reptile_interpolate;
    for_each_block(1, launch.columns, launch.threads, [&](int64_t, int64_t begin, int64_t end) {
        kernel(launch.dtype, end - begin, of.at(initial, out, begin), of.at(adapted, launch.rows, weights, begin),
               known);
    });
}

void reptile_gradient(const Launch& launch, const void* initial, Matrix adapted, const void* weights, void* out) {
    const Addresses of(launch.dtype);
    const auto& kernel = update_kernels().reptile_gradient;
    for_each_block(1, launch.columns, launch.threads, [&](int64_t, int64_t begin, int64_t end) {
        kernel(launch.dtype, end - begin, of.at(initial, out, begin), of.at(adapted, launch.rows, weights, begin));
    });
}

void meta_adam_step(const Launch& launch, const void* params, Matrix adapted, const void* weights, const void* exp_avg,
                    const void* exp_avg_sq, void* params_out, void* exp_avg_out, void* exp_avg_sq_out,
                    const LearningRate& lr, const AdamOptions& options) {
    const Addresses of(launch.dtype);
    const AdamOptions known = read(options);
    const auto& kernel = update_kernels().meta_adam_step;
    for_each_block(1, launch.columns, launch.threads, [&](int64_t, int64_t first, int64_t last) {
        of.for_each_segment(lr, 0, first, last, [&](int64_t begin, int64_t end, Rate rate) {
            kernel(launch.dtype, end - begin, of.at(params, params_out, begin),
                   of.at(adapted, launch.rows, weights, begin), of.at(exp_avg, exp_avg_out, begin),
                   of.at(exp_avg_sq, exp_avg_sq_out, begin), rate, known);
        });
    });
}

void clip_grad_norm(const Launch& launch, Matrix grads, Matrix grads_out, void* norms_out, double max_norm, double*) {
    const Addresses of(launch.dtype);
    const UpdateKernels& kernel = update_kernels();
    const int64_t blocks = divide_up(launch.columns, kBlock);
    const bool in_place = grads.data == grads_out.data;
    std::vector<double> sums(static_cast<size_t>(launch.rows * blocks));
    const auto clip = [&](int64_t row, int threads) {
        double* const parts = sums.data() + row * blocks;
        for_each_block(1, launch.columns, threads, [&](int64_t, int64_t begin, int64_t end) {
            parts[begin / kBlock] = kernel.sum_of_squares(launch.dtype, end - begin, of.at(grads, row, begin));
        });
        double total = 0;
        for (int64_t block = 0; block < blocks; ++block) total += parts[block];
        const double norm = std::sqrt(total), factor = clip_scale(norm, max_norm);
        of.set_arithmetic(norms_out, row, norm);
        if (in_place && factor == 1) return;
        for_each_block(1, launch.columns, threads, [&](int64_t, int64_t begin, int64_t end) {
            kernel.scale(launch.dtype, end - begin, of.at(grads, grads_out, row, begin), factor);
        });
    };
    // With enough rows each thread takes whole rows, so the second pass finds them cached; else all share each row.
    const bool by_rows = launch.rows >= launch.threads && launch.rows * launch.columns >= kSmall;
    parallel_for(launch.rows, by_rows ? launch.threads : 1,
                 [&](int64_t row) { clip(row, by_rows ? 1 : launch.threads); });
}

void ema_update(const Launch& launch, Matrix average, Matrix params, Matrix average_out, double decay) {
    const Addresses of(launch.dtype);
    const auto& kernel = update_kernels().ema_update;
    for_each_block(launch.rows, launch.columns, launch.threads, [&](int64_t row, int64_t begin, int64_t end) {
        kernel(launch.dtype, end - begin, of.at(average, average_out, row, begin), of.at(params, row, begin), decay);
    });
}

}  // namespace metagan
