"""Coverage of an original library's public names by its stand-in."""

from __future__ import annotations

from types import ModuleType
from typing import Any


def public_names(module: ModuleType) -> list[str]:
    """Return a module's public names: `__all__`, or names of its library without an underscore."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    library = module.__name__.split(".")[0]

    def belongs(value: Any) -> bool:
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", library)
        return str(name).split(".")[0] == library

    return [name for name in dir(module) if name[0] != "_" and belongs(getattr(module, name))]


def coverage(stand_in: ModuleType, original: ModuleType) -> str:
    """Return the row of a migration page's table: the module, and how many of its public names the stand-in has."""
    names = public_names(original)
    own = vars(stand_in)  # without what its __getattr__ hands on
    return f"| `{original.__name__}` | {sum(name in own for name in names)} of {len(names)} |"
