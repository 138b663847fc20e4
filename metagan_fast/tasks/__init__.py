"""Data sets as distributions of tasks: a class is a task, with support and query images drawn from the class."""

from __future__ import annotations

from .batch import TaskBatch
from .distribution import TaskDistribution
from .load import NAMES, Tasks, load, read_images
from .memory import from_arrays, from_dataset

__all__ = ["NAMES", "TaskBatch", "TaskDistribution", "Tasks", "from_arrays", "from_dataset", "load", "read_images"]
