"""The user's folder of files that can be made again."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "METAGAN_FAST_CACHE"
"""Environment variable that names the folder."""


def cache_folder() -> Path:
    """Return `$METAGAN_FAST_CACHE`, else `metagan_fast` in `$XDG_CACHE_HOME` or in `~/.cache`."""
    own = os.environ.get(VARIABLE)
    if own:
        return Path(os.path.expanduser(own)).absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(shared) if os.path.isabs(shared) else Path(os.path.expanduser("~")) / ".cache"
    return base / "metagan_fast"
