// A network as a list of operations, each with the four passes of a layer over one task's activations:
//
//     forward           y = f(x; w)
//     tangent           y_dot = df/dx x_dot + df/dw w_dot
//     reverse           x_bar, w_bar from y_bar; and, where there is a tangent, x_bar, x_tilde, w_bar from y_bar and
//                       y_tilde, the cotangents of y and y_dot
//
// A value is [channels][images][height][width]. A tangent is images like any others: they lie behind those they belong
// to, in the same array, so that what is linear treats both in one go; their cotangents lie at the same place in the
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

namespace metagan {

struct Shape {
    int64_t channels = 0, height = 0, width = 0;

    int64_t positions() const { return height * width; }
    int64_t elements() const { return channels * positions(); }
};

// Images [first, first + count).
struct Range {
    int64_t first = 0, count = 0;

    int64_t end() const { return first + count; }
};

// What a plan says of an operation; executors/plan.py documents the fields of each kind.
struct OperationPlan {
    std::string kind, name;
    std::vector<int> inputs;
    int output = 0;
    std::vector<int64_t> parameters, integers;
    std::vector<double> numbers;
};

struct NetworkPlan {
    std::vector<Shape> values;
    std::vector<OperationPlan> operations;
    int input = 0, output = 0;
    int64_t numel = 0;
};

// Takes gradients as they are finished, part by part.
class GradientSink {
  public:
    virtual ~GradientSink() = default;
    // Rows of a parameter's gradient: row i, of `columns` elements, belongs to flat[offset + i * row_stride] on.
    // May be called by several threads at once, for different elements.
    virtual void take(int64_t offset, int64_t rows, int64_t columns, int64_t row_stride, const float* gradient,
                      int64_t gradient_stride) = 0;
};

// Whether cotangents outlive the reverse pass that made them, as Reverse::tangent_known needs, or end with it but for
// the input's and the output's, so that they can share memory.
enum class Cotangents { kept, passing };

// The activations of one task: values, cotangents, and what operations keep from one pass to another.
class Activations {
  public:
    Activations(const std::vector<Shape>& shapes, Placement, int64_t images, Cotangents, TransientArena&);

    int64_t images() const { return images_; }
    Cotangents cotangents() const { return cotangents_; }
    int64_t stride(int value) const { return images_ * shapes_[static_cast<size_t>(value)].positions(); }
    const Shape& shape(int value) const { return shapes_[static_cast<size_t>(value)]; }
    // First element of an image; channels are stride() apart.
    float* x(int value, int64_t image) { return at(placement_.values, value, image); }
    float* bar(int value, int64_t image) { return at(placement_.cotangents, value, image); }
    // Memory for one pass of one operation; what was there is lost. For images in a border, and for all else.
    float* border(int64_t floats) { return passing_.border.at_least(floats); }
    float* scratch(int64_t floats) { return passing_.scratch.at_least(floats); }

  private:
    float* at(const std::vector<Place>& places, int value, int64_t image) {
        const Place& place = places[static_cast<size_t>(value)];
        Array<float>& array = place.passes ? passing_.arrays[place.array] : own_[place.array];
        return array.data() + image * shapes_[static_cast<size_t>(value)].positions();
    }

    std::vector<Shape> shapes_;
    Placement placement_;
    int64_t images_;
    Cotangents cotangents_;
    TransientArena& passing_;
    std::vector<Array<float>> own_;
};

// A number that no other parameters have had, for as long as these do not change: what has been made of parameters may
// be kept under it.
int64_t new_version();

// One pass: with which parameters, over which images, in which precision, on how many threads.
struct Pass {
    const float* params = nullptr;
    int64_t version = 0;                       // of the parameters, by new_version(); 0: not known
    const float* params_dot = nullptr;         // direction of the tangent in parameter space; null: zero
    Precision precision = Precision::float32;  // of the operands of products
    int threads = 1;
    // Images that batch norm takes together; ranges of a pass begin and end at their borders.
    const std::vector<Range>* batches = nullptr;
    const std::function<bool()>* stop = nullptr;  // asked before each operation; true ends the pass early
};

struct Reverse {
    Range images;         // whose cotangents are carried back
    int64_t x_first = 0;  // where their values begin: images.first, except for cotangents kept beside a tangent's place
    Range primal{};       // within `images`: those with a tangent (count 0: none)
    Range tangent{};      // where that tangent and its cotangents are
    bool tangent_known = false;  // the tangent's cotangents have been computed before
    bool input_wanted = true;    // compute the cotangent of the network's input
    GradientSink* gradients = nullptr;
};

// An operation's memory in one task's workspace.
struct OperationState {
    virtual ~OperationState() = default;
};

class Operation {
  public:
    explicit Operation(OperationPlan plan) : plan_(std::move(plan)) {}
    virtual ~Operation() = default;

    const OperationPlan& plan() const { return plan_; }
    virtual std::unique_ptr<OperationState> state(const Activations&) const { return nullptr; }
    virtual int64_t state_bytes(int64_t images, Cotangents, Precision) const {
        static_cast<void>(images);
        return 0;
    }
    // Of Activations::border and ::scratch, the latter where a task has a thread of its own.
    virtual int64_t border_floats(int64_t images) const {
        static_cast<void>(images);
        return 0;
    }
    virtual int64_t scratch_floats(int64_t images) const {
        static_cast<void>(images);
        return 0;
    }
    // Whether values of input i are read again after the pass that made them.
    virtual bool rereads(size_t i) const {
        static_cast<void>(i);
        return true;
    }
    // Whether an image's values depend on other images of its batch.
    virtual bool mixes_images() const { return false; }
    virtual void forward(const Pass&, Activations&, OperationState*, Range) const = 0;
    virtual void tangent(const Pass&, Activations&, OperationState*, Range primal, Range tangent) const = 0;
    // Writes the cotangent of input i where x_bar[i] says (first element of images.first, with the value's stride), or
    // nowhere if that is null; x_tilde likewise for tangent.first.
    virtual void reverse(const Pass&, Activations&, OperationState*, const Reverse&, float* const* x_bar,
                         float* const* x_tilde) const = 0;

  protected:
    int input(size_t i = 0) const { return plan_.inputs[i]; }
    int output() const { return plan_.output; }

  private:
    OperationPlan plan_;
};

std::unique_ptr<Operation> make_operation(const OperationPlan&, const std::vector<Shape>& shapes);

class Network;

// What one task needs of a network besides parameters.
class Workspace {
  public:
    Workspace(const Network&, int64_t images, Cotangents, TransientArena&);

    Activations activations;

  private:
    friend class Network;
    std::vector<std::unique_ptr<OperationState>> states_;
    std::vector<Array<float>> extra_;  // a second cotangent, for values that several operations read
    // Of a reverse pass: values that it has reached, where the inputs' cotangents go, inputs reached before.
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
    // Without what passes, for which `passing` grows.
    int64_t workspace_bytes(int64_t images, Cotangents, Precision, TransientArena& passing) const;

    void forward(const Pass&, Workspace&, Range) const;
    void tangent(const Pass&, Workspace&, Range primal, Range tangent) const;
    void reverse(const Pass&, Workspace&, const Reverse&) const;

  private:
    friend class Workspace;
    Placement place(int64_t images, Cotangents, TransientArena&) const;

    NetworkPlan plan_;
    std::vector<std::unique_ptr<Operation>> operations_;
    std::vector<int> readers_;  // operations that read each value
    bool shares_parameters_ = false, mixes_images_ = false;
};

}  // namespace metagan
