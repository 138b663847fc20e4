"""Quality against time: charged seconds, parity with the plain loop, and factors of time."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from metagan_fast.benchmarks import quality, records
from metagan_fast.benchmarks.records import Record
from PIL import Image

import metagan_fast as mgf
from metagan_fast import plots
from metagan_fast.metrics import Evaluation


def learner(loss: str = "figr") -> mgf.MetaGAN:
    torch.manual_seed(0)
    networks = mgf.models.build("dcgan", latent_dim=8, channels=1, image_size=16, width=4, blocks=2)
    return mgf.MetaGAN(*networks, latent_dim=8, loss=loss, inner=mgf.InnerLoop(lr=1e-3, steps=3))


def batch() -> mgf.TaskBatch:
    return mgf.TaskBatch(torch.rand(1, 4, 1, 16, 16) * 2 - 1)


def test_the_engine_trains_as_the_plain_loop() -> None:
    assert quality.plain_seconds(learner(), batch(), rounds=1) > 0
    with pytest.raises(AssertionError, match="differs from the plain loop"):
        quality.plain_seconds(learner("non-saturating"), batch(), rounds=1)


def test_settings_of_the_curves() -> None:
    for curve in quality.CURVES:
        settings = curve.settings(seed=7)
        assert settings["seed"] == 7
        if curve.plain:
            assert settings["loss"]["name"] == "figr" and settings["inner"]["optimizer"] == "sgd"
    default, same = (each.settings(0) for each in quality.CURVES[:2])
    assert same["model"] == default["model"] and same["latent_dim"] == default["latent_dim"]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[quality.QualityCase]:
    """Return a case of two short curves whose KID is made up: 10 over the meta-steps."""

    def judged(run: Any) -> Iterator[Record]:
        step = run._learner.step
        name = run._curve.name
        yield Record("q", name, 1, seed=run._seed, meta_step=step, minutes=run.seconds / 60, space="c", kid=10 / step)

    monkeypatch.setattr(quality._Run, "_judge", judged)
    monkeypatch.setattr(quality, "plain_seconds", lambda learner, batch: 30.0)
    model = {"model": {"name": "dcgan", "width": 4, "blocks": 2}}
    few = {"training": {"meta_steps": 4, "tasks": 1}}
    ours = quality.Curve(quality.DEFAULT.name, "default", {**model, **few})
    theirs = quality.Curve("plain", "figr", model, plain=True)
    yield quality.QualityCase("q", (ours, theirs), seeds=2, times=1e6)


def test_plain_loops_are_charged_and_factors_follow(
    short: quality.QualityCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meta_step(run: Any) -> float:
        run._learner.step += 1
        return 6e-5

    monkeypatch.setattr(quality._Run, "_meta_step", meta_step)
    found = list(short.measure(thread_counts=[1]))
    plain = [record for record in found if record.contender == "plain"]
    assert {record.seed for record in plain} == {0, 1}
    # 4 meta-steps of 6e-5 s, times 1e6, are 240 s: 8 meta-steps of 30 s.
    assert plain[-1].meta_step == 8 and plain[-1].minutes == pytest.approx(4)
    factor = found[-1]
    assert factor.skipped == "it does not reach the last KID of plain"


def test_factor_of_time() -> None:
    def record(name: str, seed: int, minutes: float, kid: float) -> Record:
        return Record("q", name, 1, seed=seed, minutes=minutes, kid=kid, space="c", kid_low=kid, kid_high=kid)

    found = [
        *(record("default", 0, minutes, kid) for minutes, kid in ((1, 5.0), (2, 3.0), (4, 1.0))),
        *(record("default", 1, minutes, kid) for minutes, kid in ((1, 4.0), (2, 2.0))),
        *(record("plain", seed, minutes, kid) for seed in (0, 1) for minutes, kid in ((10, 6.0), (100, 3.5))),
    ]
    factor = quality._sooner("q", "plain", found, 1)
    assert (factor.ratio, factor.ratio_low, factor.ratio_high) == (50, 50, 50)
    found[4] = record("default", 1, 4, 2.0)
    factor = quality._sooner("q", "plain", found, 1)
    assert (factor.ratio, factor.ratio_low, factor.ratio_high) == (37.5, 25, 50)
    assert "reaches the last KID of plain 37.5x [25.0, 50.0] sooner" in records.row(factor)
    assert "KID   5.00 [5.00, 5.00]  seed 0" in records.row(found[0])
    again = Record.from_json(found[0].to_json({}))
    assert again == found[0]
    picture = Image.open(io.BytesIO(plots.quality(found)))
    assert picture.width > 400 and len(set(picture.convert("L").tobytes())) > 20


@pytest.mark.slow
def test_a_curve_is_judged_on_held_out_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"model": {"name": "dcgan", "width": 4, "blocks": 2}, "training": {"meta_steps": 1, "tasks": 1}}
    seen: list[Evaluation] = []
    evaluate = quality.evaluate

    def recorded(*given: Any) -> Evaluation:
        seen.append(evaluate(*given, samples=4, steps=1))
        return seen[-1]

    monkeypatch.setattr(quality, "evaluate", recorded)
    case = quality.QualityCase("q", (quality.Curve(quality.DEFAULT.name, "default", few),), seeds=1)
    found = list(case.measure(thread_counts=[1]))
    assert [record.space for record in found] == ["classifier", "prototype"]
    assert found[0].kid == seen[0].row("adapted").figures["classifier"]["kid"].mean
    assert len(seen[0].classes) == 62
