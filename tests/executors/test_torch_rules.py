"""Rules against wrong derivatives of PyTorch's own transforms, checked in the installed version."""

from __future__ import annotations

import pytest

from tolerances import tolerance
from torch_rules import NORMS, RULES, Rule, derivative, draw, verdict


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_results_are_right_whether_or_not_pytorchs_are(rule: Rule) -> None:
    assert rule.ours() <= tolerance("float64-parity")


def test_a_verdict_tells_right_from_wrong() -> None:
    """First derivatives of the norms are right in every version, so that a wrong verdict is not the oracle's fault."""
    for theirs, by_hand, _ in NORMS.values():
        x = draw(3, 3, 4, 4)
        error = (derivative(theirs, x, 1) - derivative(by_hand, x, 1)).norm() / derivative(by_hand, x, 1).norm()
        assert error < tolerance("float64-rounding")
        second = (derivative(theirs, x, 2) - derivative(by_hand, x, 2)).norm() / derivative(by_hand, x, 2).norm()
        assert second < tolerance("float64-rounding")
    outcomes = {"right": lambda: 0.0, "wrong": lambda: 0.1, "raises": lambda: 1 / 0}
    assert all(verdict(Rule("", theirs, theirs)) == name for name, theirs in outcomes.items())
