// Inner loops and meta-gradients of a task batch. Pointers are to contiguous float32 arrays, whose shapes are in
// metagan_fast/_core.pyi.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "cpu/runtime/per_process.h"
#include "loss.h"
#include "network.h"
#include "ops/names.h"
#include "optimizer.h"

namespace metagan {

constexpr Named<Precision> kPrecisions[] = {{"float32", Precision::float32}, {"bf16", Precision::bf16}};

// Networks, loss and inner optimizer of an engine.
struct EnginePlan {
    NetworkPlan generator, discriminator;
    LossPlan loss;
    OptimizerPlan optimizer;
    int64_t critic_steps = 1, generator_steps = 1;  // updates of each network a step
    Precision precision = Precision::float32;
};

// Inputs of an inner loop; null where absent.
struct TaskData {
    int64_t tasks = 0, shots = 0, steps = 0, threads = 1;
    Counts update;  // images of an update
    std::vector<double> generator_lrs, discriminator_lrs;
    const float *initial_generator = nullptr, *initial_discriminator = nullptr;
    const float* support = nullptr;
    const int64_t* support_index = nullptr;
    const float *discriminator_latents = nullptr, *generator_latents = nullptr, *interpolation = nullptr;
    int64_t generator_updates = 0, discriminator_updates = 0;  // step counts of the carried optimizer state
    float* metrics = nullptr;                                  // [rows][tasks]
    float* step_losses = nullptr;                              // [steps][discriminator, generator][tasks]
    // A mean over more tasks than the call's: `added` of `summed` tasks are in the outputs already, as a sum; the call
    // goes on with it, and the last one divides.
    int64_t added = 0, summed = 0;
};

// Query images and their noise.
struct QueryData {
    int64_t query = 0, evaluations = 1;  // as many images are generated as there are query images
    const float* images = nullptr;
    const float *discriminator_latents = nullptr, *generator_latents = nullptr, *interpolation = nullptr;
    // Noise of the opponent's adaptation to the query images, [steps][critic_steps][tasks][query].
    const float *adaptation_latents = nullptr, *adaptation_interpolation = nullptr;
};

// Destination of one network's adapted parameters: rows [tasks][numel] of parameters and of each optimizer buffer or,
// if `params` is null, the mean over tasks of initial - adapted parameters.
struct Outputs {
    float* params = nullptr;
    std::vector<float*> buffers;
    float* difference = nullptr;
};

// Discriminator of the generator's query loss: adapted with the generator, initial, or the initial one adapted to the
// query images against the adapted generator.
enum class Opponent { adapted, initial, on_query };
// Names of the generator's query objective that each discriminator makes.
constexpr Named<Opponent> kObjectives[] = {
    {"support", Opponent::adapted}, {"initial", Opponent::initial}, {"query", Opponent::on_query}};

struct QueryObjective {
    std::vector<double> step_weights;
    bool multi_step = false, first_order = false;
    Opponent opponent = Opponent::adapted;
    int64_t segment = 1;  // steps of a segment of the second-order sweep (trajectory.h), at most all
};

// Bytes that calls of an engine take, beside the caller's arrays.
struct MemoryUse {
    int64_t workers = 0;  // that keep what follows from call to call, all together
    int64_t activations = 0, optimizer_state = 0, adjoint = 0;  // `adjoint`: parameters and cotangents of the sweep
    int64_t scratch = 0;                                        // of all threads
    int64_t sums = 0;                                           // tasks' results that wait to be added, during a call
};

class Worker;

class Engine {
  public:
    explicit Engine(EnginePlan);
    ~Engine();

    const EnginePlan& plan() const { return plan_; }
    const Network& generator() const { return generator_; }
    const Network& discriminator() const { return discriminator_; }
    // A penalty's second reverse pass reads the cotangents of the first.
    Cotangents discriminator_cotangents() const {
        return plan_.loss.penalty == LossPlan::Penalty::none ? Cotangents::transient : Cotangents::kept;
    }

    // Whether the discriminator's results for real images do not depend on the fake ones: no batch norm normalizes both
    // together.
    bool parts_real_and_fake() const { return plan_.loss.separate_batches || !discriminator_.mixes_images(); }

    // Number of parts in which the adjoint of a discriminator update processes its images: real and fake images apart,
    // which halves the memory, where they can be parted.
    int64_t adjoint_parts() const { return parts_real_and_fake() ? 2 : 1; }

    // Indices of the discriminator's images during its update: real, then fake, the penalty's points and, behind all
    // images of the forward pass, their tangents (count 0: no penalty).
    struct StepImages {
        Range points, tangents;

        int64_t count() const { return tangents.end(); }
    };
    StepImages step_images(Counts) const;

    // Polled by the calling thread; when it returns true, the call ends early and returns false, and its outputs are
    // undefined.
    using Interrupted = std::function<bool()>;

    bool inner_loop(const TaskData&, const Outputs& generator, const Outputs& discriminator, const Interrupted&);
    bool query_gradient(const TaskData&, const QueryData&, const QueryObjective&, float* generator_gradient,
                        float* discriminator_gradient, const Interrupted&);
    bool query_losses(const TaskData&, const QueryData&, const float* generator, const float* discriminator,
                      const Interrupted&);
    bool generate(int64_t tasks, int64_t count, int64_t threads, const float* generator, const float* latents,
                  float* images, const Interrupted&);
    // Scores of given images.
    bool score(int64_t tasks, int64_t count, int64_t threads, const float* discriminator, const float* images,
               float* scores, const Interrupted&);
    // Memory of inner loops with these sizes and, if `objective` is not null, of a query gradient. `rows`: all adapted
    // parameters are returned, and no sum is made.
    MemoryUse memory_use(const TaskData&, const QueryData&, const QueryObjective*, bool rows) const;

  private:
    friend class Worker;

    // Image capacity of a worker's workspaces.
    struct Images {
        int64_t generator, discriminator;
    };
    Images images_held(const TaskData&, const QueryData&, bool adjoint) const;

    // Workers, kept from call to call with their memory.
    struct Workers {
        std::mutex mutex;  // guards `busy`
        std::condition_variable freed;
        bool busy = false;  // a call is running; there is at most one
        std::vector<std::unique_ptr<Worker>> all;
    };

    // Lock on the workers. The constructor waits for the calls of other threads; false if it was interrupted.
    class Turn {
      public:
        Turn(Workers&, const Interrupted&);
        ~Turn();
        Turn(const Turn&) = delete;
        Turn& operator=(const Turn&) = delete;
        explicit operator bool() const { return has_; }

      private:
        Workers& workers_;
        bool has_ = false;
    };

    // Parallelism of a call: across tasks, one single-threaded worker a thread, or within a task, one worker in all.
    struct Sharing {
        Sharing(int64_t tasks, int64_t threads);

        int64_t tasks, workers;
        int threads;  // threads of each worker
    };

    // Calls body(worker, task) for every task; false if interrupted.
    bool for_each_task(Workers&, const Sharing&, const Images&, const Interrupted&,
                       const std::function<void(Worker&, int64_t)>& body);

    EnginePlan plan_;
    Network generator_, discriminator_;
    PerProcess<Workers> workers_;
};

}  // namespace metagan
