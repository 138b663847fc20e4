"""Evaluation made up for tests of what shows one."""

from __future__ import annotations

from metagan_fast.metrics import Evaluation, Figure, Row
from metagan_fast.metrics.results import FIGURES, METHODS


def made_up_evaluation() -> Evaluation:
    """Return all rows of two classes in two feature spaces, with two numbers of inner steps, all of equal figures."""
    figures = {name: Figure(1.25) if name == "fid" else Figure(1.25, 1.0, 1.5) for name in FIGURES}
    spaces = ("classifier", "prototype")
    rows = [
        Row(method, 4, steps, dict.fromkeys(spaces, figures), dict.fromkeys(spaces, (1.0, 1.5)))
        for method in METHODS
        for steps in ((10, 5) if method == "adapted" else (None,))
    ]
    differences = {method: Figure(-2.5, -3.0, -2.0) for method in METHODS if method != "adapted"}
    settings = {"samples": 64, "draws": 1, "episodes": "0" * 64, "features": dict.fromkeys(spaces, "1" * 64)}
    return Evaluation(("3", "5"), tuple(rows), dict.fromkeys(spaces, differences), settings)
