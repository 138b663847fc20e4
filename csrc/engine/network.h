// A network as a list of operations, each with the four passes of a layer over one task's activations (docs/engine.md):
//
//     forward           y = f(x; w)
//     tangent           y_dot = df/dx x_dot + df/dw w_dot
//     reverse           x_bar, w_bar from y_bar
//     reverse of pair   x_bar, x_tilde, w_bar from y_bar and y_tilde, the cotangents of y and y_dot
//
// A value is [channels][images][height][width]. Tangents are stored as further images, behind their primal images in
// the same array, so that a linear operation processes both at once; their cotangents have the same indices in the
// array of cotangents.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cpu/gemm/gemm.h"
#include "cpu/runtime/array.h"
#include "memory_plan.h"
#include "plan.h"

namespace metagan {

// Images [first, first + count).
struct Range {
    int64_t first = 0, count = 0;

    int64_t end() const { return first + count; }
};

// Consumer of parameter gradients, called with each part as soon as it is complete.
class GradientSink {
  public:
    virtual ~GradientSink() = default;
    // Takes rows of a parameter's gradient: row i, of `columns` elements, belongs to flat[offset + i * row_stride] on.
    // Threads may call this concurrently, for different elements.
    virtual void take(int64_t offset, int64_t rows, int64_t columns, int64_t row_stride, const float* gradient,
                      int64_t gradient_stride) = 0;
};

// Lifetime of cotangents: kept after the reverse pass that made them, as Reverse::tangent_known needs, or transient, so
// that they can share memory (those of the network's input and output are kept in either case).
enum class Cotangents { kept, transient };

// Values and cotangents of one task.
class Activations {
  public:
    Activations(const std::vector<Shape>& shapes, Placement, int64_t images, Cotangents, TransientArena&);

    int64_t images() const { return images_; }
    Cotangents cotangents() const { return cotangents_; }
    int64_t stride(int value) const { return images_ * shapes_[static_cast<size_t>(value)].positions(); }
    const Shape& shape(int value) const { return shapes_[static_cast<size_t>(value)]; }
    // First element of an image; consecutive channels are stride() apart.
    float* x(int value, int64_t image) { return at(placement_.values, value, image); }
    float* bar(int value, int64_t image) { return at(placement_.cotangents, value, image); }
    // Uninitialized memory for one pass of one operation: for padded images, and for everything else.
    float* border(int64_t floats) { return arena_.border.at_least(floats); }
    float* scratch(int64_t floats) { return arena_.scratch.at_least(floats); }

  private:
    float* at(const std::vector<Place>& places, int value, int64_t image) {
        const Place& place = places[static_cast<size_t>(value)];
        Array<float>& array = place.transient ? arena_.arrays[place.array] : own_[place.array];
        return array.data() + image * shapes_[static_cast<size_t>(value)].positions();
    }

    std::vector<Shape> shapes_;
    Placement placement_;
    int64_t images_;
    Cotangents cotangents_;
    TransientArena& arena_;
    std::vector<Array<float>> own_;
};

// Process-unique version of a parameter buffer; caches derived from it are keyed by this.
int64_t new_version();

// Context of a pass: parameters, precision, threads, batches.
struct Pass {
    const float* params = nullptr;
    int64_t version = 0;                       // of the parameters, by new_version(); 0: unknown, nothing is cached
    const float* params_dot = nullptr;         // tangent of the parameters; null: zero
    Precision precision = Precision::float32;  // of the operands of matrix products
    int threads = 1;
    // Image ranges that batch norm normalizes together; the ranges of a pass are unions of them.
    const std::vector<Range>* batches = nullptr;
    const std::function<bool()>* stop = nullptr;  // polled before each operation; true ends the pass early
};

// Arguments of a reverse pass.
struct Reverse {
    Range images;         // indices of the cotangents that are propagated
    int64_t x_first = 0;  // index of their first value; differs from images.first for cotangents at tangents' indices
    Range primal{};       // images, within `images`, that have a tangent (count 0: none)
    Range tangent{};      // indices of their tangents and of the tangents' cotangents
    bool tangent_known = false;  // the tangents' cotangents are stored already, by an earlier pass
    bool input_wanted = true;    // compute the cotangent of the network's input
    GradientSink* gradients = nullptr;
};

// State of an operation in one task's workspace.
struct OperationState {
    virtual ~OperationState() = default;
};

class Operation {
  public:
    explicit Operation(OperationPlan plan) : plan_(std::move(plan)) {}
    virtual ~Operation() = default;

    const OperationPlan& plan() const { return plan_; }
    virtual std::unique_ptr<OperationState> state(const Activations&) const { return nullptr; }
    // Bytes of the state, with all that passes over at most `in_pass` of the images convert and cache.
    virtual int64_t state_bytes(int64_t images, int64_t in_pass, Cotangents, Precision) const {
        static_cast<void>(images), static_cast<void>(in_pass);
        return 0;
    }
    // Sizes of Activations::border and Activations::scratch.
    virtual int64_t border_floats(int64_t images) const {
        static_cast<void>(images);
        return 0;
    }
    virtual int64_t scratch_floats(int64_t images, int threads) const {
        static_cast<void>(images), static_cast<void>(threads);
        return 0;
    }
    // Whether a later pass reads the values of input i.
    virtual bool rereads(size_t i) const {
        static_cast<void>(i);
        return true;
    }
    // Whether an image's result depends on other images of its batch.
    virtual bool mixes_images() const { return false; }
    virtual void forward(const Pass&, Activations&, OperationState*, Range) const = 0;
    virtual void tangent(const Pass&, Activations&, OperationState*, Range primal, Range tangent) const = 0;
    // Writes the cotangent of input i to x_bar[i] (first element of image images.first, with the value's stride), and
    // the tangent's to x_tilde[i] (of image tangent.first); a null pointer skips it.
    virtual void reverse(const Pass&, Activations&, OperationState*, const Reverse&, float* const* x_bar,
                         float* const* x_tilde) const = 0;

  protected:
    int input(size_t i = 0) const { return plan_.inputs[i]; }
    int output() const { return plan_.output; }

  private:
    OperationPlan plan_;
};

class Network;

// Memory of one task's passes through a network, without parameters.
class Workspace {
  public:
    Workspace(const Network&, int64_t images, Cotangents, TransientArena&);

    Activations activations;

  private:
    friend class Network;
    std::vector<std::unique_ptr<OperationState>> states_;
    std::vector<Array<float>> extra_;  // addends of a cotangent, for values that several operations read
    // State of a reverse pass: values with a cotangent, destinations of the inputs' cotangents, inputs to accumulate.
    std::vector<bool> reached_;
    std::vector<float*> x_bar_, x_tilde_;
    std::vector<int> again_;
};

class Network {
  public:
    explicit Network(const NetworkPlan&);

    const NetworkPlan& plan() const { return plan_; }
    const Shape& input_shape() const { return plan_.values[static_cast<size_t>(plan_.input)]; }
    const Shape& output_shape() const { return plan_.values[static_cast<size_t>(plan_.output)]; }
    bool shares_parameters() const { return shares_parameters_; }
    bool mixes_images() const { return mixes_images_; }
    // Bytes of a Workspace whose passes process at most `in_pass` images, tangents apart, not counting the transient
    // buffers, for which the arena is enlarged.
    int64_t workspace_bytes(int64_t images, int64_t in_pass, Cotangents, Precision, int threads, TransientArena&) const;

    void forward(const Pass&, Workspace&, Range) const;
    void tangent(const Pass&, Workspace&, Range primal, Range tangent) const;
    void reverse(const Pass&, Workspace&, const Reverse&) const;

  private:
    friend class Workspace;
    // `threads` of a pass size the arena's scratch, which grows where a pass has more.
    Placement place(int64_t images, Cotangents, int threads, TransientArena&) const;

    NetworkPlan plan_;
    std::vector<std::unique_ptr<Operation>> operations_;
    std::vector<int> readers_;  // number of operations that read each value
    bool shares_parameters_ = false, mixes_images_ = false;
};

}  // namespace metagan
