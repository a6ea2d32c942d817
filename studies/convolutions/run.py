"""Convolutions by oneDNN and in our ways, ms on one thread.

    python studies/convolutions/run.py [fp32|bf16]      # on small maps, as matrix products: rows-fp32.md, rows-bf16.md
    python studies/convolutions/run.py spikes           # of spikes alone: the third, and the fourth
    python studies/convolutions/run.py unit             # of spikes in float32 by a matrix unit: log.md's second table
    python studies/convolutions/run.py reach [RUN]      # by the input where a surrogate is not 0; a run: reach.csv

Both take turns; medians of processor time.
"""

import csv
import ctypes
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spiketriton.models.convolutions import SIZES, Columns, Rows, sizes_here
from spiketriton.system import machine
from spiketriton.training.environment import PRECISIONS, keep_freed_memory
from spiketriton_kernels.convolutions import sparse, tiles

LAST = torch.channels_last
REACH = Path(__file__).with_name("reach.csv")

# images, channels read and written, side of the map, kernel, stride
CASES = [
    *(
        (64, 128, 128, 1, 3, 1),
        (64, 512, 512, 1, 3, 1),
        (64, 64, 64, 2, 3, 1),
        (64, 128, 128, 2, 3, 1),
    ),
    *(
        (64, 256, 256, 2, 3, 1),
        (64, 512, 512, 2, 3, 1),
        (8, 512, 512, 2, 3, 1),
        (1, 512, 512, 2, 3, 1),
    ),
    *(
        (64, 256, 512, 4, 3, 2),
        (64, 256, 256, 3, 3, 1),
        (16, 256, 256, 4, 3, 1),
        (64, 256, 256, 4, 3, 1),
    ),
    *(
        (16, 512, 512, 4, 3, 1),
        (64, 512, 512, 4, 3, 1),
        (64, 128, 128, 8, 3, 1),
        (32, 512, 512, 7, 3, 1),
    ),
    *(
        (64, 256, 512, 4, 1, 2),
        (64, 512, 1024, 8, 1, 2),
        (64, 512, 2048, 2, 1, 1),
        (64, 256, 1024, 4, 1, 1),
    ),
]
SPIKES = [  # images, channels read and written, side of the map
    *((256, 16, 16, 28), (256, 32, 32, 14), (256, 64, 64, 7), (64, 32, 128, 16)),
    *((64, 128, 128, 16), (64, 128, 128, 8), (64, 256, 256, 4)),
]
PERCENTS = (15, 30, 50)
ROUNDS = 11


def measure(
    x: Tensor, weight: Tensor, stride: int, way: Any, *passes: str
) -> list[tuple[float, float]]:
    """ms of oneDNN and of a way, of each of these passes."""
    edge = weight.shape[2] // 2
    dy = torch.randn_like(torch.conv2d(x, weight, None, stride, edge))
    x_, weight_, dy_ = (tensor.permute(0, 2, 3, 1) for tensor in (x, weight, dy))
    options = (None, *([n, n] for n in (stride, edge, 1)), False, [0, 0], 1)

    def backward(mask: list[bool]) -> None:
        torch.ops.aten.convolution_backward(dy, x, weight, *options, mask)

    both = {
        "output": (
            lambda: torch.conv2d(x, weight, None, stride, edge),
            lambda: way.output(x_, weight_, stride),
        ),
        "by_input": (
            lambda: backward([True, False, False]),
            lambda: way.by_input(dy_, weight_, stride, x.shape),
        ),
        "by_weight": (
            lambda: backward([False, True, False]),
            lambda: way.by_weight(dy_, x_, stride, weight.shape),
        ),
    }
    calls = [call for name in passes for call in both[name]]
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, kept in zip(calls, times, strict=True):
            before = time.process_time()
            call()
            kept.append(1e3 * (time.process_time() - before))
    found = [statistics.median(kept[1:]) for kept in times]
    return list(zip(found[::2], found[1::2], strict=True))


def table(columns: Sequence[str], parts: Sequence[str], ours: str) -> None:
    """The heading: a column of oneDNN's time and one of ours for every part."""
    pairs = [f"{part}: {name}" for part in parts for name in ("oneDNN", ours)]
    print(f"| images | convolution | {' | '.join((*columns, *pairs))} |")
    print("| ---: | --- |" + " ---: |" * len((*columns, *pairs)))


def on_small_maps(dtype: torch.dtype) -> None:
    sizes = sizes_here(dtype) or next(iter(SIZES[dtype].values()))
    table((), ("forward", "by input", "by weights"), "products")
    for images, read, written, side, kernel, stride in CASES:
        x, weight = tensors(images, read, written, side, kernel)
        way = Rows if sizes.rows and kernel > 1 else Columns
        passes = ("output", "by_input", "by_weight")
        found = measure(x.to(dtype), weight.to(dtype), stride, way, *passes)
        cells = " | ".join(f"{theirs:.2f} | {ours:.2f}" for theirs, ours in found)
        name = f"{kernel}x{kernel}, {read} to {written}, {side}x{side} pixels"
        print(f"| {images} | {name}{', stride 2' if stride == 2 else ''} | {cells} |", flush=True)


def of_spikes() -> None:
    table(("spikes, %",), ("forward", "by weights"), "spikes")
    for images, read, written, side in SPIKES:
        for n in PERCENTS:
            x, weight = tensors(images, read, written, side, 3)
            fires = (torch.rand_like(x) < n / 100).float()
            found = measure(fires, weight, 1, sparse, "output", "by_weight")
            cells = " | ".join(f"{theirs:.2f} | {ours:.2f}" for theirs, ours in found)
            name = f"3x3, {read} to {written}, {side}x{side} pixels"
            print(f"| {images} | {name} | {n} | {cells} |", flush=True)


class Unit:
    """A matrix unit's ways with float32: spikes are kept as bits."""

    @staticmethod
    def output(x: Tensor, weight: Tensor, stride: int) -> Tensor:
        return tiles.output(tiles.bits(x), weight, stride, x.dtype)  # type: ignore[arg-type]

    by_input = staticmethod(tiles.by_input_of_floats)

    @staticmethod
    def by_weight(dy: Tensor, x: Tensor, stride: int, size: torch.Size) -> Tensor:
        return tiles.by_weight(dy, Unit.kept(x), stride, size)

    @staticmethod
    @functools.lru_cache(1)
    def kept(x: Tensor) -> Tensor:
        """Made on the way forward."""
        return tiles.bits(x)  # type: ignore[return-value]


def by_unit() -> None:
    assert tiles.available(), "needs AMX and a compiler"
    table((), ("forward", "by weights", "by input"), "ours")
    for images, read, written, side in SPIKES:
        x, weight = tensors(images, read, written, side, 3)
        fires = (torch.rand_like(x) < 0.15).float()
        passes = ("output", "by_weight", "by_input")
        found = measure(fires, weight, 1, Unit, *passes)
        cells = " | ".join(f"{theirs:.2f} | {ours:.2f}" for theirs, ours in found)
        name = f"3x3, {read} to {written}, {side}x{side} pixels"
        print(f"| {images} | {name} | {cells} |", flush=True)


def in_reach() -> None:
    """oneDNN's gradient by the input, and that of some elements alone; every one of these in float64, too."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "reach.so"
        flags = ("-O3", "-march=native", "-shared", "-fPIC")
        source = Path(__file__).with_name("reach.cpp")
        subprocess.run(["c++", *flags, str(source), "-o", str(target)], check=True)
        library = ctypes.CDLL(str(target))
    table(("within reach, %",), ("by input",), "such products")
    for images, read, written, side in SPIKES:
        if read != written:
            continue
        dy, weight = tensors(images, read, written, side, 3)
        x, turned = torch.empty_like(dy), weight.flip(2, 3).permute(1, 2, 3, 0).contiguous()
        options = (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False])
        exact = torch.ops.aten.convolution_backward(
            dy.double(), x.double(), weight.double(), *options
        )[0]
        for percent in (10, 15, 30):
            mask = torch.rand(images, side, side, read) < percent / 100
            dx = torch.empty(images, side, side, read)
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(ROUNDS):
                begin = time.process_time()
                torch.ops.aten.convolution_backward(dy, x, weight, *options)
                between = time.process_time()
                bordered = torch.nn.functional.pad(dy.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
                sizes = map(ctypes.c_int64, (images, side, side, read))
                given = (bordered, turned, mask, dx)
                library.reach(*sizes, *(ctypes.c_void_p(t.data_ptr()) for t in given))
                times[0].append(1e3 * (between - begin))
                times[1].append(1e3 * (time.process_time() - between))
            torch.testing.assert_close(
                dx.double(), exact.permute(0, 2, 3, 1) * mask, rtol=1e-4, atol=1e-4
            )
            cells = " | ".join(f"{statistics.median(kept[1:]):.2f}" for kept in times)
            name = f"{read} channels, {side}x{side} pixels"
            print(f"| {images} | {name} | {percent} | {cells} |", flush=True)


def shares_of(run: Path) -> None:
    """Of a run's layers the share of neurons within reach of the surrogate, by epoch and step: rows into reach.csv."""
    recipe = tomllib.loads((run / "recipe.toml").read_text())
    epoch = -(-recipe["data"]["train_images"] // recipe["train"]["batch_size"])  # steps
    shares: dict[int, dict[str, list[float]]] = {}
    for line in (run / "gradients.jsonl").read_text().splitlines():
        row = json.loads(line)
        layer = shares.setdefault(row["step"], {}).setdefault(row["layer"], [])
        layer.append(1 - row["outside_share"])
    begins = not REACH.exists()
    with REACH.open("a", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        if begins:
            rows.writerow(("surrogate", "width", "T", "epoch", "step", "layer", "share"))
        surrogate = recipe["neuron"]["surrogate"]
        about = surrogate["shape"], surrogate["width"], recipe["time_steps"]
        for step, layers in shares.items():
            for name, values in layers.items():
                share = f"{statistics.mean(values):.3f}"
                rows.writerow((*about, -(-step // epoch), step, name, share))


def tensors(images: int, read: int, written: int, side: int, kernel: int) -> tuple[Tensor, Tensor]:
    x, weight = torch.randn(images, read, side, side), torch.randn(written, read, kernel, kernel)
    return x.contiguous(memory_format=LAST), weight.contiguous(memory_format=LAST)


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    asked = sys.argv[1] if len(sys.argv) > 1 else "fp32"
    print(f"{machine.cpu_name()}, torch {torch.__version__}, {asked}: ms\n")
    if asked == "reach":
        shares_of(Path(sys.argv[2])) if len(sys.argv) > 2 else in_reach()
        return
    named = {"spikes": of_spikes, "unit": by_unit}
    named[asked]() if asked in named else on_small_maps(PRECISIONS[asked])


if __name__ == "__main__":
    main()
