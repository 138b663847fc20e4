// Passes of one task through both networks: inner updates, query losses, and the adjoints of updates.
#pragma once

#include <utility>

#include "engine.h"

namespace metagan {

// One array [numel] for each network.
struct Pair {
    float *generator = nullptr, *discriminator = nullptr;
};

// Adjoint of the inner loop's state: cotangents of both networks' parameters and momentum and, while an update is
// reversed, of its gradient: the direction of the Hessian-vector product.
struct AdjointState {
    Pair params, momentum, direction;
};

// Parameters of a network and their version (0: unknown).
struct Parameters {
    const float* values;
    int64_t version = 0;

    Parameters(const float* array) : values(array) {}
    Parameters(const NetworkState& state) : values(state.params), version(state.version) {}
};

// The discriminator's loss, and the penalty that it includes.
struct DiscriminatorLoss {
    double loss = 0, penalty = 0;
};

// Slots of Worker::array; a network has up to two optimizer buffers.
enum Slot : size_t {
    kSharedGradient,  // gradient of a network in which operations share parameters
    kGeneratorBuffers,
    kDiscriminatorBuffers = kGeneratorBuffers + 2,
    kParams = kDiscriminatorBuffers + 2,
    kAdjoints,
    kOpponent,
};

class Worker {
  public:
    Worker(const Engine&, int64_t generator_images, int64_t discriminator_images);

    bool fits(int64_t generator_images, int64_t discriminator_images) const;
    // Images of the generator's and of the discriminator's workspace.
    std::pair<int64_t, int64_t> capacity() const { return {generator_images_, discriminator_images_}; }
    int threads = 1;                              // threads of each pass
    const std::function<bool()>* stop = nullptr;  // polled; true: give up
    bool stopped() const { return stop && (*stop)(); }

    // One update of a network in place: `real` [count.real] points to images, latents are [count.fake][latent].
    DiscriminatorLoss update_discriminator(NetworkState& discriminator, Parameters generator, const float* const* real,
                                           const float* latents, const float* interpolation, Counts count, double lr);
    double update_generator(NetworkState& generator, Parameters discriminator, const float* const* real,
                            const float* latents, Counts count, double lr);

    // Loss on given images; its gradients go to the sinks that are not null.
    DiscriminatorLoss discriminator_loss(Parameters discriminator, Parameters generator, const float* const* real,
                                         const float* latents, const float* interpolation, Counts count,
                                         GradientSink* discriminator_gradient, GradientSink* generator_gradient);
    double generator_loss(Parameters discriminator, Parameters generator, const float* const* real,
                          const float* latents, Counts count, GradientSink* generator_gradient,
                          GradientSink* discriminator_gradient);

    // Adds a Hessian-vector product of the discriminator's loss to the `params` of each adjoint: the gradient, by both
    // networks, of the loss's derivative along direction.discriminator.
    void discriminator_adjoint(const float* discriminator, const float* generator, const float* const* real,
                               const float* latents, Counts count, const std::vector<AdjointState>& adjoints);
    // The same for the generator's loss along direction.generator.
    void generator_adjoint(const float* discriminator, const float* generator, const float* latents, int64_t count,
                           const std::vector<AdjointState>& adjoints);

    void generate(const float* generator, const float* latents, int64_t count, float* images);
    // Writes the discriminator's scores [count] of `images` [count][C][H][W].
    void score(const float* discriminator, const float* images, int64_t count, float* out);

    // Memory of a slot, kept from call to call; uninitialized.
    float* array(size_t slot, int64_t floats);
    // Copy or clear whole states; both end early when the call stops, as first-touch page faults make them slow.
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
    void set_batches(Counts, int64_t images);
    DiscriminatorLoss discriminator_passes(Parameters discriminator, const float* const* real,
                                           const float* interpolation, Counts count, GradientSink* gradient,
                                           bool input_wanted);
    void adjoint_of_images(const float* discriminator, const float* generator, const float* const* real, Range part,
                           Counts count, const std::vector<AdjointState>& adjoints);

    const Engine& engine_;
    TransientArena arena_;
    Workspace generator_, discriminator_;
    int64_t generator_images_, discriminator_images_;
    std::vector<Range> batches_;
    std::vector<Array<float>> arrays_;
};

}  // namespace metagan
