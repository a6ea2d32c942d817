"""`trace RECIPE`: where the time of a training step goes, by torch.profiler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from profiling.contenders import Options
from profiling.networks import Bench, Step, recipe_spec
from profiling.tables import Grid, number, percent
from spiketriton.config import Recipe
from spiketriton_kernels import _triton

OUR_OPERATORS = "spiketriton::"
OUR_KERNELS = tuple(name for name in vars(_triton) if name.endswith("_kernel"))
STEPS = 3


def trace(recipe: Recipe, options: Options, path: Path) -> tuple[Grid, list[dict[str, Any]]]:
    """Writes the chrome trace of a few steps to `path`; the operations that take most time.

    The table and the rows give each operation's own time a step, its share, and which are ours:
    the operators spiketriton::*, and on a GPU the Triton kernels that they launch.
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
    path.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(path))

    def seconds(event: Any) -> float:
        """Own time, of the device that computes; profilers count microseconds."""
        return 1e-6 * (event.self_device_time_total if on_gpu else event.self_cpu_time_total)

    events = [e for e in profiler.key_averages() if not e.key.startswith("training step")]
    total = sum(map(seconds, events)) or 1.0
    grid = Grid(
        f"operations of a training step of {recipe.name}: T={spec['T']}, batch {spec['batch']}",
        ["operation", "ms a step", "share", "calls a step"],
    )
    rows = []
    for event in sorted(events, key=seconds, reverse=True):
        ours = event.key.startswith((OUR_OPERATORS, *OUR_KERNELS))
        if len(rows) >= 15 and not ours:
            continue
        ms, share = 1e3 * seconds(event) / STEPS, seconds(event) / total
        name = f"spiketriton: {event.key}" if ours else event.key
        grid.lines.append([name[:70], number(ms), percent(share), number(event.count / STEPS)])
        row = {"operation": event.key, "ours": ours, "ms": ms, "share": share}
        rows.append({k: spec[k] for k in ("recipe", "T", "batch")} | {"status": "ok"} | row)
    return grid, rows
