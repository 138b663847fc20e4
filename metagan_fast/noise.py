"""Counter-based noise of each task: latents, interpolation weights and mini-batches.

Every number is a pure function of (seed, stream, meta-step, task, inner step, role, element), see `_philox`. So a draw
does not depend on the executor, on the number of tasks in a call or on the device: normals are computed in float64 and
rounded once, which leaves devices within 2 ulp of each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum, auto
from typing import NamedTuple

import torch
from torch import Tensor

from ._philox import Grid, Key, derive_key, derive_key_on_device, draw_words, normals, uniforms
from ._utils import coerce
from ._utils.tensors import ordinary


class Stream(IntEnum):
    """Purpose of a draw; streams of one seed never share a counter block."""

    TRAINING = 0
    ADAPTATION = 1
    SAMPLING = 2


@dataclass(frozen=True)
class Noise:
    """All random numbers of one meta-step.

    Rows are real images: `shots`, or the inner loop's `batch_size` where it draws mini-batches; there are as many
    generated ones unless the inner loop says `generated`. A weight w of `interpolation` makes the point
    w real + (1 - w) fake. Query draws are None without query images;
    query-adaptation draws are None unless the generator objective is "query".
    """

    discriminator_latents: Tensor  # [steps, critic_steps, tasks, generated, latent]
    generator_latents: Tensor  # [steps * generator_steps, tasks, generated, latent]
    interpolation: Tensor  # [steps, critic_steps, tasks, rows], in [0, 1)
    query_discriminator_latents: Tensor | None = None  # [evaluations, tasks, query, latent]
    query_generator_latents: Tensor | None = None  # [evaluations, tasks, query, latent]
    query_interpolation: Tensor | None = None  # [evaluations, tasks, query], in [0, 1)
    query_adaptation_latents: Tensor | None = None  # [steps, critic_steps, tasks, query, latent]
    query_adaptation_interpolation: Tensor | None = None  # [steps, critic_steps, tasks, query], in [0, 1)
    support_index: Tensor | None = None  # [steps, critic_steps, tasks, rows], int64
    first_step: int = field(default=0, init=False)  # place of these steps in their inner loop, for learning rates

    @property
    def steps(self) -> int:
        """Number of inner steps."""
        return self.discriminator_latents.shape[0]

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Noise:
        """Return the same noise on `device`, its floating tensors in `dtype`."""

        def move(value: Tensor) -> Tensor:
            return ordinary(value.to(device=device, dtype=dtype if value.is_floating_point() else None))

        return self._map(lambda name, value: move(value))

    def slice(self, start: int, stop: int) -> Noise:
        """Return the noise of tasks `start` to `stop - 1`, as `TaskBatch.slice` cuts them."""
        return self._map(lambda name, value: value.narrow(_DRAWS[name].task_dimension, start, stop - start))

    def take(self, tasks: Sequence[int]) -> Noise:
        """Return a copy of the noise of some tasks, as `TaskBatch.take` chooses them."""
        return self._map(
            lambda name, value: value.index_select(
                _DRAWS[name].task_dimension, torch.tensor(tasks, device=value.device)
            )
        )

    def at_step(self, step: int) -> Noise:
        """Return the inner loop's noise of one inner step, which keeps its index; query draws are left out."""
        inner = {name: value for name, value in self.drawn().items() if name in _INNER_DRAWS}
        updates = {name: len(value) // self.steps for name, value in inner.items()}  # of a step
        own = {name: value[step * updates[name] :][: updates[name]] for name, value in inner.items()}
        return Noise(**own)._from_step(self.first_step + step)

    def drawn(self) -> dict[str, Tensor]:
        """Return the tensors that are not None, by name."""
        return {name: value for name in _DRAWS if (value := getattr(self, name)) is not None}

    def check(self, shape: NoiseShape) -> None:
        """Raise ValueError unless the tensors have the names and shapes that `shape` requires."""
        for name, expected in shape.tensors().items():
            value = getattr(self, name)
            if value is None or tuple(value.shape) != expected:
                got = None if value is None else list(value.shape)
                raise ValueError(
                    f"expected noise.{name} to be {list(expected)}, got {got}; draw_noise(batch) makes noise that fits"
                )

    def _map(self, function: Callable[[str, Tensor], Tensor]) -> Noise:
        values = {name: getattr(self, name) for name in _DRAWS}
        changed = {name: None if v is None else function(name, v) for name, v in values.items()}
        return Noise(**changed)._from_step(self.first_step)  # type: ignore[arg-type]

    def _from_step(self, first_step: int) -> Noise:
        object.__setattr__(self, "first_step", first_step)
        return self


@dataclass(frozen=True)
class NoiseShape:
    """Sizes of the noise of one meta-step; see `Noise` for the tensors."""

    tasks: int
    shots: int
    latent_dim: int
    steps: int
    critic_steps: int = 1
    batch_size: int | None = None
    query: int = 0
    evaluations: int = 1
    query_adaptation: bool = False
    generated: int | None = None
    generator_steps: int = 1

    def __post_init__(self) -> None:
        counts = ("tasks", "shots", "latent_dim", "steps", "critic_steps", "generator_steps", "query", "evaluations")
        coerce.convert(self, coerce.count, *counts)
        coerce.convert(self, coerce.count, "batch_size", "generated", optional=True)
        coerce.convert(self, coerce.flag, "query_adaptation")

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor of `Noise` that is drawn."""
        rows = self.shots if self.batch_size is None else self.batch_size
        generated = rows if self.generated is None else self.generated
        updates = (self.steps, self.critic_steps, self.tasks)
        shapes: dict[str, tuple[int, ...]] = {
            "discriminator_latents": (*updates, generated, self.latent_dim),
            "generator_latents": (self.steps * self.generator_steps, self.tasks, generated, self.latent_dim),
            "interpolation": (*updates, rows),
        }
        if self.query:
            evaluations = (self.evaluations, self.tasks, self.query)
            shapes["query_discriminator_latents"] = (*evaluations, self.latent_dim)
            shapes["query_generator_latents"] = (*evaluations, self.latent_dim)
            shapes["query_interpolation"] = evaluations
        if self.query and self.query_adaptation:
            shapes["query_adaptation_latents"] = (*updates, self.query, self.latent_dim)
            shapes["query_adaptation_interpolation"] = (*updates, self.query)
        if self.batch_size is not None:
            shapes["support_index"] = (*updates, rows)
        return shapes

    def grid(self, name: str) -> Grid:
        """Return the grid of random words behind the named tensor."""
        draw, size = _DRAWS[name], self.tensors()[name]
        if draw.kind is _Kind.ORDER:  # every epoch shuffles all images anew
            images_drawn = self.steps * self.critic_steps * size[-1]
            return Grid(draw.role, -(-images_drawn // self.shots), 1, self.tasks, self.shots)
        inner = 1 if draw.task_dimension == 1 else size[1]
        count = math.prod(size[draw.task_dimension + 1 :])
        return Grid(draw.role, size[0], inner, self.tasks, count + count % 2)  # normals come in pairs


class _Kind(Enum):
    NORMAL = auto()
    UNIFORM = auto()
    ORDER = auto()


class _Draw(NamedTuple):
    """Draw of one tensor of `Noise`; roles are frozen, or earlier runs would draw other numbers."""

    role: int
    kind: _Kind
    task_dimension: int


_DRAWS = {
    "discriminator_latents": _Draw(0, _Kind.NORMAL, 2),
    "generator_latents": _Draw(1, _Kind.NORMAL, 1),
    "interpolation": _Draw(2, _Kind.UNIFORM, 2),
    "query_discriminator_latents": _Draw(3, _Kind.NORMAL, 1),
    "query_generator_latents": _Draw(4, _Kind.NORMAL, 1),
    "query_interpolation": _Draw(5, _Kind.UNIFORM, 1),
    "query_adaptation_latents": _Draw(6, _Kind.NORMAL, 2),
    "query_adaptation_interpolation": _Draw(7, _Kind.UNIFORM, 2),
    "support_index": _Draw(8, _Kind.ORDER, 2),
}
_SAMPLE_ROLE = 9
_WORDS_AT_ONCE = 1 << 17  # temporary memory: about 40 bytes a word
_INNER_DRAWS = ("discriminator_latents", "generator_latents", "interpolation", "support_index")


def draw_noise(
    shape: NoiseShape,
    *,
    seed: int,
    meta_step: int,
    first_task: int = 0,
    stream: Stream = Stream.TRAINING,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Noise:
    """Draw the noise of one meta-step.

    Args:
        shape: the sizes.
        seed: the run's seed, 0 to 2**64 - 1.
        meta_step: index of the meta-step, from 0.
        first_task: index of the first task in its meta-batch, so that a slice of a batch draws its own noise.
        stream: purpose of the draw.
        device, dtype: of the result; the numbers are the same on every device, to 2 ulp.

    Returns:
        A `Noise`.
    """
    key = derive_key(coerce.seed(seed), coerce.count("meta_step", meta_step), stream)
    first_task, at_once = coerce.count("first_task", first_task), _tasks_at_once(shape)
    parts = []
    for start in range(0, shape.tasks, at_once):
        part = replace(shape, tasks=min(at_once, shape.tasks - start))
        parts.append(_draw(part, key, first_task + start, torch.device(device), dtype))
    if len(parts) == 1:
        return parts[0]
    names = parts[0].drawn()
    return Noise(**{name: torch.cat([getattr(p, name) for p in parts], _DRAWS[name].task_dimension) for name in names})


def _tasks_at_once(shape: NoiseShape) -> int:
    """Return the number of tasks whose words are drawn at once: temporary memory is many times that of the words."""
    words = sum(math.prod(shape.grid(name)[1:]) for name in shape.tensors())
    return max(1, _WORDS_AT_ONCE * shape.tasks // max(1, words))


def noise_bytes(shape: NoiseShape, element_size: int) -> int:
    """Return the bytes of the noise of one meta-step, whose floating tensors have elements of `element_size` bytes."""
    return sum(math.prod(s) * (8 if name == "support_index" else element_size) for name, s in shape.tensors().items())


def noise_counters(
    *, seed: int, meta_step: int, first_task: int = 0, stream: Stream = Stream.TRAINING
) -> tuple[int, int, int, int, int, int]:
    """Return the counters of a draw, six int64 numbers for `draw_noise_at`."""
    low = 2**32 - 1
    seed, meta_step = coerce.seed(seed), coerce.count("meta_step", meta_step)
    return (
        seed & low,
        seed >> 32,
        meta_step & low,
        meta_step >> 32,
        int(stream),
        coerce.count("first_task", first_task),
    )


def draw_noise_at(shape: NoiseShape, counters: Tensor, *, dtype: torch.dtype = torch.float32) -> Noise:
    """Draw the noise of `draw_noise` with seed, meta-step, stream and first task read from a device tensor.

    The host takes no part, so a recorded draw follows the tensor's values at each replay.

    Args:
        shape: the sizes.
        counters: int64 [6], `noise_counters(...)`.
        dtype: of the result.
    """
    key = derive_key_on_device(counters[0:2], counters[2:4], counters[4])
    return _draw(shape, key, counters[5], counters.device, dtype)


def _draw(shape: NoiseShape, key: Key, first_task: int | Tensor, device: torch.device, dtype: torch.dtype) -> Noise:
    sizes = shape.tensors()
    words = draw_words([shape.grid(name) for name in sizes], key, first_task, device)

    def make(name: str, drawn: Tensor) -> Tensor:
        size = sizes[name]
        match _DRAWS[name].kind:
            case _Kind.ORDER:
                return _support_index(drawn, size)
            case _Kind.NORMAL:
                values = normals(drawn)
            case _:
                values = uniforms(drawn)
        count = math.prod(size[_DRAWS[name].task_dimension + 1 :])
        return values[..., :count].to(dtype).reshape(size)

    return Noise(**{name: make(name, drawn) for name, drawn in zip(sizes, words, strict=True)})


def draw_sample_latents(
    tasks: int,
    count: int,
    latent_dim: int,
    *,
    seed: int,
    first_task: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw latents [tasks, count, latent_dim] of samples; a task's draw depends on its index, not on `tasks`."""
    tasks, count, latent_dim = (
        coerce.count(name, value, least=1)
        for name, value in (("tasks", tasks), ("count", count), ("latent_dim", latent_dim))
    )
    size = count * latent_dim
    grid = Grid(_SAMPLE_ROLE, 1, 1, tasks, size + size % 2)
    key = derive_key(coerce.seed(seed), 0, Stream.SAMPLING)
    (words,) = draw_words([grid], key, coerce.count("first_task", first_task), torch.device(device))
    return normals(words)[..., :size].to(dtype).reshape(tasks, count, latent_dim)


def _support_index(words: Tensor, size: tuple[int, ...]) -> Tensor:
    """Shuffle each task's images by their words `[epochs, 1, tasks, shots]` and deal them out without replacement.

    Mini-batches cycle through the task (Nichol et al. 2018, section 6), larger ones more than once: over the inner
    loop the images' counts differ by at most one.
    """
    steps, critic_steps, tasks, rows = size
    order = words.squeeze(1).argsort(dim=-1, stable=True)
    sequence = order.transpose(0, 1).flatten(1)[:, : steps * critic_steps * rows]
    return sequence.reshape(tasks, steps, critic_steps, rows).permute(1, 2, 0, 3).contiguous()
