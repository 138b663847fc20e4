"""Plots by Matplotlib, which is imported when the first is made.

`samples`, `curves` and `adaptation` return a figure, which a notebook shows where it is the last value of a cell, once;
`figure.savefig(path)` writes it. `evaluation` and `quality` return a PNG file.
"""

from .gans import adaptation, samples
from .results import QualityPoint, evaluation, quality
from .runs import curves

__all__ = ["QualityPoint", "adaptation", "curves", "evaluation", "quality", "samples"]
