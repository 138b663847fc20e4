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

int64_t storage_size(DType dtype) { return dtype == DType::bfloat16 ? 2 : dtype == DType::float64 ? 8 : 4; }
int64_t arithmetic_size(DType dtype) { return dtype == DType::float64 ? 8 : 4; }

double arithmetic(DType dtype, const void* values, int64_t index) {
    return dtype == DType::float64 ? static_cast<const double*>(values)[index]
                                   : static_cast<const float*>(values)[index];
}
void set_arithmetic(DType dtype, void* values, int64_t index, double value) {
    if (dtype == DType::float64)
        static_cast<double*>(values)[index] = value;
    else
        static_cast<float*>(values)[index] = static_cast<float>(value);
}

// Columns [begin, begin + size) of one row. Called with operands, it returns their addresses there, null if absent.
struct Block {
    DType dtype;
    int64_t element_bytes, row, begin, size;

    const void* operator()(const void* data) const { return offset(data, begin); }
    Buffer operator()(const void* in, void* out) const { return {offset(in, begin), offset(out, begin)}; }
    const void* operator()(Matrix matrix) const { return offset(matrix.data, row * matrix.row_stride + begin); }
    Buffer operator()(Matrix in, Matrix out) const {
        return {(*this)(in), offset(out.data, row * out.row_stride + begin)};
    }
    Tasks operator()(Matrix adapted, int64_t tasks, const void* weights) const {
        return {{offset(adapted.data, begin), adapted.row_stride}, tasks, weights};
    }

  private:
    void* offset(const void* data, int64_t elements) const {
        char* const address = static_cast<char*>(const_cast<void*>(data));
        return address ? address + elements * element_bytes : nullptr;
    }
};

// Calls body(block) for blocks that cover all rows of a launch; one unit of work holds several short rows.
template <class Body>
void for_each_block(const Launch& launch, const Body& body) {
    const int64_t rows = launch.rows, columns = launch.columns;
    if (rows <= 0 || columns <= 0) return;
    const int64_t blocks = divide_up(columns, kBlock);
    const int64_t rows_at_a_time = std::max<int64_t>(1, kBlock / columns);
    const int threads = rows * columns < kSmall ? 1 : launch.threads;
    const int64_t element_bytes = storage_size(launch.dtype);
    parallel_for(divide_up(rows, rows_at_a_time) * blocks, threads, [&](int64_t index) {
        const int64_t first = index / blocks * rows_at_a_time;
        const int64_t begin = index % blocks * kBlock, size = std::min(kBlock, columns - begin);
        for (int64_t row = first; row < std::min(first + rows_at_a_time, rows); ++row)
            body(Block{launch.dtype, element_bytes, row, begin, size});
    });
}

// Launch over the first row alone, as the ops that combine tasks need.
Launch one_row(const Launch& launch) { return {launch.dtype, 1, launch.columns, launch.threads}; }

Rate rate_at(const LearningRate& lr, DType dtype, int64_t offset, int64_t column) {
    if (lr.element_stride == 0) return {nullptr, arithmetic(dtype, lr.data, offset)};
    return {static_cast<const char*>(lr.data) + (offset + column * lr.element_stride) * arithmetic_size(dtype), 0};
}

// Calls body(block, rate) for blocks that cover all rows, each within one segment of the learning rate.
template <class Body>
void for_each_block(const Launch& launch, const LearningRate& lr, const Body& body) {
    for_each_block(launch, [&](const Block& block) {
        if (!lr.data) return body(block, Rate{nullptr, lr.value});
        const int64_t* const last = lr.segment_ends + lr.segments;
        const int64_t* stop = lr.segment_ends ? std::upper_bound(lr.segment_ends, last, block.begin) : nullptr;
        Block part = block;
        for (const int64_t end = block.begin + block.size; part.begin < end; part.begin += part.size) {
            const int64_t segment = stop ? stop - lr.segment_ends : 0;
            part.size = (stop ? std::min(end, *stop) : end) - part.begin;
            body(part, rate_at(lr, part.dtype, part.row * lr.row_stride + segment * lr.segment_stride, part.begin));
            while (stop && stop != last && *stop <= part.begin + part.size) ++stop;
        }
    });
}

// Calls body(piece, block) for blocks that cover all pieces. They are taken from the concatenation of all pieces.
template <class Body>
void for_each_piece(const std::vector<Piece>& pieces, int threads, const Body& body) {
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
            const DType dtype = pieces[i].dtype;
            if (begin < until) body(pieces[i], Block{dtype, storage_size(dtype), 0, begin - first, until - begin});
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
    const auto kernel = update_kernels().sgd_step;
    for_each_block(launch, lr, [&](const Block& at, Rate rate) {
        kernel(at.dtype, at.size, at(params, params_out), at(grads), at(momentum_buffer, momentum_buffer_out), rate,
               options);
    });
}

void adam_step(const Launch& launch, Matrix params, Matrix grads, Matrix exp_avg, Matrix exp_avg_sq, Matrix params_out,
               Matrix exp_avg_out, Matrix exp_avg_sq_out, const LearningRate& lr, const AdamOptions& options) {
    const AdamOptions known = read(options);
    const auto kernel = update_kernels().adam_step;
    for_each_block(launch, lr, [&](const Block& at, Rate rate) {
        kernel(at.dtype, at.size, at(params, params_out), at(grads), at(exp_avg, exp_avg_out),
               at(exp_avg_sq, exp_avg_sq_out), Buffer{}, rate, known);
    });
}

void rmsprop_step(const Launch& launch, Matrix params, Matrix grads, Matrix square_avg, Matrix momentum_buffer,
                  Matrix grad_avg, Matrix params_out, Matrix square_avg_out, Matrix momentum_buffer_out,
                  Matrix grad_avg_out, const LearningRate& lr, const RmspropOptions& options) {
    const auto kernel = update_kernels().rmsprop_step;
    for_each_block(launch, lr, [&](const Block& at, Rate rate) {
        kernel(at.dtype, at.size, at(params, params_out), at(grads), at(square_avg, square_avg_out),
               at(momentum_buffer, momentum_buffer_out), at(grad_avg, grad_avg_out), rate, options);
    });
}

void sgd_steps(const std::vector<Piece>& pieces, int threads, bool maximize, double lr, const SgdOptions& options) {
    const auto kernel = update_kernels().sgd_step;
    for_each_piece(pieces, threads, [&](const Piece& piece, const Block& at) {
        kernel(at.dtype, at.size, at(piece.params, piece.params), {at(piece.grads), maximize},
               at(piece.state[0], piece.state[0]), Rate{nullptr, lr}, options);
    });
}

void adam_steps(const std::vector<Piece>& pieces, int threads, bool maximize, double lr, const AdamOptions& options) {
    const auto kernel = update_kernels().adam_step;
    for_each_piece(pieces, threads, [&](const Piece& piece, const Block& at) {
        AdamOptions at_step = options;
        at_step.inverse_bias1 = 1 / (1 - std::pow(options.beta1, piece.step));
        at_step.inverse_bias2 = 1 / (1 - std::pow(options.beta2, piece.step));
        const auto state = [&](int i) { return at(piece.state[i], piece.state[i]); };
        kernel(at.dtype, at.size, at(piece.params, piece.params), {at(piece.grads), maximize}, state(0), state(1),
               state(2), Rate{nullptr, lr}, at_step);
    });
}

void rmsprop_steps(const std::vector<Piece>& pieces, int threads, bool maximize, double lr,
                   const RmspropOptions& options) {
    const auto kernel = update_kernels().rmsprop_step;
    for_each_piece(pieces, threads, [&](const Piece& piece, const Block& at) {
        const auto state = [&](int i) { return at(piece.state[i], piece.state[i]); };
        kernel(at.dtype, at.size, at(piece.params, piece.params), {at(piece.grads), maximize}, state(0), state(1),
               state(2), Rate{nullptr, lr}, options);
    });
}

void reptile_interpolate(const Launch& launch, const void* initial, Matrix adapted, const void* weights, void* out,
                         Number step_size) {
    const double known = read(step_size);
    const auto kernel = update_kernels().reptile_interpolate;
    for_each_block(one_row(launch), [&](const Block& at) {
        kernel(at.dtype, at.size, at(initial, out), at(adapted, launch.rows, weights), known);
    });
}

void reptile_gradient(const Launch& launch, const void* initial, Matrix adapted, const void* weights, void* out) {
    const auto kernel = update_kernels().reptile_gradient;
    for_each_block(one_row(launch), [&](const Block& at) {
        kernel(at.dtype, at.size, at(initial, out), at(adapted, launch.rows, weights));
    });
}

void meta_adam_step(const Launch& launch, const void* params, Matrix adapted, const void* weights, const void* exp_avg,
                    const void* exp_avg_sq, void* params_out, void* exp_avg_out, void* exp_avg_sq_out,
                    const LearningRate& lr, const AdamOptions& options) {
    const AdamOptions known = read(options);
    const auto kernel = update_kernels().meta_adam_step;
    for_each_block(one_row(launch), lr, [&](const Block& at, Rate rate) {
        kernel(at.dtype, at.size, at(params, params_out), at(adapted, launch.rows, weights), at(exp_avg, exp_avg_out),
               at(exp_avg_sq, exp_avg_sq_out), rate, known);
    });
}

void clip_grad_norm(const Launch& launch, Matrix grads, Matrix grads_out, void* norms_out, double max_norm, double*) {
    const UpdateKernels& kernels = update_kernels();
    const int64_t blocks = divide_up(launch.columns, kBlock);
    const int64_t element_bytes = storage_size(launch.dtype);
    const bool in_place = grads.data == grads_out.data;
    std::vector<double> sums(static_cast<size_t>(launch.rows * blocks));
    const auto clip = [&](int64_t row, int threads) {
        const Launch of_row{launch.dtype, 1, launch.columns, threads};
        const Buffer buffer = Block{launch.dtype, element_bytes, row, 0, launch.columns}(grads, grads_out);
        double* const parts = sums.data() + row * blocks;
        for_each_block(of_row, [&](const Block& at) {
            parts[at.begin / kBlock] = kernels.sum_of_squares(at.dtype, at.size, at(buffer.in));
        });
        double total = 0;
        for (int64_t block = 0; block < blocks; ++block) total += parts[block];
        const double norm = std::sqrt(total), factor = clip_scale(norm, max_norm);
        set_arithmetic(launch.dtype, norms_out, row, norm);
        if (in_place && factor == 1) return;
        for_each_block(of_row,
                       [&](const Block& at) { kernels.scale(at.dtype, at.size, at(buffer.in, buffer.out), factor); });
    };
    // With enough rows each thread takes whole rows, so the second pass finds them cached; else all share each row.
    const bool by_rows = launch.rows >= launch.threads && launch.rows * launch.columns >= kSmall;
    parallel_for(launch.rows, by_rows ? launch.threads : 1,
                 [&](int64_t row) { clip(row, by_rows ? 1 : launch.threads); });
}

void ema_update(const Launch& launch, Matrix average, Matrix params, Matrix average_out, double decay) {
    const auto kernel = update_kernels().ema_update;
    for_each_block(launch,
                   [&](const Block& at) { kernel(at.dtype, at.size, at(average, average_out), at(params), decay); });
}

}  // namespace metagan
