"""Losses as data: the engine runs what a loss states as the torch executor does, and nothing that a loss overrides."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import metagan_fast as mgf
from metagan_fast import _native, losses
from metagan_fast.losses import PENALTY_KINDS, TERM_KINDS, Penalty, Term, Terms, terms
from metagan_fast.losses.penalties import Location
from networks import tiny_batch, tiny_gan
from support import assert_close

if not _native.is_available()[0]:
    pytest.skip("the extension is not installed", allow_module_level=True)


@dataclass(frozen=True)
class Stated(losses.Loss):
    """Loss of any terms and penalty."""

    terms: Terms = losses.Hinge.terms  # type: ignore[assignment]
    penalty: Penalty | None = None  # type: ignore[assignment]
    clip: float | None = None  # type: ignore[assignment]

    name: ClassVar[str] = "stated"


class StatedRelativistic(Stated):
    """The same, of relative scores."""

    relativistic: ClassVar[bool] = True


class StatedPaired(StatedRelativistic):
    """The same, of the scores of pairs."""

    paired: ClassVar[bool] = True


@dataclass(frozen=True)
class StatedPenalty(Penalty):
    """Penalty of any kind and location."""

    kind: str = "sample"  # type: ignore[assignment]
    location: Location = "interpolate"  # type: ignore[assignment]

    name: ClassVar[str] = "stated"


def learner(
    executor: Any,
    loss: losses.Loss,
    meta: Any = None,
    dtype: torch.dtype = torch.float32,
    generated: int | None = None,
) -> mgf.MetaGAN:
    torch.manual_seed(0)
    generator, discriminator = (network.to(dtype) for network in tiny_gan())
    inner = mgf.InnerLoop(lr=0.05, steps=2, generated=generated)
    meta = meta or mgf.FOMAML()
    return mgf.MetaGAN(generator, discriminator, latent_dim=6, loss=loss, inner=inner, meta=meta, executor=executor)


def check_the_engine_agrees(loss: losses.Loss, meta: Any = None, generated: int | None = None) -> None:
    """Compare a meta-gradient and the losses on the engine with the torch executor in float64."""
    batch = tiny_batch()
    native = learner("native", loss, meta, generated=generated).meta_gradient(batch)
    exact = learner("torch", loss, meta, torch.float64, generated).meta_gradient(batch)
    assert_close(native.generator, exact.generator, "engine-maml")
    assert_close(native.discriminator, exact.discriminator, "engine-maml")
    assert native.metrics.keys() == exact.metrics.keys()
    for name, value in native.metrics.items():
        assert_close(value, exact.metrics[name], "engine-maml")


@pytest.mark.parametrize("meta", [mgf.FOMAML(), mgf.MAML()], ids=["fomaml", "maml"])  # slopes, and curvatures
@pytest.mark.parametrize("kind", TERM_KINDS)
def test_the_engine_knows_every_kind_of_term(kind: str, meta: Any) -> None:
    stated = Terms(Term(kind, -0.75, 0.5), Term(kind, 1.25, -0.25), Term(kind, 0.5, 0.75))
    check_the_engine_agrees(Stated(stated, clip=0.5), meta)


@pytest.mark.parametrize("location", ["interpolate", "real", "fake", "both"])
@pytest.mark.parametrize("kind", PENALTY_KINDS)
def test_the_engine_knows_every_kind_of_penalty(kind: str, location: Any) -> None:
    check_the_engine_agrees(Stated(penalty=StatedPenalty(2.0, kind, location)))


@pytest.mark.parametrize("generated", [None, 2, 7])
@pytest.mark.parametrize("relative", [StatedRelativistic, StatedPaired])
@pytest.mark.parametrize("kind", TERM_KINDS)
def test_the_engine_runs_relativistic_losses_of_any_terms(
    kind: str, relative: type[Stated], generated: int | None
) -> None:
    terms = Terms(Term(kind, -0.75, 0.5), Term(kind, 1.25), Term(kind, -0.75, 0.5))
    check_the_engine_agrees(relative(terms), generated=generated)


@pytest.mark.parametrize("generated", [None, 5])
def test_a_penalty_at_both_kinds_of_images_is_the_sum(generated: int | None) -> None:
    """One SGD step of the discriminator is linear in its loss."""
    batch = tiny_batch(query=0).to(dtype=torch.float64)

    def change(*at: Location) -> Tensor:
        loss = losses.NonSaturating(penalty=losses.ZeroCenteredPenalty(3.0, at[0]) if at else None)  # type: ignore[arg-type]
        subject = learner("torch", loss, mgf.Reptile(), torch.float64, generated)
        return subject.inner_loop(batch, steps=1).discriminator - subject.discriminator_parameters

    parts = change("real") + change("fake") - change()
    assert_close(change("both"), parts, "float64-parity")
    assert not torch.allclose(parts, change("real"))


def named(error: pytest.ExceptionInfo[ValueError]) -> list[str]:
    """Return the names that an error lists."""
    return re.findall(r"'(\w+)'", str(error.value).partition("expected one of")[2])


def test_the_engine_knows_no_other_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(terms._FUNCTIONS, "cubic", lambda x: x**3)
    loss = Stated(losses.Hinge.terms._replace(fake=Term("cubic")))
    with pytest.raises(ValueError, match="unknown term of a loss 'cubic'") as error:
        learner("native", loss)
    assert set(named(error)) == set(TERM_KINDS)
    assert "unknown term of a loss 'cubic'" in learner("auto", loss).explain(3)
    with pytest.raises(ValueError, match="unknown penalty 'cubic'") as error:
        learner("native", Stated(penalty=StatedPenalty(kind="cubic")))
    assert set(named(error)) == set(PENALTY_KINDS)


class OwnDiscriminatorLoss(losses.Hinge):
    def discriminator_loss(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        return super().discriminator_loss(real_scores, fake_scores) + 0.5 * real_scores.square().mean(-1)


class OwnGeneratorLoss(losses.Hinge):
    def generator_loss(self, fake_scores: Tensor, real_scores: Tensor | None = None) -> Tensor:
        return fake_scores.square().mean(-1)


class OwnFunctions(losses.Loss):
    """Loss without terms."""

    name: ClassVar[str] = "own-functions"

    def discriminator_loss(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        return (fake_scores - real_scores).exp().mean(-1)

    def generator_loss(self, fake_scores: Tensor, real_scores: Tensor | None = None) -> Tensor:
        return -fake_scores.mean(-1)


class OwnTerm(Term):
    def value(self, scores: Tensor) -> Tensor:
        return scores**3


class OwnPenalty(losses.GradientPenalty):
    def value(self, input_gradient: Tensor) -> Tensor:
        return input_gradient.abs().mean((-4, -3, -2, -1))


class WithRealScores(losses.Hinge):
    generator_needs_real: ClassVar[bool] = True


def replaced_on_the_object() -> losses.Loss:
    loss = losses.Hinge()
    object.__setattr__(loss, "generator_loss", lambda fake_scores, real_scores=None: fake_scores.square().mean(-1))
    return loss


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (OwnDiscriminatorLoss(), "OwnDiscriminatorLoss, which overrides discriminator_loss"),
        (OwnGeneratorLoss(), "OwnGeneratorLoss, which overrides generator_loss"),
        (OwnFunctions(), "OwnFunctions, which overrides discriminator_loss"),
        (replaced_on_the_object(), "Hinge, which overrides generator_loss"),
        (Stated(losses.Hinge.terms._replace(real=OwnTerm("linear"))), "OwnTerm, which overrides value"),
        (losses.Hinge(penalty=OwnPenalty()), "OwnPenalty, which overrides value"),
        (WithRealScores(), "WithRealScores with generator_needs_real=True"),
        (Stated(clip=-1.0), "positive clip or None, got -1"),
    ],
)
def test_the_engine_refuses_what_a_loss_overrides(loss: losses.Loss, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        learner("native", loss)
    batch = tiny_batch()
    chosen = learner("auto", loss)
    assert reason in chosen.explain(3)
    assert torch.equal(chosen.meta_gradient(batch).generator, learner("torch", loss).meta_gradient(batch).generator)


def test_maml_of_a_relativistic_loss_runs_on_the_torch_executor() -> None:
    loss = losses.RelativisticAverage()
    with pytest.raises(ValueError, match="does not differentiate through inner loops with a relativistic loss"):
        learner("native", loss, mgf.MAML())
    assert "relativistic loss" in learner("auto", loss, mgf.MAML()).explain(3)


def test_a_relativistic_loss_passes_real_scores_to_the_generator() -> None:
    assert StatedRelativistic.generator_needs_real
    assert not Stated.generator_needs_real


def test_a_loss_or_penalty_without_data_says_what_to_state() -> None:
    class Blank(losses.Loss):
        pass

    class BlankPenalty(Penalty):
        location: ClassVar[Location] = "real"

    with pytest.raises(NotImplementedError, match=r"Blank to state `terms`, or to override discriminator_loss"):
        Blank().generator_loss(torch.zeros(2))
    with pytest.raises(NotImplementedError, match=r"BlankPenalty to state its `kind`, or to override value"):
        BlankPenalty().value(torch.zeros(2, 1, 3, 3))
    with pytest.raises(ValueError, match="kind of penalty of sample, pixel, zero_centered; got 'cubic'"):
        StatedPenalty(kind="cubic").value(torch.zeros(2, 1, 3, 3))
