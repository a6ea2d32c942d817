"""Whose milliseconds a call's are: its kernels by name, by torch's profiler, with the bytes that ours move.

Our launches are told by the kernels' package as they are made, with their tensors. Each moves every tensor once, which
the lowered code shows (tests/kernels/backends/test_lowering.py). On a stream kernels run in the order of their
launches, replayed by a graph, too: the n-th of a name is the n-th that was launched. Without a GPU the rows are
PyTorch's operators, by the time that they take themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

from profiling.harness.contenders import Row
from profiling.harness.timing import CACHES, last_level_cache
from spiketriton_kernels.backends.triton_launch import telling

CALLS = 3
OURS = "norms and neurons, ours"
CONVOLUTIONS = "convolutions and matrix products"
OTHER = "everything else"
PARTS = {
    "norms of torch": r"batch_?norm|\bbn_(fw|bw)",
    "optimizer": r"multi_tensor_apply|adam|sgd|lamb|_foreach_|Optimizer",
    "copies and layouts": r"memcpy|memset|copy_?\b|copy_kernel|nchwToNhwc|nhwcToNchw|aten::(clone|zero_|fill_)",
    CONVOLUTIONS: r"conv|cudnn|gemm|nvjet|xmma|cutlass|wgrad|dgrad|fprop|aten::(mm|addmm|bmm)\b",
    OURS: r"spiketriton|_FireBackward",
}
"""By what is found in the name of a kernel (an operator, on a CPU), the first that fits."""


class Launched(NamedTuple):
    """A launch of ours: its kernel's name, that with the tensors as large as the largest or its half, and bytes."""

    kernel: str
    words: str
    bytes: int


def launches(call: Callable[[], object]) -> list[Launched]:
    """What a call launches of ours."""
    found: list[Launched] = []

    def told(kernel: Any, programs: Any, args: Sequence[Any], named: dict[str, Any]) -> bool:
        given = dict(zip(kernel.arg_names, args, strict=False)) | named
        tensors = [(name, t) for key, value in given.items() for name, t in _tensors(key, value)]
        largest = max((t.numel() for _, t in tensors), default=0)
        large = ", ".join(name for name, t in tensors if 2 * t.numel() >= largest)
        name = kernel.__name__
        found.append(Launched(name, f"{name}({large})", sum(t.nbytes for _, t in tensors)))
        return False

    with telling(told):
        call()
    return found


def _tensors(name: str, value: Any) -> list[tuple[str, Tensor]]:
    """Of an argument, with their names; of a record, its fields'."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(f, t) for f, t in zip(value._fields, value, strict=True) if isinstance(t, Tensor)]
    return [(name.removesuffix("_ptr"), t) for t in tree_leaves(value) if isinstance(t, Tensor)]


def of_call(
    call: Callable[[], object], once: Callable[[], object], device: torch.device, trace: Path
) -> Row:
    """`parts` of a warmed-up call, and its `trace`, the name of a file. `once`: the same launches, one by one."""
    launched = launches(once)
    recorded = _recorded(call, device, CALLS)
    recorded.export_chrome_trace(str(trace))
    if device.type != "cuda":
        return {"parts": of_operators(recorded.key_averages(), CALLS), "trace": trace.name}
    events = recorded.profiler.kineto_results.events()
    return {"parts": of_kernels(events, CALLS, launched, of_copy(device)), "trace": trace.name}


def _recorded(call: Callable[[], object], device: torch.device, calls: int) -> Any:
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]
    if on_gpu:
        torch.cuda.synchronize(device)
    with profile(activities=activities) as profiler:
        for _ in range(calls):
            call()
        if on_gpu:
            torch.cuda.synchronize(device)
    return profiler


def of_copy(device: torch.device) -> float:
    """Bytes a second of a copy that no cache holds, of the kernel alone; 0 where the profiler sees no kernels."""
    source = torch.ones(max(2**26, CACHES * last_level_cache(device)) // 4, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    recorded = _recorded(lambda: target.copy_(source), device, 5)
    ran = [e.duration_ns() for e in _ran(recorded.profiler.kineto_results.events())]
    return 2 * source.nbytes / median(ran) * 1e9 if ran else 0.0


def _ran(events: Iterable[Any]) -> list[Any]:
    """What ran on the GPU, in order."""
    found = [
        e
        for e in events
        if e.device_type() == DeviceType.CUDA
        and not (e.is_user_annotation() or e.is_hidden_event())
    ]
    return sorted(found, key=lambda event: event.start_ns())


def of_kernels(
    events: Iterable[Any], calls: int, launched: Sequence[Launched], roof: float
) -> list[Row]:
    """A row for each kernel: its part, calls and ms of one call; of ours bytes and the share of a copy's `roof`.

    Where another number of ours ran than was launched, as where a step leaves one out, their bytes are not known.
    """
    ran = _ran(events)
    of_ours: dict[str, list[Launched]] = {}
    for one in launched:
        of_ours.setdefault(one.kernel, []).append(one)
    ended: dict[tuple[str, str], list[tuple[float, int | None]]] = {}
    met = dict.fromkeys(of_ours, 0)
    total = {name: sum(e.name() == name for e in ran) for name in of_ours}
    for event in ran:
        words, moved, part = event.name(), None, None
        if mine := of_ours.get(words):
            part = OURS
            if total[words] == calls * len(mine):
                one = mine[met[words] % len(mine)]
                met[words] += 1
                words, moved = one.words, one.bytes
        key = part or part_of(words), words
        ended.setdefault(key, []).append((event.duration_ns() / 1e6, moved))
    rows = []
    for (part, words), found in ended.items():
        ms, moved = sum(ms for ms, _ in found), [each for _, each in found if each is not None]
        bytes_ = sum(moved) / calls if moved else None
        rows.append(_row(part, words, len(found) / calls, ms / calls, bytes_, roof))
    return _longest_first(rows)


def of_operators(averages: Iterable[Any], calls: int) -> list[Row]:
    """The same of PyTorch's operators on a CPU; no bytes are known there."""
    rows = [
        _row(part_of(one.key), one.key, one.count / calls, one.self_cpu_time_total / 1e3 / calls)
        for one in averages
        if one.self_cpu_time_total
    ]
    return _longest_first(rows)


def part_of(name: str) -> str:
    """Of `PARTS`, by the name of a kernel or an operator."""
    fits = (part for part, pattern in PARTS.items() if re.search(pattern, name, re.IGNORECASE))
    return next(fits, OTHER)


def by_part(rows: Iterable[Row]) -> list[Row]:
    """The sums of a call's rows by part; `of_copy` of what moved known bytes."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["part"], []).append(row)
    sums = []
    for part, mine in found.items():
        known = [row for row in mine if row["of_copy"]]
        of_copies = sum(row["of_copy"] * row["ms"] for row in known)  # what a copy would take
        one = {name: sum(row[name] or 0 for row in mine) for name in ("calls", "ms", "bytes")}
        share = of_copies / sum(row["ms"] for row in known) if known else None
        sums.append({"part": part, **one, "of_copy": share})
    return _longest_first(sums)


def _row(
    part: str, kernel: str, calls: float, ms: float, moved: float | None = None, roof: float = 0.0
) -> Row:
    share = moved / roof * 1e3 / ms if moved and ms and roof else None
    return {
        "part": part,
        "kernel": kernel,
        "calls": calls,
        "ms": ms,
        "bytes": moved,
        "of_copy": share,
    }


def _longest_first(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: -row["ms"])
