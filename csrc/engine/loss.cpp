#include "loss.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace metagan {
namespace {

double sigmoid(double x) { return x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x)); }
double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::fabs(x))); }

// Squared norms up to this one count as 0, as in metagan_fast/losses/penalties.py.
constexpr double kZero =
    static_cast<double>(std::numeric_limits<float>::min()) / static_cast<double>(std::numeric_limits<float>::epsilon());

double mean(int64_t count, const float* values) {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(values[i]);
    return sum / static_cast<double>(count);
}

}  // namespace

double Term::value(double s) const {
    const double x = factor * s - label;
    switch (kind) {
        case Kind::softplus:
            return softplus(x);
        case Kind::negative_softplus:
            return -softplus(x);
        case Kind::hinge:
            return std::max(0.0, 1 + x);
        case Kind::half_square:
            return 0.5 * x * x;
        case Kind::linear:
            break;
    }
    return x;
}

double Term::slope(double s) const {
    const double x = factor * s - label;
    switch (kind) {
        case Kind::softplus:
            return factor * sigmoid(x);
        case Kind::negative_softplus:
            return -factor * sigmoid(x);
        case Kind::hinge:
            return 1 + x > 0 ? factor : 0;
        case Kind::half_square:
            return factor * x;
        case Kind::linear:
            break;
    }
    return factor;
}

double Term::curvature(double s) const {
    const double x = factor * s - label, p = sigmoid(x);
    switch (kind) {
        case Kind::softplus:
            return factor * factor * p * (1 - p);
        case Kind::negative_softplus:
            return -factor * factor * p * (1 - p);
        case Kind::half_square:
            return factor * factor;
        case Kind::hinge:
        case Kind::linear:
            break;
    }
    return 0;
}

namespace {

// Scores relative to those they are paired with; the kind with fewer images is paired more than once, in turn.
double paired_loss(const LossPlan& loss, Counts count, const float* real, const float* fake, float* by_real,
                   float* by_fake) {
    const int64_t pairs = std::max(count.real, count.fake);
    const double n = static_cast<double>(pairs);
    double value = 0;
    std::vector<double> of_real(static_cast<size_t>(count.real)), of_fake(static_cast<size_t>(count.fake));
    for (int64_t i = 0; i < pairs; ++i) {
        const int64_t r = i % count.real, f = i % count.fake;
        const double difference = static_cast<double>(real[r]) - static_cast<double>(fake[f]);
        value += (loss.real.value(difference) + loss.fake.value(-difference)) / n;
        const double slope = (loss.real.slope(difference) - loss.fake.slope(-difference)) / n;
        of_real[static_cast<size_t>(r)] += slope;
        of_fake[static_cast<size_t>(f)] -= slope;
    }
    std::transform(of_real.begin(), of_real.end(), by_real, [](double x) { return static_cast<float>(x); });
    std::transform(of_fake.begin(), of_fake.end(), by_fake, [](double x) { return static_cast<float>(x); });
    return value;
}

}  // namespace

double discriminator_loss(const LossPlan& loss, Counts count, const float* real, const float* fake, float* by_real,
                          float* by_fake) {
    if (loss.relative == LossPlan::Relative::pairs) return paired_loss(loss, count, real, fake, by_real, by_fake);
    const double reals = static_cast<double>(count.real), fakes = static_cast<double>(count.fake);
    const bool relativistic = loss.relativistic();
    const double real_from = relativistic ? mean(count.fake, fake) : 0;
    const double fake_from = relativistic ? mean(count.real, real) : 0;
    double value = 0, by_real_sum = 0, by_fake_sum = 0;
    for (int64_t i = 0; i < count.real; ++i) {
        const double a = static_cast<double>(real[i]) - real_from;
        value += loss.real.value(a) / reals;
        by_real_sum += loss.real.slope(a) / reals;
    }
    for (int64_t i = 0; i < count.fake; ++i) {
        const double b = static_cast<double>(fake[i]) - fake_from;
        value += loss.fake.value(b) / fakes;
        by_fake_sum += loss.fake.slope(b) / fakes;
    }
    // Each real score also enters every `b` through the real mean, and each fake score every `a`.
    const double shared_real = relativistic ? by_fake_sum / reals : 0;
    const double shared_fake = relativistic ? by_real_sum / fakes : 0;
    for (int64_t i = 0; i < count.real; ++i) {
        const double a = static_cast<double>(real[i]) - real_from;
        by_real[i] = static_cast<float>(loss.real.slope(a) / reals - shared_real);
    }
    for (int64_t i = 0; i < count.fake; ++i) {
        const double b = static_cast<double>(fake[i]) - fake_from;
        by_fake[i] = static_cast<float>(loss.fake.slope(b) / fakes - shared_fake);
    }
    return value;
}

double generator_loss(const LossPlan& loss, Counts count, const float* real, const float* fake, float* by_real,
                      float* by_fake) {
    if (loss.relativistic())  // with exchanged roles
        return discriminator_loss(loss, {count.fake, count.real}, fake, real, by_fake, by_real);
    const double n = static_cast<double>(count.fake);
    double value = 0;
    for (int64_t i = 0; i < count.fake; ++i) {
        const double s = static_cast<double>(fake[i]);
        value += loss.generator.value(s) / n;
        by_fake[i] = static_cast<float>(loss.generator.slope(s) / n);
    }
    return value;
}

double penalty(const LossPlan& loss, int64_t channels, int64_t count, int64_t positions, const float* gradient,
               int64_t gradient_stride, float* direction, int64_t direction_stride) {
    const double n = static_cast<double>(count);
    const bool pixels = loss.penalty == LossPlan::Penalty::pixel;
    const int64_t groups = pixels ? positions : 1, size = pixels ? 1 : positions;
    double value = 0;
    for (int64_t image = 0; image < count; ++image)
        for (int64_t group = 0; group < groups; ++group) {
            const int64_t at = image * positions + group * size;
            double squares = 0;
            for (int64_t c = 0; c < channels; ++c)
                for (int64_t i = 0; i < size; ++i) {
                    const double g = static_cast<double>(gradient[c * gradient_stride + at + i]);
                    squares += g * g;
                }
            double factor;
            if (loss.penalty == LossPlan::Penalty::zero_centered) {
                value += loss.penalty_weight / 2 * squares / n;
                factor = loss.penalty_weight / n;
            } else {
                const double norm = squares > kZero ? std::sqrt(squares) : 0;
                const double norms = n * static_cast<double>(groups);
                value += loss.penalty_weight * (norm - 1) * (norm - 1) / norms;
                factor = norm > 0 ? 2 * loss.penalty_weight / norms * (norm - 1) / norm : 0;
            }
            for (int64_t c = 0; c < channels; ++c)
                for (int64_t i = 0; i < size; ++i)
                    direction[c * direction_stride + at + i] =
                        static_cast<float>(factor * static_cast<double>(gradient[c * gradient_stride + at + i]));
        }
    return value;
}

}  // namespace metagan
