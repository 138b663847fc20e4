"""Work shared by several processes (ranks) over `torch.distributed`: collectives, and the job that runs them."""

from __future__ import annotations

from .errors import FirstRankFailed, LostRank, RanksDiffer
from .ranks import Ranks

__all__ = ["FirstRankFailed", "LostRank", "Ranks", "RanksDiffer"]
