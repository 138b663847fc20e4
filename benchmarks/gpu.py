"""`python -m metagan_fast.benchmarks.gpu`: run the tests and timings that need a CUDA device; write one file."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch
from xml.etree import ElementTree

import torch
from metagan_fast.benchmarks import machine, records, workloads
from metagan_fast.benchmarks.contenders import BASELINE, CONTENDERS
from metagan_fast.benchmarks.problem import Problem
from metagan_fast.benchmarks.timing import Run, alternate
from torch import Tensor

import metagan_fast as mgf
from metagan_fast._utils.argument_types import path, whole
from metagan_fast.learner.graphs import SWITCH

_CHECKED_STEPS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests marked `gpu`, then the timings; return 0, 1 if a test failed, 2 without a device."""
    options = _parser().parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA device: torch.cuda.is_available() is False; run this on a machine with one", file=sys.stderr)
        return 2
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "environment": machine.describe(),
    }
    results["tests"] = run_tests(options.tests)
    _write(options.out, results)
    results["timings"] = []
    for name in options.cases:
        for precision in options.precisions:
            case = workloads.find(name)
            for timing in measure(case, precision=precision, device="cuda", rounds=options.rounds):
                print(json.dumps(timing), flush=True)
                results["timings"].append(timing)
                _write(options.out, results)
    failed = [test for test in results["tests"] if test["outcome"] not in ("passed", "skipped")]
    print(f"{len(results['tests'])} tests, {len(failed)} failed; all figures in {options.out}")
    return 1 if failed or not results["tests"] else 0


def run_tests(folder: Path) -> list[dict[str, Any]]:
    """Run a folder's tests marked `gpu`; return name, outcome, seconds and message of each."""
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary, "report.xml")
        subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu", "-q", f"--junitxml={report}", str(folder)])
        if not report.exists():
            return []
        return [_outcome(test) for test in ElementTree.parse(report).iter("testcase")]


def _outcome(test: ElementTree.Element) -> dict[str, Any]:
    found = {"name": f"{test.get('classname')}::{test.get('name')}", "seconds": float(test.get("time", "0"))}
    for tag, outcome in (("failure", "failed"), ("error", "error"), ("skipped", "skipped")):
        element = test.find(tag)
        if element is not None:
            return {**found, "outcome": outcome, "message": element.get("message")}
    return {**found, "outcome": "passed"}


def measure(
    case: workloads.WorkloadCase, *, device: str, precision: str = "float32", rounds: int | None = None
) -> Iterator[dict[str, Any]]:
    """Time eager and graph-replayed meta-steps against the plain loop (its inner loops or meta-gradient only).

    `distance` is the L2 distance of the two ways' initialisations after a few meta-steps, relative to their change;
    it is not 0 where a library's summation order is not fixed.
    """
    problem = _on(device, case.draw())
    learners = {"one by one": _learner(problem, precision, "0"), "graphs": _learner(problem, precision, "1")}
    distance = _distance(problem, *learners.values())
    run = CONTENDERS[BASELINE].prepare(problem).run

    def plain_run() -> None:
        run()
        if device == "cuda":
            torch.cuda.synchronize()  # as a meta-step does, to read its metrics

    runs: dict[str, Run] = {BASELINE: plain_run}
    for name, learner in learners.items():
        runs[name] = partial(learner.meta_step, problem.batch)
    timings = alternate(runs, rounds=rounds or case.rounds)
    for name, timing in timings.items():
        yield {
            "case": case.name,
            "contender": name,
            "precision": "float32" if name == BASELINE else precision,
            "device": torch.cuda.get_device_name() if device == "cuda" else device,
            "seconds": timing.best,
            "median": timing.median,
            "spread": timing.spread,
            "ratio": timings[BASELINE].best / timing.best,
            "distance": distance,
            "explain": learners[name].explain() if name in learners else None,
        }


def _on(device: str, problem: Problem) -> Problem:
    return dataclasses.replace(
        problem,
        generator=problem.generator.to(device),
        discriminator=problem.discriminator.to(device),
        batch=problem.batch.to(device=device),
        noise=problem.noise.to(device=device),
    )


def _learner(problem: Problem, precision: str, graphs: str) -> mgf.MetaGAN:
    with patch.dict(os.environ, {SWITCH: graphs}):
        return problem.learner("torch", precision)


def _distance(problem: Problem, *learners: mgf.MetaGAN) -> float:
    ends = []
    for learner in learners:
        start = _parameters(learner)
        for _ in range(_CHECKED_STEPS):
            learner.meta_step(problem.batch)
        ends.append(_parameters(learner) - start)
    return float((ends[1] - ends[0]).norm() / ends[0].norm())


def _parameters(learner: mgf.MetaGAN) -> Tensor:
    return torch.cat([learner.generator_parameters, learner.discriminator_parameters]).double()


def _write(path: Path, results: dict[str, Any]) -> None:
    path.write_text(json.dumps(results, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    names = [case.name for case in workloads.CASES]
    parser = argparse.ArgumentParser(
        prog="python -m metagan_fast.benchmarks.gpu",
        description="On a CUDA device: run the tests marked gpu, time meta-steps one by one and as graphs beside the "
        "plain PyTorch loop, and write everything to one file.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--out",
        type=records.output(lambda content: json.loads(content)["environment"]),
        default="gpu_results.json",
        metavar="FILE",
        help="where to write",
    )
    parser.add_argument("--tests", type=path, default=Path("tests"), metavar="FOLDER", help="the tests of the source")
    parser.add_argument("--cases", nargs="+", choices=names, default=names, metavar="CASE", help=", ".join(names))
    parser.add_argument("--precisions", nargs="+", choices=("float32", "bf16"), default=["float32", "bf16"])
    parser.add_argument("--rounds", type=whole(1), help="timed calls of each contender; each case has its own number")
    return parser


if __name__ == "__main__":
    sys.exit(main())
