"""`trace RECIPE`: where the time of a training step goes, by torch.profiler."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from profiling.contenders import Options
from profiling.networks import Bench, Step, recipe_spec
from profiling.tables import Grid, number, percent
from spiketriton.config import Recipe
from spiketriton_kernels.backends import triton_neuron

OUR_OPERATORS = "spiketriton::"
OUR_KERNELS = tuple(name for name in vars(triton_neuron) if name.endswith("_kernel"))
STEPS = 3


def trace(recipe: Recipe, options: Options, path: Path) -> tuple[Grid, list[dict[str, Any]]]:
    """Writes the chrome trace of a few steps to `path`; the operations that take most time.

    The table and the rows give each operation's own time a step, its share, and which are ours: on
    a CPU the operators spiketriton::*, on a GPU the Triton kernels that they launch.
    """
    spec = recipe_spec(recipe, options)
    bench = Bench(spec, options.device)
    step = Step(bench, bench.model())
    step()
    step()
    on_gpu = options.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]
    with profile(activities=activities) as profiler:
        for i in range(STEPS):
            with record_function(f"training step {i}"):
                step()
        if on_gpu:
            torch.cuda.synchronize(options.device)
    profiler.export_chrome_trace(str(path))

    events = own_seconds(profiler.key_averages(), on_gpu)
    total = sum(seconds for _, seconds in events) or 1.0
    grid = Grid(
        f"operations of a training step of {recipe.name}: T={spec['T']}, batch {spec['batch']}",
        ["operation", "ms a step", "share", "calls a step"],
    )
    rows = []
    for event, seconds in sorted(events, key=lambda pair: pair[1], reverse=True):
        ours = event.key.startswith((OUR_OPERATORS, *OUR_KERNELS))
        if len(rows) >= 15 and not ours:
            continue
        ms, share = 1e3 * seconds / STEPS, seconds / total
        name = f"spiketriton: {event.key}" if ours else event.key
        grid.lines.append([name[:70], number(ms), percent(share), number(event.count / STEPS)])
        row = {"operation": event.key, "ours": ours, "ms": ms, "share": share}
        rows.append({k: spec[k] for k in ("recipe", "T", "batch")} | {"status": "ok"} | row)
    return grid, rows


def own_seconds(averages: Iterable[Any], on_gpu: bool) -> list[tuple[Any, float]]:
    """What computes, with its own time: operators on a CPU, and what runs on a GPU itself.

    There a kernel's time is also told beside the operator that launched it, and beside every
    annotation around it: neither is counted again.
    """
    if on_gpu:
        return [
            (event, 1e-6 * event.self_device_time_total)
            for event in averages
            if event.device_type != DeviceType.CPU and not event.is_user_annotation
        ]
    steps = [event for event in averages if not event.key.startswith("training step")]
    return [(event, 1e-6 * event.self_cpu_time_total) for event in steps]
