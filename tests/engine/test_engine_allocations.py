"""The engine allocates nothing in the steady state: calls of malloc are counted from outside."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("metagan_fast._core", reason="the extension is not built")

COUNTER = """
#include <stdatomic.h>
#include <stddef.h>
void* __libc_malloc(size_t);
static atomic_long calls;
void* malloc(size_t size) {
    atomic_fetch_add(&calls, 1);
    return __libc_malloc(size);
}
long malloc_calls(void) { return calls; }
"""

PROGRAM = """
import ctypes

import torch

import metagan_fast as mgf

calls = ctypes.CDLL(None).malloc_calls
calls.restype = ctypes.c_long


def count(steps, optimizer, **settings):
    generator, discriminator, latent_dim, _ = mgf.models.workload("mlp-8")
    inner = mgf.InnerLoop(steps=steps, optimizer=optimizer)
    learner = mgf.MetaGAN(generator, discriminator, latent_dim=latent_dim, inner=inner, executor="native", **settings)
    batch = mgf.TaskBatch(torch.zeros(2, 4, 1, 8, 8), torch.zeros(2, 4, 1, 8, 8))
    noise = learner.draw_noise(batch)
    for _ in range(3):
        before = calls()
        learner.meta_gradient(batch, noise=noise)
    return calls() - before


for optimizer, settings in (
    ("sgd", {}),
    ("adam", {"precision": "bf16"}),
    ("sgd", {"loss": "non-saturating", "meta": mgf.MAML(generator_objective="query")}),
):
    few, many = (count(steps, optimizer, **settings) for steps in (8, 40))
    print(few, many)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's name for the allocator behind malloc")
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the counting malloc")
@pytest.mark.parametrize("threads", ["1", "2"])
def test_more_inner_steps_take_no_more_memory_from_the_system(threads: str, tmp_path: Path) -> None:
    source, library = tmp_path / "counter.c", tmp_path / "counter.so"
    source.write_text(COUNTER)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", str(source), "-o", str(library)], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), "METAGAN_FAST_THREADS": threads}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
    )
    for line in run.stdout.splitlines():
        few, many = map(int, line.split())
        assert many - few < 32  # lists of 32 more learning rates grow a few times; the steps allocate nothing
    assert len(run.stdout.splitlines()) == 3
