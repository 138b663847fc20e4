"""Quality against time: KID of held-out classes while presets train, beside FIGR's settings in a plain loop.

FIGR's curves are trained on the engine, whose results equal the plain loop's, but each meta-step is charged what the
plain loop takes for it on the same machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from metagan_fast.benchmarks import machine
from metagan_fast.benchmarks.baselines.figr_episode import PlainFIGR
from metagan_fast.benchmarks.records import Record
from metagan_fast.benchmarks.timing import alternate
from torch import Tensor

from metagan_fast import MetaGAN, tasks
from metagan_fast.learner.average import MovingAverage
from metagan_fast.metrics import FeatureExtractor, evaluate, shipped
from metagan_fast.tasks import Tasks
from metagan_fast.training import config as configuration

_SHARES = (0.02, 0.05, 0.1, 0.2, 0.4, 1.0)  # of a curve's time, at which KID is measured
_CHECKED_STEPS = 2  # FIGR's inner loop amplifies rounding: more steps drift apart
_ALLOWED = 1e-2  # relative distance of the first change of the parameters, as for the drop-in


@dataclass(frozen=True)
class Curve:
    """One way to train.

    Attributes:
        name: in the records.
        preset: whose settings it takes.
        changes: of the preset's settings.
        plain: charged the plain loop's time, and trained `times` as long as the default.
    """

    name: str
    preset: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    plain: bool = False

    def settings(self, seed: int) -> dict[str, Any]:
        """Return the resolved settings of a run."""
        changed = configuration.merge(configuration.from_preset(self.preset), self.changes)
        return configuration.resolve(configuration.merge(changed, {"seed": seed}))


def _figr(name: str, **model: int) -> Curve:
    changes = {"latent_dim": 64, "model": {"name": "dcgan", **model}}
    return Curve(name, "figr", changes, plain=True)


DEFAULT = Curve("default", "default")
REFERENCE = _figr("FIGR, same networks", width=8, blocks=3)
CURVES = (
    DEFAULT,
    REFERENCE,
    _figr("FIGR, dcgan-32", width=16, blocks=3),
    Curve("FIGR, 36 M", "figr", plain=True),
)


@dataclass(frozen=True)
class QualityCase:
    """Training runs of several seeds, judged as they go on.

    Attributes:
        name: of the case.
        curves: the default first.
        seeds: number of runs of each.
        times: how many times as long as the default the plain loop trains.
        part: of the data, that KID is measured on.
    """

    name: str
    curves: tuple[Curve, ...] = CURVES
    seeds: int = 3
    times: float = 50.0
    part: str = "test"

    def measure(
        self,
        *,
        thread_counts: Sequence[int] | None = None,
        quick: bool = False,
        rounds: int | None = None,
        contenders: Sequence[str] | None = None,
    ) -> Iterator[Record]:
        """Train and judge; see `case.Case.measure`. `rounds` is the number of seeds; a quick run trains a tenth.

        The last records hold the factor by which the default reaches the last KID of each plain loop sooner.
        """
        chosen = [curve for curve in self.curves if contenders is None or curve.name in (DEFAULT.name, *contenders)]
        data = tasks.load("glyphs", min_images=12)
        spaces = shipped.spaces(data.train)
        assert spaces is not None, "the package ships feature spaces of these data"
        for count in thread_counts or [torch.get_num_threads()]:
            with machine.threads(count):
                found: list[Record] = []
                for seed in range(rounds or (1 if quick else self.seeds)):
                    budget = None
                    for curve in chosen:
                        run = _Run(self, curve, seed, data, spaces, count)
                        for record in run.judged(budget, 0.1 if quick else 1.0):
                            found.append(record)
                            yield record
                        if budget is None:
                            budget = self.times * run.seconds
                for curve in chosen:
                    if curve.plain:
                        yield _sooner(self.name, curve.name, found, count)


class _Run:
    """Training of one curve from one seed."""

    def __init__(
        self,
        case: QualityCase,
        curve: Curve,
        seed: int,
        data: Tasks,
        spaces: Mapping[str, FeatureExtractor],
        threads: int,
    ) -> None:
        self._case, self._curve, self._seed, self._threads = case, curve, seed, threads
        self._data, self._spaces = data, spaces
        settings = curve.settings(seed)
        self._training = configuration.build_training(settings)
        self._learner = configuration.build_learner(settings, data.image_shape)
        ema = self._training.ema
        self._average = None if ema is None else MovingAverage(self._learner, ema)
        self.seconds = 0.0  # charged so far

    def judged(self, budget: float | None, share: float) -> Iterator[Record]:
        """Train `share` of the run, for `budget` charged seconds or the preset's meta-steps; yield KID on the way."""
        charged = self._plain_seconds() if self._curve.plain else None
        meta_steps = self._training.meta_steps
        if charged is not None:
            assert budget is not None
            meta_steps = round(budget / charged)
        meta_steps = max(1, round(share * meta_steps))
        for stop in sorted({max(1, round(each * meta_steps)) for each in _SHARES}):
            while self._learner.step < stop:
                own = self._meta_step()
                self.seconds += own if charged is None else charged
            yield from self._judge()

    def _plain_seconds(self) -> float:
        return plain_seconds(self._learner, self._training.batch(self._learner, self._data.train, 0))

    def _meta_step(self) -> float:
        """Return the seconds of one meta-step on the engine."""
        begun = time.perf_counter()
        self._training.take_step(self._learner, self._data.train)
        if self._average is not None:
            self._average.follow(self._learner)
        return time.perf_counter() - begun

    def _judge(self) -> Iterator[Record]:
        learner = self._learner if self._average is None else self._average.learner
        found = evaluate(learner, getattr(self._data, self._case.part), self._spaces)
        for space in found.spaces:
            figure = found.row("adapted").figures[space]["kid"]
            yield Record(
                self._case.name,
                self._curve.name,
                self._threads,
                seed=self._seed,
                meta_step=learner.step,
                minutes=self.seconds / 60,
                space=space,
                kid=figure.mean,
                kid_low=figure.low,
                kid_high=figure.high,
            )


def plain_seconds(learner: MetaGAN, batch: Any, rounds: int = 3) -> float:
    """Return the seconds of one meta-step of FIGR's plain loop on a learner's networks, after checking its result.

    Raises:
        AssertionError: after two inner steps the learner's parameters differ from the plain loop's.
    """
    noise = learner.draw_noise(batch)
    plain = PlainFIGR(learner.generator, learner.discriminator)
    few = type(noise)(**{name: value[:_CHECKED_STEPS] for name, value in noise.drawn().items()})
    plain.episode(batch.support[0], few)
    found = learner.inner_loop(batch, noise=few)
    for layout, initial, adapted, network in (
        (learner.generator_layout, learner.generator_parameters, found.generator[0], plain.meta_g),
        (learner.discriminator_layout, learner.discriminator_parameters, found.discriminator[0], plain.meta_d),
    ):
        start, own = (_flat(layout.views(params)) for params in (initial, adapted))
        theirs = _flat(dict(network.named_parameters()))
        error = ((own - theirs).norm() / (theirs - start).norm()).item()
        assert error <= _ALLOWED, f"the learner differs from the plain loop by {error:.1e} of the change"
    episode = partial(plain.episode, batch.support[0], noise)
    return statistics.median(alternate({"plain": episode}, rounds=rounds)["plain"].seconds)


def _flat(named: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([named[name].detach().flatten() for name in sorted(named)])


def _sooner(case: str, plain: str, found: Sequence[Record], threads: int) -> Record:
    """Return by what factor the default reaches a plain loop's last KID sooner: median, least and most of seeds."""
    space = next(record.space for record in found)
    factors = []
    for seed in sorted({record.seed for record in found if record.seed is not None}):
        own, theirs = (
            [r for r in found if (r.contender, r.seed, r.space) == (name, seed, space)]
            for name in (DEFAULT.name, plain)
        )
        last = theirs[-1]
        reached = [r.minutes for r in own if r.kid is not None and last.kid is not None and r.kid <= last.kid]
        if reached and last.minutes and reached[0]:
            factors.append(last.minutes / reached[0])
    if not factors:
        return Record(case, DEFAULT.name, threads, baseline=plain, skipped=f"it does not reach the last KID of {plain}")
    return Record(
        case,
        DEFAULT.name,
        threads,
        baseline=plain,
        ratio=statistics.median(factors),
        ratio_low=min(factors),
        ratio_high=max(factors),
    )


CASES = (QualityCase("quality"),)
