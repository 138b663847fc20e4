"""Timing of several functions in alternation, so that drift of the machine affects all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Run = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of one function, by round."""

    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        """Shortest time: the code's own, with the least interference."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """Median time."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Interquartile range over the median; 0 for fewer than two rounds."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / self.median


def alternate(
    runs: Mapping[str, Run], *, rounds: int, seconds: float = float("inf"), warm_up: int = 1, settle: float = 0.0
) -> dict[str, Timing]:
    """Time functions in turn for `rounds` rounds, or for at least 2 if `seconds` have passed.

    Args:
        runs: the functions by name.
        rounds: timed calls of each function, at least 1.
        seconds: time limit; no further round begins after it.
        warm_up: untimed calls of each function before the first round.
        settle: seconds to sleep before each timed call. OpenMP threads spin for some milliseconds after a call and
            would occupy a core during the next one.

    Returns:
        The timings by name.
    """
    for run in runs.values():
        for _ in range(warm_up):
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    for number in range(rounds):
        if number >= 2 and time.perf_counter() - start > seconds:
            break
        for name, run in runs.items():
            time.sleep(settle)
            before = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - before)
    return {name: Timing(tuple(values)) for name, values in times.items()}
