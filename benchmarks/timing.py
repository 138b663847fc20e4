"""Times of several functions, taken in alternation so that a drift of the machine meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Run = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """The seconds that one function took, round by round."""

    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        """The shortest time: what the code takes where nothing disturbs it."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """The median time."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Distance of the quartiles over the median; 0 for fewer than two rounds."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / self.median


def alternate(
    runs: Mapping[str, Run], *, rounds: int, seconds: float = float("inf"), warm_up: int = 1, settle: float = 0.0
) -> dict[str, Timing]:
    """Call all functions in turn, `rounds` times, or fewer (at least 2) when `seconds` have passed.

    Args:
        runs: the functions by name.
        rounds: timed calls of each, at least 1.
        seconds: time after which no round begins.
        warm_up: calls of each before the first round, not timed.
        settle: seconds of rest before each timed call. OpenMP's threads spin some milliseconds after a call and would
            take a core from the next function.

    Returns:
        The times by name.
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
