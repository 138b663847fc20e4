"""Figures of classes: how diverse a class's samples are, and how well they are told from other classes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import _check

# Chosen on validation classes: docs/tuning.md.
_SHRINKAGE = 0.1
_PENALTY = 0.1
_TOLERANCE = 1e-3  # of each partial derivative


def diversity(features: Tensor) -> Tensor:
    """Return the spread of samples: the root of the mean over d of the unbiased variance.

    The measure of Boutin et al. 2022 (arXiv:2205.10370), a standard deviation with Bessel's correction in feature
    space. Their code averages d standard deviations; the root mean square of these, taken here, does not depend on
    the axes of the feature space. It is at least theirs, and equal if all dimensions spread equally.

    Args:
        features: `[..., m, d]`, m at least 2; computed in float64.

    Returns:
        `[...]`, float64; 0 for copies of one sample.

    Raises:
        ValueError: fewer than two samples, NaN or infinite features.
    """
    if features.shape[-2] < 2:
        raise ValueError(f"expected at least 2 samples, got {features.shape[-2]}")
    _check.finite(features)
    # Differences from a sample first: they are exactly 0 between copies, where a mean is rounded.
    features = features.double()
    return (features - features[..., :1, :]).var(-2).mean(-1).sqrt()


def recognisability(samples: Sequence[Tensor] | Tensor, references: Sequence[Tensor] | Tensor) -> Tensor:
    """Return the share of each class's samples that a nearest-prototype classifier recognises.

    The recognisability of Boutin et al. 2022 (arXiv:2205.10370). Prototypes are the mean references of each class,
    distances are Euclidean: `argmin_c |f(x) - mean f(references_c)|` (Snell et al. 2017, arXiv:1703.05175, eqs. 1 and
    2). Among equally near prototypes the first one counts.

    Args:
        samples: features `[m_c, d]` of each class, or `[classes, m, d]`; computed in float64.
        references: features `[n_c, d]` of the same classes, or `[classes, n, d]`.

    Returns:
        `[classes]`, float64, from 0 to 1.

    Raises:
        ValueError: different numbers of classes or dimensions, an empty class, NaN or infinite features.
    """
    _check_classes(samples, references)
    prototypes = torch.stack([features.detach().double().mean(0) for features in references])
    distances = torch.cdist(_joined(samples), prototypes, compute_mode="donot_use_mm_for_euclid_dist")
    return _share_of_own(distances.argmin(1), samples)


def few_shot_accuracy(training: Sequence[Tensor] | Tensor, test: Sequence[Tensor] | Tensor) -> Tensor:
    """Return the accuracy on each class's test features of a logistic regression fitted to training features.

    Features are whitened by the training set's total covariance S, shrunk as by Friedman 1989 (J. Am. Stat. Assoc.
    84): `z = (S + 0.1 tr(S) / d I)^(-1/2) (x - mean)`, so the result does not depend on their unit and axes. Weights W
    and biases b minimise `sum_c mean_{z of c} -log softmax(W z + b)_c + 0.1 / 2 |W|^2`, by L-BFGS from 0 in float64:
    the same on every call, and to rounding for any number of threads. Every class weighs the same in all sums, so
    repeating a class's training features changes nothing.

    Args:
        training: features `[k_c, d]` of each class, or `[classes, k, d]`.
        test: features `[t_c, d]` of the same classes, or `[classes, t, d]`.

    Returns:
        `[classes]`, float64, from 0 to 1.

    Raises:
        ValueError: different numbers of classes or dimensions, an empty class, NaN or infinite features.
    """
    _check_classes(training, test)
    features, labels = _joined(training), _labels(training)
    weights = torch.cat([features.new_full((len(part),), 1 / len(part), dtype=torch.float64) for part in training])
    mean = weights @ features / len(training)
    whitening = _whitening(features - mean, weights / len(training))
    coefficients = _fit((features - mean) @ whitening, labels, weights, len(training))
    scores = _with_ones((_joined(test) - mean) @ whitening) @ coefficients
    return _share_of_own(scores.argmax(1), test)


def _whitening(centred: Tensor, weights: Tensor) -> Tensor:
    """Return `[d, d]` such that features times it have about unit covariance; weights sum to 1."""
    variances, axes = torch.linalg.eigh((centred.T * weights) @ centred)
    shrunk = variances.clamp_min(0) + _SHRINKAGE * variances.mean()
    return axes * torch.where(shrunk > 0, shrunk, 1).rsqrt() @ axes.T


def _fit(features: Tensor, labels: Tensor, weights: Tensor, classes: int) -> Tensor:
    """Return weights and, as the last row, biases `[d + 1, classes]` of the regression."""
    inputs = _with_ones(features)
    rows = torch.arange(len(inputs), device=inputs.device)

    def loss_and_gradient(coefficients: Tensor) -> tuple[float, Tensor]:
        log_probabilities = (inputs @ coefficients).log_softmax(1)
        loss = -(weights @ log_probabilities[rows, labels]) + _PENALTY / 2 * coefficients[:-1].square().sum()
        residuals = log_probabilities.exp_()
        residuals[rows, labels] -= 1
        gradient = inputs.T @ residuals.mul_(weights.unsqueeze(1))
        gradient[:-1] += _PENALTY * coefficients[:-1]
        return loss.item(), gradient

    return _minimise(loss_and_gradient, inputs.new_zeros(inputs.shape[1], classes))


def _minimise(function: Callable[[Tensor], tuple[float, Tensor]], point: Tensor) -> Tensor:
    """Return the minimum of a strictly convex function, by L-BFGS (Nocedal & Wright 2006, algorithm 7.5).

    `torch.optim.LBFGS` does the same, but its first call imports PyTorch's compiler, which takes a second.

    Args:
        function: value and gradient at a point.
        point: start.
    """
    value, gradient = function(point)
    pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=10)
    for _ in range(500):
        if gradient.abs().max() <= _TOLERANCE:
            break
        direction = _newton_direction(gradient, pairs)
        slope = (direction * gradient).sum().item()
        for halvings in range(40):
            step = direction * 0.5**halvings
            next_value, next_gradient = function(point + step)
            if next_value <= value + 1e-4 * 0.5**halvings * slope:  # Armijo's condition; convexity does the rest
                break
        else:  # rounding hides any decrease
            break
        pairs.append((step, next_gradient - gradient))
        point, value, gradient = point + step, next_value, next_gradient
    return point


def _newton_direction(gradient: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the negative gradient times the inverse Hessian that steps and gradient changes imply (algorithm 7.4)."""
    direction = -gradient
    shares = []
    for step, change in reversed(pairs):
        shares.append((step * direction).sum() / (step * change).sum())
        direction = direction - shares[-1] * change
    if pairs:
        step, change = pairs[-1]
        direction = direction * ((step * change).sum() / change.square().sum())
    for (step, change), share in zip(pairs, reversed(shares), strict=True):
        direction = direction + step * (share - (change * direction).sum() / (step * change).sum())
    return direction


def _with_ones(features: Tensor) -> Tensor:
    return torch.cat([features, features.new_ones(len(features), 1)], 1)


def _joined(classes: Sequence[Tensor] | Tensor) -> Tensor:
    return torch.cat(list(classes)).detach().double()


def _labels(classes: Sequence[Tensor] | Tensor) -> Tensor:
    counts = torch.tensor([len(part) for part in classes], device=classes[0].device)
    return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)


def _share_of_own(found: Tensor, classes: Sequence[Tensor] | Tensor) -> Tensor:
    """Return the share of each class's elements whose class was found."""
    correct = (found == _labels(classes)).double().split([len(part) for part in classes])
    return torch.stack([part.mean() for part in correct])


def _check_classes(first: Sequence[Tensor] | Tensor, second: Sequence[Tensor] | Tensor) -> None:
    if len(first) != len(second) or not len(first):
        raise ValueError(f"expected two sets of the same classes, got {len(first)} and {len(second)} classes")
    dimensions = first[0].shape[-1]
    for part in (*first, *second):
        if part.ndim != 2 or not len(part) or part.shape[1] != dimensions:
            raise ValueError(f"expected features [at least 1, {dimensions}] of each class, got {list(part.shape)}")
    _check.finite(*first, *second)
