// One task at a time: steps of the inner loop, query losses, and the adjoint of a step.
#pragma once

#include "engine.h"

namespace metagan {

// Both networks' parameters, or a pair of arrays like them.
struct Pair {
    float *generator = nullptr, *discriminator = nullptr;
};

// Cotangents of a state on their way back through the inner loop: of both networks' parameters and of their momentum;
// and, at an update of one of them, the cotangent of its gradient, in which direction second derivatives are taken.
struct AdjointState {
    Pair params, momentum, direction;
};

// A network's parameters and their version, which is not known of some.
struct Parameters {
    const float* values;
    int64_t version = 0;

    Parameters(const float* array) : values(array) {}
    Parameters(const NetworkState& state) : values(state.params), version(state.version) {}
};

struct Scores {
    double loss = 0, penalty = 0;
};

// Uses of a worker's memory that outlives a call; a network has up to two optimizer buffers.
enum Slot : size_t {
    kSharedGradient,  // of parameters that several operations share
    kGeneratorBuffers,
    kDiscriminatorBuffers = kGeneratorBuffers + 2,
    kParams = kDiscriminatorBuffers + 2,
    kStates,
    kSweeps,
    kOpponent,
};

class Worker {
  public:
    Worker(const Engine&, int64_t generator_images, int64_t discriminator_images);

    bool fits(int64_t generator_images, int64_t discriminator_images) const;
    int threads = 1;                              // that share this worker's task
    const std::function<bool()>* stop = nullptr;  // true: give up
    bool stopped() const { return stop && (*stop)(); }

    // One update of the discriminator: `real` holds the rows of images [count] (addresses), latents [count][latent].
    Scores update_discriminator(NetworkState& discriminator, Parameters generator, const float* const* real,
                                const float* latents, const float* interpolation, int64_t count, double lr);
    double update_generator(NetworkState& generator, Parameters discriminator, const float* const* real,
                            const float* latents, int64_t count, double lr);

    // Losses on given images and, where sinks are given, their gradients.
    Scores discriminator_loss(Parameters discriminator, Parameters generator, const float* const* real,
                              const float* latents, const float* interpolation, int64_t count,
                              GradientSink* discriminator_gradient, GradientSink* generator_gradient);
    double generator_loss(Parameters discriminator, Parameters generator, const float* const* real,
                          const float* latents, int64_t count, GradientSink* generator_gradient,
                          GradientSink* discriminator_gradient);

    // Adds to each sweep's `params` the product of its direction with the second derivatives of a loss: the gradient,
    // by both networks, of the derivative of the discriminator's loss along a direction in the discriminator's
    // parameters...
    void discriminator_adjoint(const float* discriminator, const float* generator, const float* const* real,
                               const float* latents, int64_t count, const std::vector<AdjointState>& sweeps);
    // ... and of the generator's loss along one in the generator's.
    void generator_adjoint(const float* discriminator, const float* generator, const float* latents, int64_t count,
                           const std::vector<AdjointState>& sweeps);

    void generate(const float* generator, const float* latents, int64_t count, float* images);

    float* array(size_t slot, int64_t floats);
    // Copy and clear whole states, whose pages may be touched for the first time; end early when the call is to stop.
    void copy(const float* from, int64_t floats, float* to) const;
    void clear(float* array, int64_t floats) const;

  private:
    Pass pass(Parameters, const float* params_dot = nullptr) const;
    void make_fake(Parameters generator, const float* latents, int64_t count);
    void fake_to_discriminator(int64_t fake_first, int64_t count, int64_t to);
    void images_to_discriminator(const float* const* images, int64_t count, int64_t to);
    void cotangents_to_generator(int64_t from, int64_t count, int64_t to);
    void reverse_generator(Parameters, int64_t from, int64_t count, GradientSink& gradient);
    float* scores(int64_t image);
    float* score_cotangents(int64_t image);
    void set_batches(int64_t count, bool penalty);
    Scores discriminator_passes(Parameters discriminator, const float* const* real, const float* interpolation,
                                int64_t count, GradientSink* gradient, bool input_wanted);
    void adjoint_of_images(const float* discriminator, const float* generator, const float* const* real, Range part,
                           int64_t count, const std::vector<AdjointState>& sweeps);

    const Engine& engine_;
    TransientArena passing_;
    Workspace generator_, discriminator_;
    int64_t generator_images_, discriminator_images_;
    std::vector<Range> batches_;
    std::vector<Array<float>> arrays_;
};

}  // namespace metagan
