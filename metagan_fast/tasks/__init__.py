"""Data sets as distributions of tasks: a class is a task, with support and query images drawn from the class."""

from __future__ import annotations

from .batch import TaskBatch
from .distribution import TaskDistribution
from .load import NAMES, Tasks, load, read_images

__all__ = ["NAMES", "TaskBatch", "TaskDistribution", "Tasks", "load", "read_images"]
