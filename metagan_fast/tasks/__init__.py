"""Data sets as distributions of tasks: a class is a task, its images are drawn into support and query."""

from __future__ import annotations

from metagan_fast.tasks.batch import TaskBatch
from metagan_fast.tasks.distribution import TaskDistribution
from metagan_fast.tasks.load import NAMES, Tasks, load, read_images

__all__ = ["NAMES", "TaskBatch", "TaskDistribution", "Tasks", "load", "read_images"]
