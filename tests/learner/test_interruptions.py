"""Meta-steps are atomic: interrupted at every line of the update, by errors in it, and twice."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

import metagan_fast as mgf
from metagan_fast.learner.state import LearnerState
from networks import tiny_batch, tiny_gan

SETTINGS: dict[str, dict[str, Any]] = {
    "reptile": {"meta": mgf.Reptile(lr=0.01)},
    "serial, persistent inner Adam": {
        "inner": mgf.InnerLoop(optimizer="adam", lr=0.05, steps=1, inner_state="persist"),
        "meta": mgf.Reptile(optimizer="sgd", lr=0.5, momentum=0.9, serial=True),
    },
    "serial": {"meta": mgf.Reptile(optimizer="adamw", lr=0.01, serial=True)},
}
State = tuple[dict[str, Tensor], dict[str, Any]]


def make_learner(name: str) -> mgf.MetaGAN:
    torch.manual_seed(1)
    return mgf.MetaGAN(*tiny_gan(), **({"latent_dim": 6, "inner": mgf.InnerLoop(lr=0.05, steps=1)} | SETTINGS[name]))


def make_batch(name: str) -> mgf.TaskBatch:
    torch.manual_seed(2)
    return tiny_batch(tasks=1 if "persistent" in name else 2, query=0)


def state(learner: mgf.MetaGAN) -> State:
    tensors, metadata = learner.state()
    return {name: tensor.clone() for name, tensor in tensors.items()}, metadata


def equal(first: State, second: State) -> bool:
    same = all(torch.equal(value, second[0][name]) for name, value in first[0].items())
    return same and first[0].keys() == second[0].keys() and first[1] == second[1]


UPDATE = ("meta_step", "_train_on", "_update", "update", "step", "atomic", "begin_update", "_updated", "roll_back")
FILES = ("metagan.py", "state.py", "meta_optimizer.py")


def interrupted_at(line: int, call: Callable[[], object]) -> bool:
    """Call, raise KeyboardInterrupt at the update's `line`-th executed line; return False if there are fewer."""
    left = line

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        code = frame.f_code
        if code.co_name not in UPDATE or not code.co_filename.endswith(FILES):
            return None
        left -= event == "line"
        if left < 0:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("name", SETTINGS)
def test_an_interrupt_at_any_line_leaves_a_complete_meta_step(name: str) -> None:
    batch, learner = make_batch(name), make_learner(name)
    states = [state(learner)]
    for _ in range(3):
        learner.meta_step(batch)
        states.append(state(learner))
    line, ends = 0, set()
    while True:
        learner.load_state(*states[1])
        if not interrupted_at(line, lambda: learner.meta_step(batch)):
            break
        assert learner.step in (1, 2)
        assert equal(state(learner), states[learner.step]), f"line {line}"
        ends.add(learner.step)
        learner.meta_step(batch)
        assert equal(state(learner), states[learner.step]), f"line {line}"
        line += 1
    assert line > 30 and 1 in ends


def failing(learner: mgf.MetaGAN, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let the update of the second network fail, after the first one's."""
    step, calls = type(learner.meta).step, 0

    def fail(*arguments: Any, **options: Any) -> tuple[Tensor, ...]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise error
        return step(*arguments, **options)

    monkeypatch.setattr(type(learner.meta), "step", fail)


@pytest.mark.parametrize("error", [MemoryError(), OSError("gone"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("name", SETTINGS)
def test_no_network_is_updated_without_the_other(
    name: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, learner = make_batch(name), make_learner(name)
    learner.meta_step(batch)
    before = state(learner)
    failing(learner, monkeypatch, error)
    with pytest.raises(type(error)):
        learner.meta_step(batch)
    assert equal(state(learner), before)


def test_gradients_of_ones_own_are_applied_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, learner = make_batch("reptile"), make_learner("reptile")
    before = state(learner)
    gradient = learner.meta_gradient(batch)
    failing(learner, monkeypatch, MemoryError())
    with pytest.raises(MemoryError):
        learner.apply(gradient)
    assert equal(state(learner), before)


def test_a_second_interrupt_does_not_stop_the_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, learner = make_batch("reptile"), make_learner("reptile")
    before = state(learner)
    failing(learner, monkeypatch, KeyboardInterrupt())
    roll_back, calls = LearnerState.roll_back, 0

    def interrupted(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise KeyboardInterrupt
        roll_back(*arguments)

    monkeypatch.setattr(LearnerState, "roll_back", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learner.meta_step(batch)
    assert calls == 3 and equal(state(learner), before)


def test_nothing_is_saved_from_within_an_update() -> None:
    """A user-defined schedule runs within the update."""

    def save(step: int) -> float:
        learner.state()
        return 0.1

    torch.manual_seed(1)
    learner = mgf.MetaGAN(*tiny_gan(), latent_dim=6, meta=mgf.Reptile(lr=save))
    with pytest.raises(RuntimeError, match="whose update is under way"):
        learner.meta_step(make_batch("reptile"))


def test_a_serial_meta_step_that_diverges_late_changes_nothing() -> None:
    learner = make_learner("serial")
    before = {name: tensor.clone() for name, tensor in learner.state()[0].items()}
    batch = make_batch("serial")
    noise = learner.draw_noise(batch)
    noise.generator_latents[0, 1] = float("nan")
    with pytest.raises(FloatingPointError, match="the initialisation is unchanged"):
        learner.meta_step(batch, noise)
    assert all(torch.equal(value, before[name]) for name, value in learner.state()[0].items())
    assert learner.step == 0
