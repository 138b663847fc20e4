// Inner loops and meta-gradients of a task batch. Addresses are those of contiguous float32 arrays;
// metagan_fast/_core.pyi gives their shapes.
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
#include "optimizer.h"

namespace metagan {

struct EnginePlan {
    NetworkPlan generator, discriminator;
    LossPlan loss;
    OptimizerPlan optimizer;
    int64_t critic_steps = 1;
    Precision precision = Precision::float32;
};

// What an inner loop draws on; null where absent.
struct TaskData {
    int64_t tasks = 0, shots = 0, steps = 0, batch = 0, threads = 1;
    std::vector<double> generator_lrs, discriminator_lrs;
    const float *initial_generator = nullptr, *initial_discriminator = nullptr;
    const float* support = nullptr;
    const int64_t* support_index = nullptr;
    const float *discriminator_latents = nullptr, *generator_latents = nullptr, *interpolation = nullptr;
    int64_t generator_updates = 0, discriminator_updates = 0;  // made before, by the carried optimizer state
    float* metrics = nullptr;                                  // [rows][tasks]
    float* step_losses = nullptr;                              // [steps][discriminator's, generator's][tasks]
};

struct QueryData {
    int64_t query = 0, evaluations = 1;
    const float* images = nullptr;
    const float *discriminator_latents = nullptr, *generator_latents = nullptr, *interpolation = nullptr;
    // Of the opponent's adaptation to the query images, [steps][critic_steps][tasks][query].
    const float *adaptation_latents = nullptr, *adaptation_interpolation = nullptr;
};

// Where adapted parameters go: rows [tasks][numel] of parameters and of each optimizer buffer, or, without rows, the
// mean over tasks of initial - adapted ones.
struct Outputs {
    float* params = nullptr;
    std::vector<float*> buffers;
    float* difference = nullptr;
};

// Which discriminator judges the generator's query loss: the one adapted with it, the initial one, or the initial one
// adapted to the query images against the adapted generator.
enum class Opponent : int { adapted, initial, on_query };

struct QueryObjective {
    std::vector<double> step_weights;
    bool multi_step = false, first_order = false;
    Opponent opponent = Opponent::adapted;
};

class Worker;

class Engine {
  public:
    explicit Engine(EnginePlan);
    ~Engine();

    const EnginePlan& plan() const { return plan_; }
    const Network& generator() const { return generator_; }
    const Network& discriminator() const { return discriminator_; }
    // A penalty's first reverse pass leaves cotangents for the second.
    Cotangents discriminator_cotangents() const {
        return plan_.loss.penalty == LossPlan::Penalty::none ? Cotangents::passing : Cotangents::kept;
    }

    // The adjoint of a discriminator's update takes real and fake images one after another, which halves its memory,
    // unless they meet in a batch norm.
    int64_t adjoint_parts() const { return plan_.loss.separate_batches || !discriminator_.mixes_images() ? 2 : 1; }

    // `interrupted` is called by the calling thread, now and then; when it returns true the call ends early, what it
    // has written is worthless, and the result is false.
    using Interrupted = std::function<bool()>;

    bool inner_loop(const TaskData&, const Outputs& generator, const Outputs& discriminator, const Interrupted&);
    bool query_gradient(const TaskData&, const QueryData&, const QueryObjective&, float* generator_gradient,
                        float* discriminator_gradient, const Interrupted&);
    bool query_losses(const TaskData&, const QueryData&, const float* generator, const float* discriminator,
                      const Interrupted&);
    bool generate(int64_t tasks, int64_t count, int64_t threads, const float* generator, const float* latents,
                  float* images, const Interrupted&);
    // Of one worker thread.
    int64_t workspace_bytes(const TaskData&, const QueryData&, Opponent, bool adjoint) const;

  private:
    friend class Worker;

    struct Images {
        int64_t generator, discriminator;
    };
    // What a worker's networks hold at once.
    Images images_held(const TaskData&, const QueryData&, bool adjoint) const;

    // Workers and their memory, kept from call to call.
    struct Workers {
        std::mutex mutex;  // guards `busy`
        std::condition_variable freed;
        bool busy = false;  // in a call, of which there is one at a time
        std::vector<std::unique_ptr<Worker>> all;
    };

    // Has the workers for as long as it lives, once other threads' calls have ended; or never, if interrupted before.
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

    // How a call's tasks are shared out: to a worker a thread, or one after another to one worker with all threads.
    struct Sharing {
        Sharing(int64_t tasks, int64_t threads);

        int64_t tasks, workers;
        int threads;  // of each worker
    };

    // Calls body(worker, task) for every task.
    bool for_each_task(Workers&, const Sharing&, const Images&, const Interrupted&,
                       const std::function<void(Worker&, int64_t)>& body);

    EnginePlan plan_;
    Network generator_, discriminator_;
    PerProcess<Workers> workers_;
};

}  // namespace metagan
