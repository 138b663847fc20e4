// GAN losses on the scores of one task; metagan_fast/losses documents them. Each term is a mean over samples.
#pragma once

#include <cstdint>

#include "ops/names.h"

namespace metagan {

// Function of a score s, with its first and second derivative by s: a kind of function at x = factor * s - label.
// metagan_fast/losses/terms.py has the same kinds.
struct Term {
    enum class Kind { linear, softplus, negative_softplus, hinge, half_square };
    static constexpr Named<Kind> kKinds[] = {
        {"linear", Kind::linear}, {"softplus", Kind::softplus},       {"negative_softplus", Kind::negative_softplus},
        {"hinge", Kind::hinge},   {"half_square", Kind::half_square},
    };
    Kind kind = Kind::linear;
    double factor = 1, label = 0;

    double value(double score) const;
    double slope(double score) const;
    double curvature(double score) const;
};

// Images of an update or of an evaluation.
struct Counts {
    int64_t real = 0, fake = 0;

    int64_t both() const { return real + fake; }
};

struct LossPlan {
    enum class Penalty { none, sample, pixel, zero_centered };
    static constexpr Named<Penalty> kPenalties[] = {
        {"sample", Penalty::sample}, {"pixel", Penalty::pixel}, {"zero_centered", Penalty::zero_centered}};
    enum class Location { interpolate, real, fake, both };
    static constexpr Named<Location> kLocations[] = {{"interpolate", Location::interpolate},
                                                     {"real", Location::real},
                                                     {"fake", Location::fake},
                                                     {"both", Location::both}};

    Term real, fake, generator;
    // Subtrahend of each score: none, the mean score of the other kind (real, fake), or the other score of a pair.
    enum class Relative { none, means, pairs };
    static constexpr Named<Relative> kRelatives[] = {
        {"none", Relative::none}, {"means", Relative::means}, {"pairs", Relative::pairs}};
    Relative relative = Relative::none;
    bool separate_batches = false;
    double clip = 0;  // bound of the discriminator's parameters (WGAN); 0: none
    Penalty penalty = Penalty::none;
    Location location = Location::interpolate;
    double penalty_weight = 0;

    // Points of the penalty: at real images or interpolates (as many), which come first, and at fake ones.
    Counts points(Counts count) const {
        if (penalty == Penalty::none) return {};
        return {location == Location::fake ? 0 : count.real,
                location == Location::fake || location == Location::both ? count.fake : 0};
    }
    bool relativistic() const { return relative != Relative::none; }
};

// Returns the discriminator's loss and writes its gradient by the scores.
double discriminator_loss(const LossPlan&, Counts, const float* real, const float* fake, float* by_real,
                          float* by_fake);

// Returns the generator's loss and writes its gradient by the scores. Only relativistic losses access `real` and
// `by_real`.
double generator_loss(const LossPlan&, Counts, const float* real, const float* fake, float* by_real, float* by_fake);

// Returns the penalty on one task's input gradients [channels][count][positions], with channels `gradient_stride`
// apart, and writes its gradient by them: the direction of the tangent pass.
double penalty(const LossPlan&, int64_t channels, int64_t count, int64_t positions, const float* gradient,
               int64_t gradient_stride, float* direction, int64_t direction_stride);

}  // namespace metagan
