"""A training step against the share of spikes: ours, `torch.compile`, SpikingJelly compiled, T steps of the ANN twin.

    pip install -e ".[peers]"
    python studies/speed/shares.py fashion_mnist_r20 bf16          # appends to shares.csv
    python studies/speed/shares.py fashion_mnist_r20 fp32 --avx2   # by AVX2 alone, whatever the processor has
    python studies/speed/shares.py --draw                          # docs/img/shares.png, from all rows

One thread, contenders in turns, medians of processor time. The share follows the bias of all norms; nothing learns.
"""

import contextlib
import csv
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from profiling.harness import peers
from profiling.sections.recipes import find_recipe
from profiling.sections.step import Bench, Step, TrainingStep, spikingjelly_norm, with_neurons
from spiketriton.neurons import told_of_spikes
from spiketriton.system import machine
from spiketriton.training.environment import commit_of_package, keep_freed_memory

ROWS = Path(__file__).with_name("shares.csv")
PICTURE = Path(__file__).parents[2] / "docs/img/shares.png"
BIASES = (-1.5, -0.75, 0.0, 0.75)
ROUNDS = 7
FIELDS = (
    "recipe", "precision", "instructions", "processor", "commit", "share", "contender", "ms",
)  # fmt: skip
COLOURS = {
    "spiketriton": "#1b6ca8", "torch.compile": "#b5562c",
    "SpikingJelly compiled": "#4f8a3c", "ANN twin, T steps": "#777777",
}  # fmt: skip


class Measured:
    """What TrainingStep asks of its options."""

    quick, device = False, torch.device("cpu")


def by_avx2() -> None:
    """Starts again as on a processor without more than AVX2: ours by its compiler, PyTorch's by their variables."""
    folder = Path(tempfile.mkdtemp())
    compiler = folder / "avx2-c++"
    compiler.write_text('#!/bin/bash\nexec c++ "${@/-march=native/-march=haswell}"\n')
    compiler.chmod(0o755)
    given = {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
    given |= {"CXX": str(compiler), "SPIKETRITON_CACHE": str(folder), "SHARES_AVX2": "1"}
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | given)


def contenders(bench: Bench) -> dict[str, Step]:
    def peer(variant: peers.Variant) -> Step:
        net = with_neurons(bench.model("model.fused=false"), variant.make, spikingjelly_norm)
        return Step(bench, net, compiled=variant.compiled)

    neuron, precision = bench.model().spiking_layers()[0][1], bench.place.precision
    of_peers = peers.contenders(("spikingjelly",), neuron, Measured.device, precision, peer)
    jelly = next(one.build() for one in of_peers if one.name == "spikingjelly compiled")
    assert isinstance(jelly, Step)
    return {
        "spiketriton": Step(bench, bench.model()),
        "torch.compile": Step(bench, bench.definition(), compiled=True),
        "SpikingJelly compiled": jelly,
        "ANN twin, T steps": Step(bench, bench.model("neuron.kind=relu")),
    }


def shift(net: nn.Module, bias: float) -> None:
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.constant_(module.bias, bias)


def share_of(step: Step) -> float:
    """Of all neurons and steps that fire."""
    fired: list[tuple[float, int]] = []

    def tell(_: str, spikes: torch.Tensor) -> None:
        fired.append((float(spikes.float().sum()), spikes.numel()))

    with told_of_spikes(step.model.spiking_layers(), tell), torch.no_grad():
        step.forward()
    return sum(n for n, _ in fired) / sum(n for _, n in fired)


def instructions() -> str:
    """What a processor may use, as rows name it."""
    return "AVX2" if os.environ.get("SHARES_AVX2") else "all"


@contextlib.contextmanager
def appended(path: Path, fields: Sequence[str]) -> Iterator[Any]:
    """A writer of rows at the end of a file; a new one begins with its fields."""
    begins = not path.exists()
    with path.open("a", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        if begins:
            rows.writerow(fields)
        yield rows


def measure(name: str, precision: str) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    case = TrainingStep(
        find_recipe(name, [f"train.precision={precision}", "train.lr=1e-9"]), Measured
    )  # type: ignore[arg-type]
    bench = Bench(case, Measured.device)
    steps, T = contenders(bench), case.recipe.time_steps
    commit, changed = commit_of_package()
    with appended(ROWS, FIELDS) as rows:
        for bias in BIASES:
            for step in steps.values():
                shift(step.model, bias)
            share = share_of(steps["spiketriton"])
            times = in_turns({which: step.__call__ for which, step in steps.items()})
            for which, seconds in times.items():
                ms = 1e3 * seconds * (T if "twin" in which else 1)
                row = (
                    name,
                    precision,
                    instructions(),
                    machine.cpu_name(),
                    f"{commit or 'unknown':.8}{' changed' if changed else ''}",
                    f"{share:.3f}",
                    which,
                    f"{ms:.1f}",
                )
                rows.writerow(row)
                print(*row, flush=True)


def in_turns(calls: dict[str, Callable[[], None]]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS + 1):
        for name, call in calls.items():
            before = time.process_time()
            call()
            times[name].append(time.process_time() - before)
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def draw() -> None:
    from matplotlib.figure import Figure

    rows = list(csv.DictReader(ROWS.open()))
    cases = list(
        dict.fromkeys((row["recipe"], row["precision"], row["instructions"]) for row in rows)
    )
    figure = Figure(figsize=(7, 2.9 * len(cases)), layout="constrained")
    for axes, case in zip(figure.subplots(len(cases), 1, squeeze=False)[:, 0], cases, strict=True):
        ends = []
        for name, colour in COLOURS.items():
            points = sorted(
                (100 * float(row["share"]), float(row["ms"]))
                for row in rows
                if (row["recipe"], row["precision"], row["instructions"]) == case
                and row["contender"] == name
            )
            x, y = zip(*points, strict=True)
            axes.plot(x, y, "o-", color=colour, lw=1.6, ms=3.5)
            ends.append((y[-1], x[-1], name, colour))
        place, apart = 0.0, 0.08 * max(ends)[0]
        for y_end, x_end, name, colour in sorted(ends):  # labels, one above the other
            place = max(y_end, place + apart)
            axes.text(x_end + 1, place, name, color=colour, va="center", fontsize=10)
        recipe, precision, instructions = case
        by = "AMX" if instructions == "all" else instructions
        axes.set_title(f"{recipe}, {precision}, {by}", fontsize=11, loc="left")
        axes.set_xlabel("neurons that fire at a step, %", fontsize=10)
        axes.set_ylabel("ms a training step", fontsize=10)
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, 90)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=10)
    figure.savefig(PICTURE, dpi=100)


if __name__ == "__main__":
    asked = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    if "--draw" in sys.argv:
        draw()
    elif "--avx2" in sys.argv and not os.environ.get("SHARES_AVX2"):
        by_avx2()
    else:
        measure(*asked)
