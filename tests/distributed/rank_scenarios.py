"""Work of the ranks of the tests: whole meta-steps in groups of 1 to 4 of 4 processes, and single collectives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import metagan_fast as mgf
from metagan_fast.distributed import FirstRankFailed, Ranks, RanksDiffer, job
from metagan_fast.noise import Noise
from metagan_fast.tasks import TaskBatch
from metagan_fast.tasks.data_sets import parallel
from metagan_fast.training.dropped_tasks import DroppedTasks
from metagan_fast.training.outer_loop import Training
from networks import tiny_batch, tiny_gan

META: dict[str, Callable[[], Any]] = {
    "reptile": lambda: mgf.Reptile(optimizer="sgd", lr=0.5),
    "adam": lambda: mgf.Reptile(lr=1e-2),
    "serial": lambda: mgf.Reptile(lr=1e-2, serial=True),
    "fomaml": lambda: mgf.FOMAML(lr=1e-2),
    "maml": lambda: mgf.MAML(lr=1e-2, clip_norm=1.0),
    "joint": lambda: mgf.Reptile(lr=1e-2),
}
TASKS = (5, 2)  # unevenly many, and fewer than ranks
STEPS = 2

Outcome = tuple[dict[str, float], Tensor]


def learner(meta: str, executor: str, seed: int = 0, **options: Any) -> mgf.MetaGAN:
    torch.manual_seed(seed)
    inner = mgf.InnerLoop(lr=5e-2, steps=2)
    options = {"loss": "non-saturating", "seed": 3, **options}
    return mgf.MetaGAN(*tiny_gan(), latent_dim=6, inner=inner, meta=META[meta](), executor=executor, **options)


def train(meta: str, executor: str, tasks: int, **options: Any) -> Outcome:
    """Return the last metrics and the whole state as one vector."""
    trained = learner(meta, executor, **options)
    torch.manual_seed(9)
    for _ in range(STEPS):
        batch = tiny_batch(tasks=tasks)
        metrics = trained.joint_step(batch) if meta == "joint" else trained.meta_step(batch)
    trained.check_ranks()
    state = trained.state()[0]
    return metrics, torch.cat([state[name].reshape(-1) for name in sorted(state)])


CASES = [
    *((meta, "native", tasks) for meta in META for tasks in TASKS),
    *((meta, "torch", tasks) for meta in ("adam", "maml", "joint") for tasks in TASKS),
]
"""Algorithm, executor and tasks of a meta-step."""


def everything(rank: int, size: int) -> dict[str, Any]:
    """Return the results of all groups that the rank is in."""
    results: dict[str, Any] = {}
    for members in range(1, size + 1):
        group = dist.new_group(list(range(members)))
        if rank >= members:
            continue
        for case in CASES:
            for ordered in (False, True):
                results[(members, *case, ordered)] = train(*case, process_group=group, deterministic_reduce=ordered)
    return results


class Poisoned(mgf.MetaGAN):
    """Learner whose noise of the last of five tasks is infinite in the first meta-step."""

    def _noise(self, batch: TaskBatch, noise: Noise | None, *others: Any) -> Noise:
        drawn = super()._noise(batch, noise, *others)
        task = 4 - batch.first_task
        if noise is None and self.step == 0 and 0 <= task < batch.tasks:
            drawn.generator_latents[..., task, :, :] = float("inf")
        return drawn


def drop(executor: str, max_dropped: int = 1, **options: Any) -> Outcome:
    """Return the metrics of a meta-step of five tasks, one of which diverges, and the state after another one."""
    trained = learner("adam", executor, **options)
    trained.__class__ = Poisoned
    training = Training(STEPS, tasks=5, shots=2, max_dropped=max_dropped)
    dropped = DroppedTasks(Path("replay.safetensors"))
    torch.manual_seed(9)
    metrics = [dropped.train_on(training, trained, tiny_batch(tasks=5), {}) for _ in range(STEPS)]
    trained.check_ranks()
    state = trained.state()[0]
    return metrics[0], torch.cat([state[name].reshape(-1) for name in sorted(state)])


def dropping(rank: int, size: int) -> dict[Any, Any]:
    """Return the results of `drop` in all groups that the rank is in, and the error of too many dropped tasks."""
    results: dict[Any, Any] = {}
    for members in range(1, size + 1):
        group = dist.new_group(list(range(members)))
        if rank >= members:
            continue
        for executor in ("native", "torch"):
            for ordered in (False, True):
                options = {"process_group": group, "deterministic_reduce": ordered}
                results[members, executor, ordered] = drop(executor, **options)
    try:
        drop("native", max_dropped=0, process_group=dist.group.WORLD)
    except FloatingPointError as error:
        results["error"] = str(error)
    return results


def messages(rank: int, size: int) -> dict[str, Any]:
    """Return what collectives and errors give on each rank."""
    world = dist.group.WORLD
    ranks = Ranks(world)
    batch = tiny_batch(tasks=2)
    support = torch.arange(2.0).reshape(2, 1, 1, 1, 1).expand_as(batch.support) / 4
    found: dict[str, Any] = {
        "mapped": ranks.map_tasks(mgf.TaskBatch(support), lambda part: {"mean": part.support.mean((1, 2, 3, 4))}),
        "objects": ranks.gather_objects(f"of {rank}"),
        "shared": ranks.share(lambda: {"rank": rank}),
        "state": ranks.share_state(lambda: ({"x": torch.tensor([1.5, 2.5]), "n": torch.tensor(7)}, {"step": 3})),
        "order": ranks.after_first(lambda: rank),
        "unlike": ranks.unlike_first(1 if rank == 2 else 0),
    }
    job.ranks, parallel._processors = lambda: ranks, lambda: 1
    found["each"] = list(parallel.each(str, range(6), "words", lambda *_: None))
    ranks.poll(lambda: rank == size - 1)
    found["stop"] = ranks.agree_to_stop()
    trained = learner("reptile", "auto", seed=rank, process_group=world)
    trained._ranks.wants_stop = ranks.wants_stop
    trained.meta_step(batch)
    found["counted"] = trained._ranks._stop_agreed, trained._ranks.agree_to_stop(), trained._ranks._stop_agreed
    found["parameters"] = trained.generator_parameters.clone()
    found["gradient"] = trained.meta_gradient(batch).generator
    try:
        ranks.share(lambda: 1 // rank)
    except (FirstRankFailed, ZeroDivisionError) as error:
        found["failed"] = type(error).__name__, str(error)
    try:
        learner("fomaml" if rank == 1 else "reptile", "auto", process_group=world)
    except RanksDiffer as error:
        found["other settings"] = str(error)
    with torch.no_grad():
        trained.generator_parameters[0] += rank == 3
    try:
        trained.check_ranks()
    except RanksDiffer as error:
        found["other parameters"] = str(error)
    return found
