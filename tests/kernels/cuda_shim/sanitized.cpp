// Runs every op over buffers that end where their last element does, for AddressSanitizer and ThreadSanitizer to watch.
// Other tests check the values.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <type_traits>

#include "../../../csrc/cuda/clip_grad_norm.cu"
#include "../../../csrc/cuda/tasks.cu"
#include "../../../csrc/cuda/updates.cu"

using namespace metagan;
using namespace metagan::cuda;

namespace {

size_t size_of(DType dtype) { return dtype == DType::bfloat16 ? 2 : dtype == DType::float64 ? 8 : 4; }

// Memory of exactly `bytes` zero bytes, 0 in any of the types.
class Memory {
  public:
    explicit Memory(size_t bytes) : data_(std::calloc(bytes ? bytes : 1, 1), std::free) {}
    template <class T = void>
    T* get() const {
        return static_cast<T*>(data_.get());
    }

  private:
    std::shared_ptr<void> data_;
};

// Runs an op over operands that `make` returns for null pointers to their types.
template <class Make, class... Operands>
void call(const DeviceLaunch& launch, const Make& make, void (*op)(const DeviceLaunch&, Operands...)) {
    op(launch, make(static_cast<std::decay_t<Operands>*>(nullptr))...);
}

void run_all(DType dtype, int64_t rows, int64_t columns, int64_t stride) {
    const DeviceLaunch launch{dtype, rows, columns, {0, nullptr}};
    const size_t size = size_of(dtype), arithmetic = dtype == DType::float64 ? 8 : 4;
    std::vector<Memory> memory;
    const auto matrix = [&] {
        memory.emplace_back(((rows - 1) * stride + columns) * size);
        return Matrix{memory.back().get(), stride};
    };
    const auto row = [&] {
        memory.emplace_back(columns * size);
        return memory.back().get();
    };
    const Memory rates(rows * columns * arithmetic), weights(rows * arithmetic), norms(rows * arithmetic),
        sums(rows * 2 * sizeof(double)), ends(2 * sizeof(int64_t));
    ends.get<int64_t>()[0] = columns / 2;
    ends.get<int64_t>()[1] = columns;
    LearningRate number, elements, segments;
    number.value = 0.1;
    elements.data = segments.data = rates.get();
    elements.row_stride = columns;
    elements.element_stride = 1;
    segments.segment_stride = 1;
    segments.segment_ends = ends.get<int64_t>();
    segments.segments = 2;
    const AdamOptions adam{0.9, 0.999, 10, 1000, 1e-8, 0, 0.1, true};
    const Memory numbers(2 * sizeof(double));
    const Number first(numbers.get<double>()), second(numbers.get<double>() + 1);

    const auto make = [&](auto* kind) {
        using Operand = std::remove_pointer_t<decltype(kind)>;
        if constexpr (std::is_same_v<Operand, Matrix>)
            return matrix();
        else if constexpr (std::is_same_v<Operand, LearningRate>)
            return elements;
        else if constexpr (std::is_pointer_v<Operand>)
            return static_cast<Operand>(row());
        else
            return Operand{};
    };
#define METAGAN_CALL(op) call(launch, make, cuda::op);
    METAGAN_OPS(METAGAN_CALL)
#undef METAGAN_CALL

    // Other modes: in place, other learning rates, without optional operands, numbers in memory.
    const Matrix m = matrix(), n = matrix();
    sgd_step(launch, m, matrix(), n, m, n, elements, {0.9, 0, 0.1, true});  // in place
    sgd_step(launch, matrix(), matrix(), {}, matrix(), {}, segments, {0, 0, 0, false});
    adam_step(launch, matrix(), matrix(), matrix(), matrix(), matrix(), matrix(), matrix(), number, adam);
    adam_step(launch, matrix(), matrix(), matrix(), matrix(), matrix(), matrix(), matrix(), number,
              {0.9, 0.999, first, second, 1e-8, 0, 0.1, true});
    rmsprop_step(launch, matrix(), matrix(), matrix(), matrix(), matrix(), matrix(), matrix(), matrix(), matrix(),
                 segments, {0.9, 1e-8, 0, 0.9});
    reptile_interpolate(launch, row(), matrix(), nullptr, row(), 0.5);
    reptile_interpolate(launch, row(), matrix(), weights.get(), row(), first);
    meta_adam_step(launch, row(), matrix(), weights.get(), row(), row(), row(), row(), row(), elements, adam);
    clip_in_parts(launch, m, m, norms.get(), 0.0, nullptr, 0);  // in one launch; in place all is written when scaled
    clip_in_parts(launch, matrix(), matrix(), norms.get(), 0.0, sums.get<double>(), 2);
}

}  // namespace

int main() {
    run_all(DType::float32, 5, 48, 64);  // in packs; more rows than blocks, so that shared memory is reused
#ifndef __SANITIZE_THREAD__              // slow, and sharing between threads depends on neither type nor width
    run_all(DType::float32, 3, 33, 37);  // one element at a time
    run_all(DType::bfloat16, 2, 48, 64);
    run_all(DType::float64, 1, 2, 2);
#endif
    std::puts("done");
}
