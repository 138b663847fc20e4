"""`Ranks`: the processes of a `torch.distributed` group, and the few collectives that meta-training needs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import FirstRankFailed, LostRank

CHUNK = 1 << 18
"""Elements of a running sum that travel at once: long enough for the link, short enough to keep all ranks busy."""


class Sliceable(Protocol):
    """Batch of tasks that can be cut, as `tasks.TaskBatch`."""

    @property
    def tasks(self) -> int:
        """Number of tasks."""
        ...

    def slice(self, start: int, stop: int) -> Any:
        """Return tasks `start` up to `stop`."""
        ...


Batch = TypeVar("Batch", bound=Sliceable)
Value = TypeVar("Value")


class Ranks:
    """Processes that share work; every method is collective unless it says otherwise.

    Args:
        group: an initialised process group; None: this process alone.
        deterministic: add the terms of a sum over tasks in index order, as a single process does.

    Attributes:
        rank, size: this process's number in the group, and the number of all.
        wants_stop: asked when votes are counted: whether this process has been told to stop.

    Raises:
        ValueError: no group, or this process is not in it.
    """

    explain: ClassVar[Callable[[BaseException], Exception] | None] = None
    """Makes the error to raise for one of torch.distributed, where more is known of the other processes."""

    def __init__(self, group: dist.ProcessGroup | None = None, *, deterministic: bool = False) -> None:
        self.deterministic = deterministic
        self.wants_stop: Callable[[], bool] = lambda: False
        self._stop_agreed: bool | None = None  # None: the votes are not counted since the last question
        self._group = group
        if group is None:
            self.rank, self.size = 0, 1
            return
        if not isinstance(group, dist.ProcessGroup):
            raise ValueError(
                f"expected process_group to be a torch.distributed process group, got {group!r}; call "
                "torch.distributed.init_process_group() and pass torch.distributed.group.WORLD"
            )
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("expected a process group with this process in it; build the learner in its members alone")
        has_cpu = "cpu" in dist.get_backend_config(group)
        self._device = torch.device("cpu") if has_cpu else torch.device("cuda", torch.cuda.current_device())

    @property
    def is_first(self) -> bool:
        """Whether this process is rank 0, which writes and prints; not collective."""
        return self.rank == 0

    def part(self, count: int, rank: int | None = None) -> range:
        """Return the indices of a rank's part of `count` items: consecutive, the first ranks' longer; not collective.

        Ranks beyond `count` have none; rank 0 has none only of 0.
        """
        rank = self.rank if rank is None else rank
        each, more = divmod(count, self.size)
        start = rank * each + min(rank, more)
        return range(start, start + each + (rank < more))

    # Sums

    def sum(self, values: Tensor) -> None:
        """Add the values of all ranks in place, in any order."""
        if self.size > 1:
            with self._talk():
                dist.all_reduce(values, group=self._group)

    def ordered_mean(self, out: Tensor, terms: Sequence[Sequence[Tensor]], count: int) -> None:
        """Write the mean of `count` terms, added in index order, to `out` of every rank.

        A running sum passes from rank to rank, in pieces, so all ranks add at once. The rounding is that of
        `ops.reference`: the terms one by one, then one product with 1 / count.

        Args:
            out: `[numel]`, contiguous.
            terms: one an own item of `part(count)`: the parts of a vector [numel], in order.
            count: number of items of all ranks.
        """
        last = min(self.size, count) - 1
        sending = []
        with self._talk():
            if self.rank <= last:
                for start, piece in _pieces(out, [part.numel() for part in terms[0]]):
                    first = self.rank == 0
                    if not first:
                        dist.recv(piece, self._global(self.rank - 1), group=self._group)
                    for term in terms:
                        own = _at(term, start, piece.numel())
                        piece.copy_(own) if first else piece.add_(own)
                        first = False
                    if self.rank == last:
                        piece.mul_(1 / count)
                    else:
                        sending.append(dist.isend(piece, self._global(self.rank + 1), group=self._group))
            for each in sending:
                if each is not None:
                    each.wait()
            if self.size > 1:
                dist.broadcast(out, self._global(last), group=self._group)

    # Results by task

    def map_tasks(self, batch: Batch, work: Callable[[Batch], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return `work(batch)`, tensors `[tasks, ...]` by name, of which each rank computes its part of the tasks."""
        own = self.part(batch.tasks)
        results = dict(work(batch.slice(own.start, own.stop))) if own else {}
        if self.size == 1:
            return results
        kinds = self.share(lambda: [(name, str(x.dtype)[6:], list(x.shape[1:])) for name, x in results.items()])
        return {
            name: self._gather(results.get(name), batch.tasks, shape, getattr(torch, dtype))
            for name, dtype, shape in kinds
        }

    def _gather(self, own: Tensor | None, count: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return the rows of all ranks, on the device of the own ones."""
        rows = torch.zeros(len(self.part(count, 0)), *shape, dtype=dtype, device=self._device)
        if own is not None:
            rows[: len(own)] = own
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        with self._talk():
            dist.all_gather(parts, rows, group=self._group)
        gathered = torch.cat([part[: len(self.part(count, rank))] for rank, part in enumerate(parts)])
        return gathered if own is None else gathered.to(own.device)

    def gather_objects(self, own: Value) -> list[Value]:
        """Return an object of each rank, in their order; they travel pickled."""
        if self.size == 1:
            return [own]
        everyone: list[Any] = [None] * self.size
        with self._talk():
            dist.all_gather_object(everyone, own, group=self._group)
        return everyone

    # Work of the first rank for all

    def share(self, make: Callable[[], Value]) -> Value:
        """Return the result of the first rank's `make`, JSON-able data, on every rank.

        Raises:
            FirstRankFailed: on the other ranks, where `make` raises on the first.
        """
        if self.size == 1:
            return make()
        if not self.is_first:
            message = json.loads(bytes(self._receive().tolist()))
            if "error" in message:
                raise FirstRankFailed(message["error"])
            value: Value = message["value"]
            return value
        try:
            text = json.dumps({"value": make()})
        except Exception as error:
            self._send(json.dumps({"error": f"{type(error).__name__}: {error}"}))
            raise
        self._send(text)
        result: Value = json.loads(text)["value"]
        return result

    def share_state(
        self, read: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and the metadata that the first rank reads from a checkpoint, on every rank.

        Raises:
            FirstRankFailed: as `share`.
        """
        if self.size == 1:
            return read()
        tensors: dict[str, Tensor] = {}

        def describe() -> tuple[list[tuple[str, str, list[int]]], dict[str, Any]]:
            found, metadata = read()
            tensors.update(found)
            return [(name, str(x.dtype)[6:], list(x.shape)) for name, x in found.items()], metadata

        kinds, metadata = self.share(describe)
        for name, dtype, shape in kinds:
            if not self.is_first:
                tensors[name] = torch.empty(shape, dtype=getattr(torch, dtype))
            tensors[name] = tensors[name].contiguous()
            self.copy_first(tensors[name])
        return tensors, metadata

    def copy_first(self, tensor: Tensor) -> None:
        """Overwrite a tensor by the first rank's."""
        if self.size == 1:
            return
        sent = tensor.detach().to(self._device) if tensor.device.type == "cpu" else tensor.detach()
        with self._talk():
            dist.broadcast(sent, self._global(0), group=self._group)
        if sent.device != tensor.device:
            tensor.copy_(sent)

    def after_first(self, make: Callable[[], Value]) -> Value:
        """Return `make()`, which the other ranks call once the first one has: it leaves files for them.

        Raises:
            FirstRankFailed: as `share`.
        """
        made: list[Value] = []
        self.share(lambda: made.append(make()))
        return made[0] if made else make()

    def unlike_first(self, digest: int) -> list[int]:
        """Return the ranks whose digest, of 63 bits, is not the first rank's."""
        if self.size == 1:
            return []
        own = torch.tensor([digest], dtype=torch.int64, device=self._device)
        everyone = [torch.empty_like(own) for _ in range(self.size)]
        with self._talk():
            dist.all_gather(everyone, own, group=self._group)
        digests = torch.cat(everyone).tolist()
        return [rank for rank, other in enumerate(digests) if other != digests[0]]

    def _send(self, text: str) -> None:
        data = text.encode()
        size = torch.tensor([len(data)], dtype=torch.int64)
        self.copy_first(size)
        self.copy_first(torch.frombuffer(bytearray(data), dtype=torch.uint8))

    def _receive(self) -> Tensor:
        size = torch.zeros(1, dtype=torch.int64)
        self.copy_first(size)
        data = torch.empty(int(size), dtype=torch.uint8)
        self.copy_first(data)
        return data

    # Stops

    def poll(self, wants_stop: Callable[[], bool]) -> None:
        """Ask `wants_stop` from now on when votes are counted, and forget earlier votes; not collective."""
        self.wants_stop, self._stop_agreed = wants_stop, None

    def count_votes(self, votes: float) -> None:
        """Take the number of ranks that want to stop, counted with another sum; not collective."""
        self._stop_agreed = votes > 0

    def agree_to_stop(self) -> bool:
        """Return whether any rank wants to stop, the same on all: as last counted, else by a sum of its own."""
        if self.size == 1:
            return self.wants_stop()
        if self._stop_agreed is None:
            votes = torch.tensor([float(self.wants_stop())], device=self._device)
            self.sum(votes)
            self.count_votes(votes.item())
        agreed, self._stop_agreed = bool(self._stop_agreed), None
        return agreed

    def _global(self, rank: int) -> int:
        assert self._group is not None
        return dist.get_global_rank(self._group, rank)

    @contextlib.contextmanager
    def _talk(self) -> Iterator[None]:
        """Raise LostRank for an error of torch.distributed."""
        try:
            yield
        except RuntimeError as error:
            if Ranks.explain is not None:
                raise Ranks.explain(error) from error
            raise LostRank(
                "a rank of the process group was lost, or ended while this one waited for it; start the job again "
                f"from the last checkpoint, on any number of ranks ({' '.join(str(error).split())})"
            ) from error


def _pieces(out: Tensor, lengths: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """Yield views of a vector of at most CHUNK elements, each within one of its parts, with their offsets."""
    end = 0
    for length in lengths:
        for start in range(end, end + length, CHUNK):
            yield start, out[start : min(start + CHUNK, end + length)]
        end += length


def _at(parts: Sequence[Tensor], start: int, numel: int) -> Tensor:
    """Return elements of a vector that is given in parts, all within one."""
    for part in parts:
        if start < part.numel():
            return part[start : start + numel]
        start -= part.numel()
    raise IndexError(start)
