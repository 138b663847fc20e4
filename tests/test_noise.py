"""The counter-based draws: known answers, independence from the batch, distributions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metagan_fast._philox import philox
from metagan_fast.noise import Noise, NoiseShape, Stream, draw_noise, draw_sample_latents

SHAPE = NoiseShape(tasks=3, shots=5, latent_dim=7, steps=4, critic_steps=2, query=3, query_adaptation=True)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # known answers published with the generator (Random123's kat_vectors, philox4x32 with 10 rounds)
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    words = philox(tuple(torch.tensor(word) for word in counter), key)
    assert tuple(int(word) for word in words) == expected


def _equal(a: Noise, b: Noise) -> bool:
    """Compare names and values."""
    first, second = a.drawn(), b.drawn()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@given(start=st.integers(0, 4), count=st.integers(1, 3), batch_size=st.sampled_from([None, 2, 5]))
def test_a_task_keeps_its_noise_in_any_slice(start: int, count: int, batch_size: int | None) -> None:
    shape = dataclasses.replace(SHAPE, tasks=7, batch_size=batch_size)
    whole = draw_noise(shape, seed=5, meta_step=2)
    part = draw_noise(dataclasses.replace(shape, tasks=count), seed=5, meta_step=2, first_task=start)
    assert _equal(whole.slice(start, start + count), part)


@given(st.integers(1, 6), st.integers(1, 9))
def test_draws_do_not_depend_on_other_sizes(steps: int, shots: int) -> None:
    long = draw_noise(dataclasses.replace(SHAPE, steps=6, shots=9), seed=1, meta_step=0)
    short = draw_noise(dataclasses.replace(SHAPE, steps=steps, shots=shots), seed=1, meta_step=0)
    assert torch.equal(short.generator_latents, long.generator_latents[:steps, :, :shots])
    assert torch.equal(short.interpolation, long.interpolation[:steps, ..., :shots])


@pytest.mark.parametrize("batch_size", [None, 4])
def test_generated_images_and_updates_add_draws_and_change_none(batch_size: int | None) -> None:
    shape = dataclasses.replace(SHAPE, batch_size=batch_size)
    usual = draw_noise(shape, seed=1, meta_step=0)
    more = draw_noise(dataclasses.replace(shape, generated=9, generator_steps=3), seed=1, meta_step=0)
    rows = batch_size or SHAPE.shots
    assert more.discriminator_latents.shape == (4, 2, 3, 9, 7) and more.generator_latents.shape == (12, 3, 9, 7)
    assert torch.equal(more.discriminator_latents[..., :rows, :], usual.discriminator_latents)
    assert torch.equal(more.generator_latents[:4, :, :rows], usual.generator_latents)
    for name in usual.drawn().keys() - {"discriminator_latents", "generator_latents"}:
        assert torch.equal(getattr(more, name), getattr(usual, name))
    assert more.steps == 4


def test_seed_step_stream_role_and_task_all_matter() -> None:
    def first(**changes: int) -> torch.Tensor:
        settings: dict[str, Any] = {"seed": 1, "meta_step": 0, "dtype": torch.float64} | changes
        return draw_noise(SHAPE, **settings).discriminator_latents

    base = first()
    variants = [first(seed=2), first(seed=2**32 + 1), first(meta_step=1), first(meta_step=2**32),
                first(stream=Stream.ADAPTATION)]  # fmt: skip
    draws = torch.cat([base.flatten(), *[variant.flatten() for variant in variants]])
    assert draws.unique().numel() == draws.numel()
    both = draw_noise(SHAPE, seed=1, meta_step=0, dtype=torch.float64)
    values = torch.cat([both.discriminator_latents.flatten(), both.generator_latents.flatten()])
    assert values.unique().numel() == values.numel()


def _kolmogorov_distance(values: torch.Tensor, distribution: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Return sup |empirical - distribution|, times sqrt(n): above 1.95 once in a thousand times."""
    ordered = values.flatten().double().sort().values
    count = ordered.numel()
    steps = torch.arange(count + 1, dtype=torch.float64) / count
    expected = distribution(ordered)
    return torch.maximum(expected - steps[:-1], steps[1:] - expected).max().item() * count**0.5


def test_latents_are_standard_normal_and_weights_uniform() -> None:
    shape = NoiseShape(tasks=8, shots=16, latent_dim=101, steps=10)
    latents = draw_noise(shape, seed=3, meta_step=7, dtype=torch.float64).discriminator_latents.flatten()
    assert _kolmogorov_distance(latents, torch.special.ndtr) < 1.95
    pairs = torch.stack((latents[0:-1:2], latents[1::2]))
    assert abs(torch.corrcoef(pairs)[0, 1]) < 0.02  # Box-Muller uses the same words for both
    weights = draw_noise(dataclasses.replace(shape, tasks=200, latent_dim=1), seed=3, meta_step=7).interpolation
    assert weights.min() >= 0 and weights.max() < 1
    assert _kolmogorov_distance(weights, lambda w: w) < 1.95


@pytest.mark.parametrize(
    ("shots", "batch_size", "steps", "critic_steps"), [(5, 2, 7, 1), (4, 4, 3, 2), (6, 3, 4, 3), (3, 7, 2, 2)]
)
def test_mini_batches_cycle_without_replacement(shots: int, batch_size: int, steps: int, critic_steps: int) -> None:
    shape = NoiseShape(2, shots, 3, steps, critic_steps=critic_steps, batch_size=batch_size)
    drawn = draw_noise(shape, seed=0, meta_step=0)
    assert drawn.support_index is not None
    assert drawn.discriminator_latents.shape[3] == batch_size
    for task in range(2):
        sequence = drawn.support_index[:, :, task].flatten().tolist()
        for epoch in range(len(sequence) // shots):
            assert sorted(sequence[epoch * shots : (epoch + 1) * shots]) == list(range(shots))
        drawn_times = torch.bincount(drawn.support_index[:, :, task].flatten(), minlength=shots)
        assert drawn_times.max() - drawn_times.min() <= 1
    assert not torch.equal(drawn.support_index[:, :, 0], drawn.support_index[:, :, 1])


def test_noise_of_another_shape_is_refused() -> None:
    drawn = draw_noise(SHAPE, seed=0, meta_step=0)
    drawn.check(SHAPE)
    with pytest.raises(ValueError, match=r"expected noise.discriminator_latents to be \[9, 2, 3, 5, 7\]"):
        drawn.check(dataclasses.replace(SHAPE, steps=9))
    with pytest.raises(ValueError, match="support_index"):
        drawn.check(dataclasses.replace(SHAPE, batch_size=5))
    with pytest.raises(ValueError, match=r"expected noise.discriminator_latents to be \[4, 2, 3, 6, 7\]"):
        drawn.check(dataclasses.replace(SHAPE, generated=6))
    with pytest.raises(ValueError, match=r"expected noise.generator_latents to be \[8, 3, 5, 7\]"):
        drawn.check(dataclasses.replace(SHAPE, generator_steps=2))


def test_samples_of_a_task_do_not_depend_on_the_others() -> None:
    many = draw_sample_latents(5, 4, 6, seed=9)
    assert torch.equal(draw_sample_latents(2, 4, 6, seed=9), many[:2])
    assert torch.equal(draw_sample_latents(2, 4, 6, seed=9, first_task=3), many[3:])
    assert torch.equal(draw_sample_latents(5, 2, 6, seed=9), many[:, :2])
    assert draw_sample_latents(1, 2, 3, seed=9, dtype=torch.float64).dtype == torch.float64
