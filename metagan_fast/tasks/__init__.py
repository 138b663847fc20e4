"""Data sets as distributions of tasks: a class is a task, its images are drawn into support and query."""

from __future__ import annotations

from metagan_fast.tasks.batch import TaskBatch

__all__ = ["TaskBatch"]
