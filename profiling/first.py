"""Command `first`: what a GPU tells in ten minutes, the cheapest and most decisive first.

Each step is a process of its own with a limit, so that one that hangs or breaks the GPU's context costs its
own time alone. It prints into a file beside the rows, which come as they are measured. At the end stand
a table, measured beside predicted, what failed and what was not reached by name, and one archive for an issue.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from profiling.harness import attribution
from profiling.harness.contenders import OURS, Row, Status
from profiling.harness.session import file_name, short
from profiling.render.rows import find
from profiling.render.tables import BLANK, Grid, number, percent, where
from spiketriton.system.errors import one_line
from spiketriton.training.environment import version_line

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 3
"""How many times as long a rehearsal may take: it is of the plan, on processors that others use."""
LEAST = 15.0
"""Seconds that must be left to begin a step: torch alone takes ten to start."""
BIG = "* training T=4 256x64x56x56 bf16 *,* training T=10 256x64x56x56 bf16 *"
"""ResNet-50's first stage at 64 images."""
PREDICTED = {
    "H100": {"spikingjelly_740": (24, 5), "imagenette_r50": (54, 24)},
    "A100": {"spikingjelly_740": (38, 9), "imagenette_r50": (85, 40)},
    "RTX 4090": {"spikingjelly_740": (80, 18), "imagenette_r50": (159, 80)},
    "B200": {"spikingjelly_740": (16, 2), "imagenette_r50": (33, 10)},
}
"""Milliseconds of a step by GPU and recipe, as docs/gpu.md has them: of convolutions and all else, and of ours."""
MODES = {"H100": (16, 2.2), "A100": (16, 3.2), "RTX 4090": (14, 5), "B200": (15, 1.5)}
"""The same of ResNet-20 on CIFAR: a step launch by launch, and as a graph."""
FAILED = Status.WRONG, Status.FAILED, Status.TOO_LARGE
MOST = 5
"""Lines of what a step printed that are repeated under the table."""


class Step(NamedTuple):
    """`seconds`: its limit. `needs`: packages without which it is left out."""

    name: str
    asks: str
    seconds: int
    command: tuple[str, ...]
    needs: str = ""


class Ended(NamedTuple):
    """What became of a step. `right`: None where it says nothing, as what is left out."""

    step: Step
    line: str
    how: str
    right: bool | None
    rows: Sequence[Row] = ()  # that it measured
    why: Sequence[str] = ()  # it failed
    log: Path | None = None


def steps(
    out: Path, quick: bool = False, device: str = "auto", precision: str = "auto"
) -> list[Step]:
    """The plan. quick: the same on tiny sizes, a rehearsal. precision: of ResNet-50; "auto": fp32 besides."""

    def measured(*words: str, only: str, **more: str) -> tuple[str, ...]:
        options = {"peers": "none", "out": str(out), "device": device, "only": only, **more}
        flags = [text for name, value in options.items() for text in (f"--{name}", value)]
        traced = ["--trace"] * (words[0] == "step")
        return "profiling/run.py", *words, *flags, *traced, *["--quick"] * quick

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
    # an ANN and its convolutions alone beside it: whose milliseconds they are
    main = measured("step", r50, f"train.precision={precision}", only=ours)
    plan = (
        ("doctor", "are the kernels right?", 100, doctor, "rich"),
        ("tests", "capture, no wait for the GPU, 2^31 elements", 60, tests, "pytest"),
        ("kernels", "GB/s of the large cases, beside a copy", 70, kernels, ""),
        ("host", "Python's part of a call", 40, measured("host", only="*"), ""),
        ("graphs", "does a graph of the step prove itself?", 80, measured("modes", cifar, only=kinds), ""),
        ("SpikingJelly's setting", "its 868 images/s on an RTX 4090", 90, measured("step", r740, only=ours), ""),
        ("ResNet-50", "the main recipe", 180, main, ""),
        ("training", "loader, guard, monitor and files", 60, trained("false"), "rich matplotlib torchvision"),
        ("training by a graph", "the same, replayed", 60, trained("auto"), "rich matplotlib torchvision"),
    )  # fmt: skip
    patience = PATIENCE if quick else 1
    return [Step(name, asks, patience * seconds, *more) for name, asks, seconds, *more in plan]


def run(plan: Sequence[Step], out: Path, minutes: float) -> Iterator[Ended]:
    """Runs the plan and ends within the minutes; yields each step as it ends."""
    end = time.monotonic() + 60 * minutes
    for at, step in enumerate(plan, 1):
        label = f"[{at}/{len(plan)}] {step.name} ({step.asks})"
        missing = [package for package in step.needs.split() if find_spec(package) is None]
        left = end - time.monotonic()
        if missing:
            how = f"left out, {' and '.join(missing)} is missing: pip install {' '.join(missing)}"
            yield Ended(step, f"{label}: {how}", "left out", None)
        elif left < LEAST:
            yield Ended(step, f"{label}: not reached, --minutes are over", "not reached", None)
        else:
            log = out / f"first-{at}-{file_name(step.name)}.txt"
            begun, before = time.monotonic(), set(_lines(out))
            code = _ended(step.command, log, min(left, step.seconds))
            took = f"{time.monotonic() - begun:.0f} s"
            right: bool | None = code == 0
            how = {0: f"done in {took}", None: f"stopped after {took}, its limit"}.get(
                code, f"exit code {code} after {took}"
            )
            if code in (0, NOTHING_RUN) and step.command[1] == "pytest" and not _passed(log):
                how, right = f"no test was run, after {took}", None
            rows = [json.loads(line) for line in _lines(out) if line not in before]
            broken = [_failure(row) for row in rows if row["status"] in FAILED]
            if broken and right:
                how, right = f"{how}, with failures", False
            why = broken or (_telling(log) if right is False and code is not None else [])
            yield Ended(step, f"{label}: {how}; see {log}", how, right, rows, why[:MOST], log)


NOTHING_RUN = 5  # pytest's exit code where it collected no test


def _passed(log: Path) -> bool:
    return re.search(r"\b[1-9]\d* passed", log.read_text("utf-8", "replace")) is not None


def _lines(out: Path) -> list[str]:
    """The rows of the result files as they stand there."""
    files = sorted(out.glob("*.jsonl"))
    return [line for file in files for line in file.read_text("utf-8").splitlines()]


def _failure(row: Row) -> str:
    return f"{short(row)}, {row.get('contender', '')}: {row['status']}: {row['why']}"


def _telling(log: Path) -> list[str]:
    """What a step that failed said of it: the lines that begin as doctor, pytest and Python mark them, or the last."""
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    marks = r"wrong |FAILED |ERROR |error: |[\w.]*(?:Error|Exception)\b"
    return [one_line(line) for line in lines if re.match(marks, line)] or lines[-1:]


def failed(ended: Iterable[Ended]) -> bool:
    return any(one.right is False for one in ended)


def table(ended: Sequence[Ended]) -> Grid:
    """What became of each step, and what it measured beside what was predicted for this GPU."""
    lines = []
    for one in ended:
        verdict = {True: "right", False: "FAILED", None: BLANK}[one.right]
        lines.append([one.step.name, one.step.asks, one.how, verdict, BLANK, BLANK])
        lines += [_kernel(row) for row in one.rows if row["section"] == "kernels" and _ours(row)]
        lines += [_measured(row, _of_mode(row)) for row in one.rows if row["section"] == "modes"]
        steps = [row for row in one.rows if row["section"] == "step"]
        for row in steps:
            ours = row is find(steps, OURS)
            rest, norms = _predicted(row) if ours else (None, None)
            lines.append(_measured(row, rest + norms if rest and norms else None))
            parts = {attribution.CONVOLUTIONS: rest, attribution.OURS: norms}
            for part in attribution.by_part(row.get("parts", ())):
                lines.append(_part(part, parts.get(part["part"])))
    header = ["step", "question", "how it ended", "verdict", "ms", "predicted ms"]
    rows = [row for one in ended for row in one.rows]
    title = f"The first minutes: {where(rows[0]) if rows else version_line()}"
    return Grid(title, header, lines, _verdict(ended), left=4)


def _verdict(ended: Sequence[Ended]) -> list[str]:
    """What failed and what is missing, by name."""
    found = []
    for one in ended:
        if one.right is False:
            found += [f"FAILED, {one.step.name}: {why}" for why in one.why or [one.how]]
    missing = [one.step.name for one in ended if one.right is None]
    if missing:
        found.append(
            f"not known, because it was not reached, left out or skipped: {', '.join(missing)}"
        )
    return found or ["all right"]


def _ours(row: Row) -> bool:
    return str(row.get("contender", "")).startswith(OURS)


def _predicted(row: Row) -> tuple[float | None, float | None]:
    """Of convolutions and all else, and of ours."""
    known = next((of for card, of in PREDICTED.items() if card in row["device"]), {})
    return (None, None) if row["quick"] else known.get(row["recipe"], (None, None))


def _of_mode(row: Row) -> float | None:
    eager, graph = next((of for card, of in MODES.items() if card in row["device"]), (None, None))
    if row["quick"] or row["recipe"] != "cifar_r20":
        return None
    return {"ms": eager, "ms graph": graph}.get(row["contender"])


def _measured(row: Row, predicted: float | None) -> list[str]:
    return [
        f"  {row['contender']}",
        row["recipe"],
        _said(row),
        "FAILED" if row["status"] in FAILED else "",
        number(row.get("median_ms")),
        number(predicted),
    ]


def _said(row: Row) -> str:
    return row["status"] if row["status"] in Status.MEASURED else f"{row['status']}: {row['why']}"


def _kernel(row: Row) -> list[str]:
    speed = f"{percent(row['of_copy'])} of a copy" if row.get("of_copy") else _said(row)
    verdict = "FAILED" if row["status"] in FAILED else ""
    return [
        f"  {row['contender']}",
        short(row),
        speed,
        verdict,
        number(row.get("median_ms")),
        BLANK,
    ]


def _part(row: Row, predicted: float | None) -> list[str]:
    calls = f"{number(row['calls'])} calls"
    speed = f"{percent(row['of_copy'])} of a copy" if row["of_copy"] else ""
    return [f"    {row['part']}", calls, speed, "", number(row["ms"]), number(predicted)]


def packed(out: Path, ended: Sequence[Ended]) -> Path:
    """One archive of the table, the rows, the traces, and what the steps printed: what an issue needs."""
    rows = [json.dumps(row) + "\n" for one in ended for row in one.rows]
    (out / "first.md").write_text(table(ended).markdown(), "utf-8")
    (out / "first-rows.jsonl.txt").write_text("".join(rows), "utf-8")
    archive = out / "first.tar.gz"
    traces = {out / row["trace"] for one in ended for row in one.rows if "trace" in row}
    logs = [one.log for one in ended if one.log is not None]
    own = [out / "first.md", out / "first-rows.jsonl.txt"]
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted([*own, *logs, *traces]):
            tar.add(path, f"first/{path.name}")
    return archive


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
