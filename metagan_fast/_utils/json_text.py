"""JSON from files that anything may have written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def parse(text: str | bytes) -> Any:
    """Return the content of a JSON text; ValueError for any other text, also one nested too deep to read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def line(values: Mapping[str, Any]) -> str:
    """Return numbers and texts as one line of strict JSON; NaN and infinities, which JSON lacks, become null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"
