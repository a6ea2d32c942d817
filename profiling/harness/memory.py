"""Bytes instead of seconds: the peak of a call, and what its forward keeps for its backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from spiketriton.models import Network


@dataclass(frozen=True)
class Memory:
    """`peak_bytes`: tensors alive at once during a call, beyond those alive before it.
    `saved_bytes`: of them, what the forward keeps for the backward (parameters apart)."""

    peak_bytes: int
    saved_bytes: int

    def row(self) -> dict[str, int]:
        return asdict(self)


def measure(
    call: Callable[[], object],
    forward: Callable[[], object],
    kept: Iterable[Tensor],
    device: torch.device,
    model: nn.Module | None = None,
) -> Memory:
    """Measures a warmed-up `call` (of `model`); `forward` is its first half, `kept` is alive anyway."""
    call()
    return Memory(peak_bytes(call, device), saved_bytes(forward, kept, model))


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """By the allocator's own count, on the CPU too: exact, and free of the process's other memory.

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
    recorded = profiler.profiler
    assert recorded is not None
    assert recorded.kineto_results is not None
    events = recorded.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    alive = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        alive += change
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

    def unpack(tensor: Any) -> Any:
        return tensor

    packs = isinstance(model, Network) and model.packed
    if packs:  # torch shows saved tensors to the innermost hooks only, which are the network's own
        model.on_save = pack
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        result = forward()  # kept until counted: a freed storage's address may come again
    if packs:
        model.on_save = None
    del result
    return sum(saved.values())
