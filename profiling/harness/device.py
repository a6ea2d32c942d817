"""What a GPU does during a call, by torch's profiler, and how fast it runs, by nvidia-smi."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from profiling.harness.contenders import Row
from spiketriton.system.errors import one_line

CALLS = 3
LAUNCHES = (
    *("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch"),
    *("cudaMemcpyAsync", "cudaMemsetAsync"),
)
"""How the names of the runtime's calls begin that put work on a stream; on AMD's GPUs hip instead of cuda."""


def of_call(call: Callable[[], object], device: torch.device, seconds: float) -> Row:
    """`summary` of a warmed-up call that takes `seconds` without a profiler; empty without a GPU."""
    if device.type != "cuda":
        return {}
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize(device)
    recorded: Any = profiler.profiler
    return summary(recorded.kineto_results.events(), CALLS, seconds)


def summary(events: Iterable[Any], calls: int, seconds: float) -> Row:
    """Of one call: device_ms (in which at least one kernel or copy runs), kernels, launches, and busy.

    busy: the share of the call's `seconds` in which the GPU works. The profiler slows the host down, not the
    kernels, so the time of the call is taken without it.
    """
    # annotations span the gaps between the kernels inside of them
    events = [e for e in events if not (e.is_user_annotation() or e.is_hidden_event())]
    ran = sorted(
        (e.start_ns(), e.start_ns() + e.duration_ns())
        for e in events
        if e.device_type() == DeviceType.CUDA
    )
    total = reached = 0
    for start, end in ran:
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    names = [e.name().replace("hip", "cuda") for e in events if e.device_type() == DeviceType.CPU]
    return {
        "device_ms": total / calls / 1e6,
        "busy": total / calls / 1e9 / seconds,
        "kernels": len(ran) / calls,
        "launches": sum(name.startswith(LAUNCHES) for name in names) / calls,
    }


CLOCKS = {
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "power.draw": "watts",
    "clocks_throttle_reasons.active": "throttled_by",
}
"""What nvidia-smi is asked for, and its name in a row; of the reasons 0x0 is none, and 0x1 an idle GPU."""


def clocks(device: torch.device) -> Row:
    """How fast a GPU runs just now, and why no faster; empty without one."""
    if device.type != "cuda":
        return {}
    gpu = f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}"
    ask = ["nvidia-smi", f"--query-gpu={','.join(CLOCKS)}", "--format=csv,noheader,nounits", gpu]
    try:
        said = subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return {"throttled_by": f"unknown: {one_line(error)}"}
    return dict(zip(CLOCKS.values(), map(str.strip, said.split(",")), strict=True))
