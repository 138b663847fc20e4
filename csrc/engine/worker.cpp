#include "worker.h"

#include <algorithm>

namespace metagan {
namespace {

constexpr int64_t kPollFloats = 4 << 20;  // floats of a state written between two checks for a stop

// Copies images [channels][height x width], or latents, into a value, from one address each.
void copy_in(Activations& a, int value, int64_t first, const float* const* images, int64_t count) {
    const Shape& shape = a.shape(value);
    for (int64_t i = 0; i < count; ++i)
        for (int64_t channel = 0; channel < shape.channels; ++channel)
            std::copy_n(images[i] + channel * shape.positions(), shape.positions(),
                        a.x(value, first + i) + channel * a.stride(value));
}

// Copies images from one network's value or cotangent to another's of the same shape.
void copy_across(const Shape& shape, int64_t count, const float* from, int64_t from_stride, float* to,
                 int64_t to_stride) {
    for (int64_t channel = 0; channel < shape.channels; ++channel)
        std::copy_n(from + channel * from_stride, count * shape.positions(), to + channel * to_stride);
}

void clear_images(Activations& a, int value, Range images) {
    const Shape& shape = a.shape(value);
    for (int64_t channel = 0; channel < shape.channels; ++channel)
        std::fill_n(a.x(value, images.first) + channel * a.stride(value), images.count * shape.positions(), 0.f);
}

}  // namespace

Worker::Worker(const Engine& engine, int64_t generator_images, int64_t discriminator_images)
    : engine_(engine),
      generator_(engine.generator(), generator_images, Cotangents::transient, arena_),
      discriminator_(engine.discriminator(), discriminator_images, engine.discriminator_cotangents(), arena_),
      generator_images_(generator_images),
      discriminator_images_(discriminator_images) {}

bool Worker::fits(int64_t generator_images, int64_t discriminator_images) const {
    return generator_images <= generator_images_ && discriminator_images <= discriminator_images_;
}

float* Worker::array(size_t slot, int64_t floats) {
    if (slot >= arrays_.size()) arrays_.resize(slot + 1);
    return arrays_[slot].at_least(floats);
}

void Worker::copy(const float* from, int64_t floats, float* to) const {
    for (int64_t done = 0; done < floats && !stopped(); done += kPollFloats)
        std::copy_n(from + done, std::min(kPollFloats, floats - done), to + done);
}

void Worker::clear(float* array, int64_t floats) const {
    for (int64_t done = 0; done < floats && !stopped(); done += kPollFloats)
        std::fill_n(array + done, std::min(kPollFloats, floats - done), 0.f);
}

Pass Worker::pass(Parameters params, const float* params_dot) const {
    Pass pass;
    pass.params = params.values;
    pass.version = params.version;
    pass.params_dot = params_dot;
    pass.precision = engine_.plan().precision;
    pass.threads = threads;
    pass.batches = &batches_;
    pass.stop = stop;
    return pass;
}

float* Worker::scores(int64_t image) {
    return discriminator_.activations.x(engine_.discriminator().plan().output, image);
}

float* Worker::score_cotangents(int64_t image) {
    return discriminator_.activations.bar(engine_.discriminator().plan().output, image);
}

void Worker::make_fake(Parameters generator, const float* latents, int64_t count) {
    Activations& a = generator_.activations;
    const int input = engine_.generator().plan().input;
    const int64_t size = a.shape(input).elements();
    for (int64_t i = 0; i < count; ++i) {
        const float* const latent = latents + i * size;
        copy_in(a, input, i, &latent, 1);
    }
    batches_.assign(1, {0, count});
    engine_.generator().forward(pass(generator), generator_, {0, count});
}

void Worker::fake_to_discriminator(int64_t fake_first, int64_t count, int64_t to) {
    Activations &g = generator_.activations, &d = discriminator_.activations;
    const int fake = engine_.generator().plan().output, image = engine_.discriminator().plan().input;
    copy_across(d.shape(image), count, g.x(fake, fake_first), g.stride(fake), d.x(image, to), d.stride(image));
}

void Worker::images_to_discriminator(const float* const* images, int64_t count, int64_t to) {
    copy_in(discriminator_.activations, engine_.discriminator().plan().input, to, images, count);
}

void Worker::cotangents_to_generator(int64_t from, int64_t count, int64_t to) {
    Activations &g = generator_.activations, &d = discriminator_.activations;
    const int fake = engine_.generator().plan().output, image = engine_.discriminator().plan().input;
    copy_across(d.shape(image), count, d.bar(image, from), d.stride(image), g.bar(fake, to), g.stride(fake));
}

// Back-propagates the discriminator's cotangents of the fake images, from index `from` on, through the generator.
void Worker::reverse_generator(Parameters params, int64_t from, int64_t count, GradientSink& gradient) {
    cotangents_to_generator(from, count, 0);
    batches_.assign(1, {0, count});
    Reverse reverse;
    reverse.images = {0, count};
    reverse.input_wanted = false;
    reverse.gradients = &gradient;
    engine_.generator().reverse(pass(params), generator_, reverse);
}

// Sets the batches of batch norm: real and fake images together or apart, and the penalty's points, where these are
// further images.
void Worker::set_batches(Counts count, int64_t images) {
    const bool apart = engine_.plan().loss.separate_batches;
    const int64_t both = count.both();
    batches_.assign(1, {0, apart ? count.real : both});
    if (apart) batches_.push_back({count.real, count.fake});
    if (images == both) return;
    const Counts points = engine_.plan().loss.points(count);
    if (points.real > 0) batches_.push_back({both, points.real});
    if (points.fake > 0) batches_.push_back({both + points.real, points.fake});
}

// Images as Engine::step_images says; the caller has written the fake ones. The first reverse pass takes the input
// gradient of the penalty's points. Its cotangents, stored at the tangents' indices, are also the cotangents of the
// tangent pass along the penalty's gradient, so one more reverse pass yields all gradients.
DiscriminatorLoss Worker::discriminator_passes(Parameters params, const float* const* real, const float* interpolation,
                                               Counts count, GradientSink* gradient, bool input_wanted) {
    const LossPlan& loss = engine_.plan().loss;
    const Network& network = engine_.discriminator();
    Activations& a = discriminator_.activations;
    const int image = network.plan().input;
    const Shape& shape = a.shape(image);
    const bool penalised = loss.penalty != LossPlan::Penalty::none;
    const auto [points, tangents] = engine_.step_images(count);
    const Range images{0, tangents.first};
    const bool own_points = images.count > count.both();  // else they are the real or the fake images
    images_to_discriminator(real, count.real, 0);
    if (own_points && loss.location == LossPlan::Location::interpolate) {
        for (int64_t channel = 0; channel < shape.channels; ++channel)
            for (int64_t i = 0; i < points.count; ++i) {
                const float* const r = a.x(image, i) + channel * a.stride(image);
                const float* const f = a.x(image, count.real + i) + channel * a.stride(image);
                float* const p = a.x(image, points.first + i) + channel * a.stride(image);
                const float w = interpolation[i];
                for (int64_t k = 0; k < shape.positions(); ++k) p[k] = w * r[k] + (1 - w) * f[k];
            }
    } else if (own_points) {
        const int64_t from = loss.location == LossPlan::Location::fake ? count.real : 0;
        copy_across(shape, points.count, a.x(image, from), a.stride(image), a.x(image, points.first), a.stride(image));
    }
    set_batches(count, images.count);
    const Pass pass = this->pass(params);
    network.forward(pass, discriminator_, images);
    DiscriminatorLoss result;
    result.loss = metagan::discriminator_loss(loss, count, scores(0), scores(count.real), score_cotangents(0),
                                              score_cotangents(count.real));
    Reverse reverse;
    reverse.images = {0, count.both()};
    if (penalised) {
        std::fill_n(score_cotangents(tangents.first), tangents.count, 1.f);
        Reverse input_gradient;
        input_gradient.images = tangents;
        input_gradient.x_first = points.first;
        network.reverse(pass, discriminator_, input_gradient);
        const Counts of_kind = loss.points(count);
        const auto add_penalty = [&](int64_t first, int64_t images_of_kind) {
            if (images_of_kind == 0) return;
            result.penalty +=
                metagan::penalty(loss, shape.channels, images_of_kind, shape.positions(), a.bar(image, first),
                                 a.stride(image), a.x(image, first), a.stride(image));
        };
        add_penalty(tangents.first, of_kind.real);
        add_penalty(tangents.first + of_kind.real, of_kind.fake);
        result.loss += result.penalty;
        if (gradient) {
            network.tangent(pass, discriminator_, points, tangents);
            if (own_points) std::fill_n(score_cotangents(points.first), points.count, 0.f);
            reverse.images = images;
            reverse.primal = points;
            reverse.tangent = tangents;
            reverse.tangent_known = true;
        }
    }
    reverse.gradients = gradient;
    reverse.input_wanted = input_wanted;
    if (gradient || input_wanted) network.reverse(pass, discriminator_, reverse);
    return result;
}

DiscriminatorLoss Worker::update_discriminator(NetworkState& discriminator, Parameters generator,
                                               const float* const* real, const float* latents,
                                               const float* interpolation, Counts count, double lr) {
    const Network& network = engine_.discriminator();
    float* const shared = network.shares_parameters() ? array(kSharedGradient, network.plan().numel) : nullptr;
    Update update(engine_.plan().optimizer, discriminator, lr, engine_.plan().loss.clip, shared, network.plan().numel);
    make_fake(generator, latents, count.fake);
    fake_to_discriminator(0, count.fake, count.real);
    const DiscriminatorLoss result = discriminator_passes(discriminator, real, interpolation, count, &update, false);
    update.finish();
    return result;
}

double Worker::update_generator(NetworkState& generator, Parameters discriminator, const float* const* real,
                                const float* latents, Counts count, double lr) {
    const Network& network = engine_.generator();
    float* const shared = network.shares_parameters() ? array(kSharedGradient, network.plan().numel) : nullptr;
    Update update(engine_.plan().optimizer, generator, lr, 0, shared, network.plan().numel);
    const double loss = generator_loss(discriminator, generator, real, latents, count, &update, nullptr);
    update.finish();
    return loss;
}

DiscriminatorLoss Worker::discriminator_loss(Parameters discriminator, Parameters generator, const float* const* real,
                                             const float* latents, const float* interpolation, Counts count,
                                             GradientSink* discriminator_gradient, GradientSink* generator_gradient) {
    make_fake(generator, latents, count.fake);
    fake_to_discriminator(0, count.fake, count.real);
    const DiscriminatorLoss result = discriminator_passes(discriminator, real, interpolation, count,
                                                          discriminator_gradient, generator_gradient != nullptr);
    if (generator_gradient) reverse_generator(generator, count.real, count.fake, *generator_gradient);
    return result;
}

double Worker::generator_loss(Parameters discriminator, Parameters generator, const float* const* real,
                              const float* latents, Counts count, GradientSink* generator_gradient,
                              GradientSink* discriminator_gradient) {
    const LossPlan& loss = engine_.plan().loss;
    const Network& network = engine_.discriminator();
    make_fake(generator, latents, count.fake);
    // Relativistic losses compare with real images.
    const Range fake{loss.relativistic() ? count.real : 0, count.fake}, images{0, fake.first + fake.count};
    fake_to_discriminator(0, count.fake, fake.first);
    if (loss.relativistic()) {
        images_to_discriminator(real, count.real, 0);
        set_batches(count, count.both());
    } else {
        batches_.assign(1, fake);
    }
    network.forward(pass(discriminator), discriminator_, images);
    const double value = metagan::generator_loss(loss, count, scores(0), scores(fake.first), score_cotangents(0),
                                                 score_cotangents(fake.first));
    if (!generator_gradient) return value;
    Reverse reverse;
    reverse.images = images;
    reverse.gradients = discriminator_gradient;
    network.reverse(pass(discriminator), discriminator_, reverse);
    reverse_generator(generator, fake.first, fake.count, *generator_gradient);
    return value;
}

void Worker::discriminator_adjoint(const float* discriminator, const float* generator, const float* const* real,
                                   const float* latents, Counts count, const std::vector<AdjointState>& adjoints) {
    make_fake(generator, latents, count.fake);
    if (engine_.adjoint_parts() == 1)
        return adjoint_of_images(discriminator, generator, real, {0, count.both()}, count, adjoints);
    adjoint_of_images(discriminator, generator, real, {0, count.real}, count, adjoints);
    adjoint_of_images(discriminator, generator, real, {count.real, count.fake}, count, adjoints);
}

// The contribution of the images in `part`, indexed as in an update: real, then fake. The generator holds the fake
// images.
void Worker::adjoint_of_images(const float* discriminator, const float* generator, const float* const* real, Range part,
                               Counts count, const std::vector<AdjointState>& adjoints) {
    const LossPlan& loss = engine_.plan().loss;
    const Network& network = engine_.discriminator();
    const Range images{0, part.count}, tangents{part.count, part.count};
    const int64_t fake_first = count.real - part.first;  // among `images`
    const bool any_real = fake_first > 0, any_fake = fake_first < part.count;
    if (any_real) images_to_discriminator(real, count.real, 0);
    if (any_fake) fake_to_discriminator(0, count.fake, fake_first);
    clear_images(discriminator_.activations, network.plan().input, tangents);
    batches_.assign(1, images);
    network.forward(pass(discriminator), discriminator_, images);
    for (const AdjointState& adjoint : adjoints) {
        batches_.assign(1, images);
        const Pass along = pass(discriminator, adjoint.direction.discriminator);
        network.tangent(along, discriminator_, images, tangents);
        for (int64_t i = 0; i < part.count; ++i) {
            const bool of_real = i < fake_first;
            const Term& term = of_real ? loss.real : loss.fake;
            const double n = static_cast<double>(of_real ? count.real : count.fake);
            const double score = static_cast<double>(*scores(i)),
                         dot = static_cast<double>(*scores(tangents.first + i));
            *score_cotangents(i) = static_cast<float>(term.curvature(score) * dot / n);
            *score_cotangents(tangents.first + i) = static_cast<float>(term.slope(score) / n);
        }
        Accumulate by_discriminator(adjoint.params.discriminator), by_generator(adjoint.params.generator);
        Reverse reverse;
        reverse.images = reverse.primal = images;
        reverse.tangent = tangents;
        reverse.input_wanted = any_fake;
        reverse.gradients = &by_discriminator;
        network.reverse(along, discriminator_, reverse);
        // The mixed derivative, through the fake images.
        if (any_fake) reverse_generator(generator, fake_first, count.fake, by_generator);
    }
}

void Worker::generator_adjoint(const float* discriminator, const float* generator, const float* latents, int64_t count,
                               const std::vector<AdjointState>& adjoints) {
    const LossPlan& loss = engine_.plan().loss;
    const Network &g = engine_.generator(), &d = engine_.discriminator();
    const Range images{0, count}, tangents{count, count};
    clear_images(generator_.activations, g.plan().input, tangents);
    make_fake(generator, latents, count);
    fake_to_discriminator(0, count, 0);
    d.forward(pass(discriminator), discriminator_, images);
    for (const AdjointState& adjoint : adjoints) {
        const Pass along = pass(generator, adjoint.direction.generator);
        g.tangent(along, generator_, images, tangents);
        fake_to_discriminator(tangents.first, count, tangents.first);
        d.tangent(pass(discriminator), discriminator_, images, tangents);
        for (int64_t i = 0; i < count; ++i) {
            const double score = static_cast<double>(*scores(i)), dot = static_cast<double>(*scores(count + i));
            *score_cotangents(i) =
                static_cast<float>(loss.generator.curvature(score) * dot / static_cast<double>(count));
            *score_cotangents(count + i) = static_cast<float>(loss.generator.slope(score) / static_cast<double>(count));
        }
        Accumulate by_discriminator(adjoint.params.discriminator), by_generator(adjoint.params.generator);
        Reverse reverse;
        reverse.images = reverse.primal = images;
        reverse.tangent = tangents;
        reverse.gradients = &by_discriminator;
        d.reverse(pass(discriminator), discriminator_, reverse);
        cotangents_to_generator(0, count, 0);
        cotangents_to_generator(tangents.first, count, tangents.first);
        reverse.gradients = &by_generator;
        reverse.input_wanted = false;
        g.reverse(along, generator_, reverse);
    }
}

void Worker::generate(const float* generator, const float* latents, int64_t count, float* images) {
    make_fake(generator, latents, count);
    Activations& a = generator_.activations;
    const int fake = engine_.generator().plan().output;
    const Shape& shape = a.shape(fake);
    for (int64_t i = 0; i < count; ++i)
        for (int64_t channel = 0; channel < shape.channels; ++channel)
            std::copy_n(a.x(fake, i) + channel * a.stride(fake), shape.positions(),
                        images + (i * shape.channels + channel) * shape.positions());
}

void Worker::score(const float* discriminator, const float* images, int64_t count, float* out) {
    const int64_t size = engine_.discriminator().input_shape().elements();
    for (int64_t i = 0; i < count; ++i) {
        const float* const image = images + i * size;
        images_to_discriminator(&image, 1, i);
    }
    batches_.assign(1, {0, count});
    engine_.discriminator().forward(pass(discriminator), discriminator_, {0, count});
    std::copy_n(scores(0), count, out);
}

}  // namespace metagan
