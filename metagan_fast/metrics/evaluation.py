"""Evaluation of a learner on held-out classes, beside baselines and the real-image floor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .._utils import coerce
from ..display.progress import counter
from ..tasks import TaskBatch
from .adaptation import MOST_TASKS, adapted_samples
from .baselines import Baselines
from .episodes import Episodes
from .image_sets import FeatureSpace, HeldOut, ImageSets
from .judge import Judge, mean_of, nearest, tallied
from .results import METHODS, Evaluation, Figure, Row

if TYPE_CHECKING:
    from ..learner import MetaGAN
    from ..tasks import TaskDistribution, Tasks


class Setting(NamedTuple):
    """Key of a row: a key of `METHODS`, support images a class, inner steps of the adapted GAN."""

    method: str
    shots: int
    steps: int | None = None


def evaluate(
    learner: MetaGAN,
    distribution: TaskDistribution,
    features: FeatureSpace | Mapping[str, FeatureSpace],
    *,
    tasks: Tasks | None = None,
    random: MetaGAN | None = None,
    shots: int | Sequence[int] = 4,
    steps: int | Sequence[int] | None = None,
    samples: int = 64,
    best_of: int = 1,
    draws: int = 1,
    episodes: Episodes | None = None,
    most_tasks: int = MOST_TASKS,
    seed: int = 0,
    progress: Callable[[int, int], None] | bool | None = None,
) -> Evaluation:
    """Adapt to held-out classes and compare the samples with real images of the same class.

    Figures are of single classes, averaged; their intervals are of a bootstrap over classes. FID alone is pooled. KID
    is the headline. The noise depends on `seed` alone, so learners are compared on equal terms.

    Args:
        learner: the meta-trained GAN; unchanged. The ranks of its process group share the classes: all call this alike.
        distribution: the held-out classes.
        features: feature space of the comparison: a `FeatureExtractor`, or any function of images `[n, C, H, W]` in
            [-1, 1] that returns `[n, d]`; or several by name, the headline's first.
        tasks: data with a training part, whose nearest class is a row, and a validation part, on which the row of
            augmented copies is tuned; None: neither row.
        random: a learner with random weights and the same inner loop; None: no such row.
        shots: support images a class; or several numbers, the headline's first.
        steps: inner steps; or several numbers, the headline's first; None: the learner's own.
        samples: generated images a class and draw.
        best_of: of how many generated images the discriminator chooses each, as for `AdaptedGAN.sample`.
        draws: divisions of each class.
        episodes: the divisions, in place of `draws`; None: those recorded for exactly these images, if `seed` is 0 and
            they have as many shots and draws; else `Episodes.draw`.
        most_tasks: classes adapted at once; bounds memory.
        seed: of the divisions, the noise and the samples.
        progress: called with the number of classes adapted and of all that will be; True: a progress bar.

    Returns:
        An `Evaluation` with the methods of `METHODS` as rows.

    Raises:
        ValueError: no class has enough images, or a count is out of range.
        FloatingPointError: a learner diverged on a class.
    """
    samples, seed = coerce.count("samples", samples, least=2), coerce.count("seed", seed)
    draws, most_tasks = coerce.count("draws", draws, least=1), coerce.count("most_tasks", most_tasks, least=1)
    best_of = coerce.count("best_of", best_of, least=1)
    shots, steps = _counts("shots", shots, 1), _counts("steps", learner.inner.steps if steps is None else steps, 0)
    spaces = dict(features) if isinstance(features, Mapping) else {"features": features}
    if not spaces:
        raise ValueError("expected at least one feature space, got none")
    if episodes is None:
        episodes = _find_episodes(distribution, shots=max(shots), draws=draws, seed=seed)
    if max(shots) > episodes.shots:
        raise ValueError(f"expected at most the episodes' {episodes.shots} shots, got {max(shots)}")
    held_out = HeldOut(distribution, episodes, spaces)
    training, validation = (None, None) if tasks is None else (tasks.train, tasks.validation)
    if training is distribution:  # each class is its own nearest one
        training = None
    baselines = Baselines(training, validation, spaces, shots=shots[0], samples=samples, seed=seed)
    gans = _Gans(learner, random, shots[0], steps, samples, best_of, most_tasks, seed)

    def embed(images: Tensor, classes: int) -> ImageSets:
        sets = ImageSets.embed(list(images), spaces)
        return sets if len(images) == classes else sets.repeated(classes)

    adaptations = len(episodes.draws) * len(episodes.classes) * sum(map(gans.adaptations, shots))
    tallies: defaultdict[Setting, list[dict[str, dict[str, Tensor]]]] = defaultdict(list)
    with counter(progress, "adapting to held-out classes") as report:
        adapted = _Count(report, adaptations)
        for draw in range(len(episodes.draws)):
            for count in shots:
                support, references, others = held_out.division(draw, count)
                judges = {space: Judge(references.features[space], support.features[space]) for space in spaces}
                batch = TaskBatch(
                    torch.stack(list(support.images)),
                    classes=episodes.classes,
                    first_task=draw * len(episodes.classes),  # each draw has its own noise
                )
                for setting, sets in (
                    *((setting, embed(images, batch.tasks)) for setting, images in gans.samples(batch, adapted)),
                    *((Setting(name, count), sets) for name, sets in baselines(support, others, draw)),
                ):
                    pixels = nearest([x.flatten(1) for x in sets.images], [x.flatten(1) for x in support.images])
                    tallies[setting].append(
                        {name: judge(sets.features[name]) | {"nearest_pixel": pixels} for name, judge in judges.items()}
                    )
    settings = {
        "shots": list(shots),
        "steps": list(steps),
        "samples": samples,
        "best_of": best_of,
        "draws": len(episodes.draws),
        "seed": seed,
        "episodes": episodes.digest,
        "features": {name: getattr(space, "digest", None) for name, space in spaces.items()},
        "augmentation": baselines.augmentation and vars(baselines.augmentation),
    }
    return _summary(episodes.classes, tallies, settings, seed)


def _find_episodes(distribution: TaskDistribution, *, shots: int, draws: int, seed: int) -> Episodes:
    """Return the recorded episodes if they are of this seed and have as many shots and draws, else drawn ones."""
    if seed == 0 and (found := Episodes.recorded(distribution)) and shots <= found.shots and draws <= len(found.draws):
        return found.first(draws)
    return Episodes.draw(distribution, shots=shots, draws=draws, seed=seed)


@dataclass(frozen=True)
class _Gans:
    """Rows of samples: the learner's at all numbers of steps, others at the headline's alone."""

    learner: MetaGAN
    random: MetaGAN | None
    headline_shots: int
    steps: Sequence[int]
    samples_a_class: int
    best_of: int
    most_tasks: int
    seed: int

    def adaptations(self, shots: int) -> int:
        """Return how often each class is adapted to."""
        return sum(1 for n in self.steps if n) + self._has_random(shots)

    def _has_random(self, shots: int) -> bool:
        return self.random is not None and shots == self.headline_shots

    def samples(self, batch: TaskBatch, adapted: _Count) -> Iterator[tuple[Setting, Tensor]]:
        """Yield samples `[classes, samples, C, H, W]` of each row, with its setting; `[1, ...]` if equal for all."""
        shots = batch.shots
        for steps in self.steps:
            yield Setting("adapted", shots, steps), self._generate("adapted", self.learner, batch, steps, adapted)
        same = self._generate("unadapted", self.learner, batch.slice(0, 1), 0, adapted)  # adapted to no class
        yield Setting("unadapted", shots), same
        if self._has_random(shots):
            assert self.random is not None
            yield Setting("random", shots), self._generate("random", self.random, batch, self.steps[0], adapted)

    def _generate(self, name: str, learner: MetaGAN, batch: TaskBatch, steps: int, adapted: _Count) -> Tensor:
        images = adapted_samples(
            learner,
            batch,
            self.samples_a_class,
            steps=steps,
            best_of=self.best_of,
            seed=self.seed,
            most_tasks=self.most_tasks,
            progress=adapted if steps else None,
            ranks=self.learner._ranks,
        )
        bad = (~images.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            assert batch.classes is not None
            raise FloatingPointError(
                f"the {name} GAN makes images that are NaN or infinite of {len(bad)} of {batch.tasks} classes, "
                f"{batch.classes[bad[0]]!r} among them; lower the inner learning rate or take fewer steps"
            )
        return images


class _Count:
    """Progress as a number of all."""

    def __init__(self, progress: Callable[[int, int], None], total: int) -> None:
        self._progress, self._done, self._total = progress, 0, total

    def __call__(self, more: int) -> None:
        self._done += more
        self._progress(self._done, self._total)


def _summary(
    classes: tuple[str, ...],
    tallies: Mapping[Setting, list[dict[str, dict[str, Tensor]]]],
    settings: Mapping[str, Any],
    seed: int,
) -> Evaluation:
    """Average over draws, and compare rows."""
    means = {
        setting: {
            space: {
                name: torch.stack([draw[space][name].double() for draw in draws]).mean(0) for name in draws[0][space]
            }
            for space in draws[0]
        }
        for setting, draws in tallies.items()
    }
    order = {name: index for index, name in enumerate(METHODS)}
    rows = [
        Row(
            setting.method,
            setting.shots,
            setting.steps,
            {
                space: tallied(values, means[Setting("real", setting.shots)][space], seed)
                for space, values in by_space.items()
            },
            {space: tuple(values["kid"].tolist()) for space, values in by_space.items()},
        )
        for setting, by_space in sorted(means.items(), key=lambda item: order[item[0].method])  # stable
    ]
    shots, steps = settings["shots"], settings["steps"]
    rows.sort(key=lambda row: shots.index(row.shots))
    first = means[Setting("adapted", shots[0], steps[0])]
    differences: dict[str, dict[str, Figure]] = {
        space: {
            setting.method: mean_of(values["kid"] - by_space[space]["kid"], seed)
            for setting, by_space in means.items()
            if setting.shots == shots[0] and setting.method != "adapted"
        }
        for space, values in first.items()
    }
    return Evaluation(classes, tuple(rows), differences, settings)


def _counts(name: str, value: int | Sequence[int], least: int) -> tuple[int, ...]:
    """Return one or several distinct whole numbers."""
    values = list(value) if isinstance(value, Sequence) else [value]
    if not values:
        raise ValueError(f"expected at least one number of {name}, got none")
    return tuple(dict.fromkeys(coerce.count(name, each, least=least) for each in values))
