"""Command `first`: what a GPU tells in ten minutes, the cheapest and most decisive first.

Each step is a process of its own with a limit, so that one that hangs or breaks the GPU's context costs its
own time alone. It prints into a file beside the rows, which come as they are measured. What is not
reached is said.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LEAST = 15.0
"""Seconds that must be left to begin a step: torch alone takes ten to start."""
BIG = "* training T=4 256x64x56x56 bf16 *,* training T=10 256x64x56x56 bf16 *"
"""ResNet-50's first stage at 64 images."""


class Step(NamedTuple):
    """`seconds`: its limit. `needs`: packages without which it is left out."""

    name: str
    asks: str
    seconds: int
    command: tuple[str, ...]
    needs: str = ""


def steps(out: Path, quick: bool = False, device: str = "auto") -> list[Step]:
    """The plan. quick: the same on tiny sizes, a rehearsal."""

    def measured(*words: str, only: str, **more: str) -> tuple[str, ...]:
        options = {"peers": "none", "out": str(out), "device": device, "only": only, **more}
        flags = [text for name, value in options.items() for text in (f"--{name}", value)]
        return "profiling/run.py", *words, *flags, *["--quick"] * quick

    def trained(graph: str) -> tuple[str, ...]:
        size = ("data.image_size=32", "data.train_images=32", "train.batch_size=4") if quick else ()
        return (
            *("-m", "spiketriton.train", "recipes/imagenette_r18.toml", "data.name=synthetic"),
            *("data.image_size=224", "data.train_images=4096", "train.epochs=1"),
            *(f"train.graph={graph}", f"train.device={device}"),
            *("neuron.surrogate.width=1.0", "model.residual_gain=0.2", *size),
            *("--run-dir", str(out / f"first-train-{graph}")),
        )

    kinds = "ms,ms graph,plain,plain graph,sew,sew graph"
    ours = "spiketriton,spiketriton graph,ANN twin,convolutions alone"
    bare = ("-o", "addopts=--import-mode=importlib")  # without pytest-xdist
    gpu = "tests/kernels/backends/test_gpu.py"
    tests = ("-m", "pytest", "-q", *bare, "--slow", "-m", "gpu", gpu)
    doctor = ("-m", "spiketriton.doctor", f"train.device={device}")
    big = "lif training *" if quick else BIG
    cifar, r740, r50 = (
        ["quickstart"] * 3 if quick else ["cifar_r20", "spikingjelly_740", "imagenette_r50"]
    )
    kernels = measured("kernels", only="copy,spiketriton", cases=big)
    plan = (
        ("doctor", "are the kernels right?", 100, doctor, "rich"),
        ("tests", "capture, no wait for the GPU, 2^31 elements", 60, tests, "pytest"),
        ("kernels", "GB/s of the large cases, beside a copy", 70, kernels, ""),
        ("host", "Python's part of a call", 40, measured("host", only="*"), ""),
        ("graphs", "does a graph of the step prove itself?", 80, measured("modes", cifar, only=kinds), ""),
        ("SpikingJelly's setting", "its 868 images/s on an RTX 4090", 90, measured("step", r740, only=ours), ""),
        ("ResNet-50", "the main recipe", 90, measured("modes", r50, only="ms,ms graph"), ""),
        ("training", "loader, guard, monitor and files", 60, trained("false"), "rich matplotlib torchvision"),
        ("training by a graph", "the same, replayed", 60, trained("auto"), "rich matplotlib torchvision"),
    )  # fmt: skip
    return [Step(*step) for step in plan]


def run(plan: Sequence[Step], out: Path, minutes: float) -> Iterator[str]:
    """Runs the plan and ends within the minutes; yields a line of each step, as it ends."""
    end = time.monotonic() + 60 * minutes
    for number, step in enumerate(plan, 1):
        label = f"[{number}/{len(plan)}] {step.name} ({step.asks})"
        missing = [package for package in step.needs.split() if find_spec(package) is None]
        left = end - time.monotonic()
        if missing:
            yield f"{label}: left out, {' and '.join(missing)} is missing: pip install {' '.join(missing)}"
        elif left < LEAST:
            yield f"{label}: not reached, --minutes are over"
        else:
            log = out / f"first-{number}.txt"
            begun = time.monotonic()
            code = _ended(step.command, log, min(left, step.seconds))
            took = f"{time.monotonic() - begun:.0f} s"
            how = {0: f"done in {took}", None: f"stopped after {took}, its limit"}
            yield f"{label}: {how.get(code, f'exit code {code} after {took}')}; see {log}"


def _ended(command: Sequence[str], log: Path, seconds: float) -> int | None:
    """A process's exit code; None: it was stopped, with all that it had started."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    environ = {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=os.environ | environ,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:  # Ctrl-C, too
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)  # the rows so far become tables
                try:
                    process.wait(LEAST / 3)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
