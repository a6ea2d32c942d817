"""Bytes instead of seconds: the peak of a call, and what its forward keeps for its backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from spiketriton.models import Network


def measure(
    call: Callable[[], object],
    forward: Callable[[], object],
    model: nn.Module,
    device: torch.device,
    kept: Iterable[Tensor] = (),
) -> dict[str, int]:
    """`peak_bytes` and `saved_bytes` of a warmed-up `call` of a model, for a row.

    `forward` is its first half; `kept`, like the model's parameters, is alive anyway.
    """
    call()
    kept = [*model.parameters(), *model.buffers(), *kept]
    peak = peak_bytes(call, device)
    return {"peak_bytes": peak, "saved_bytes": saved_bytes(forward, kept, model)}


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors alive at once during a call, beyond those alive before it.

    By the allocator's own count, on the CPU too: exact, and free of the process's other memory.
    What libraries allocate past torch (oneDNN's scratch memory) is not counted there.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    recorded: Any = profiler.profiler
    events = [e for e in recorded.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def saved_bytes(
    forward: Callable[[], object], kept: Iterable[Tensor], model: nn.Module | None = None
) -> int:
    """Bytes of the distinct storages that autograd saves in `forward`, those of `kept` apart."""
    alive = {tensor.untyped_storage().data_ptr() for tensor in kept}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in alive:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with ExitStack() as stack:
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x))
        if isinstance(model, Network) and model.packed:
            # torch shows saved tensors to the innermost hooks only, which are the network's own
            stack.enter_context(mock.patch.object(model, "on_save", pack))
        result = forward()  # kept until counted: a freed storage's address may come again
    del result
    return sum(saved.values())
