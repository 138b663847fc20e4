"""Processes of one gloo group that run the same function."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

_START = """
import pickle, sys
import torch
import torch.distributed as dist
sys.path[:0] = {paths!r}
import {module}
torch.set_num_threads(1)
rank, size = {rank}, {size}
dist.init_process_group("gloo", init_method={store!r}, rank=rank, world_size=size)
result = {module}.{function}(rank, size)
with open({out!r}, "wb") as file:
    pickle.dump(result, file)
dist.barrier()
"""


def run(module: str, function: str, size: int, folder: Path) -> list[object]:
    """Return what `module.function(rank, size)` returns in each of `size` processes."""
    processes = []
    for rank in range(size):
        program = _START.format(
            paths=[str(HERE), str(HERE.parent)],
            module=module,
            function=function,
            rank=rank,
            size=size,
            store=f"file://{folder / 'store'}",
            out=str(folder / f"{rank}.pickle"),
        )
        # From the test's folder, since Python in the checkout would import the checkout.
        processes.append(subprocess.Popen([sys.executable, "-c", program], cwd=folder))
    codes = [process.wait(120) for process in processes]
    assert codes == [0] * size
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(size)]
