"""Triton's launcher where there is no GPU: everything that it does on the host, and a driver that does nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget

from spiketriton_kernels import packed, passes


class Driver:
    """Of a GPU that is not here; `ran` is given each compiled kernel that would run, and its arguments."""

    def __init__(self, ran: Callable[..., None] = lambda source, *arguments: None) -> None:
        self.utils = self
        self.launcher_cls = lambda source, metadata: lambda *arguments: ran(source, *arguments)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, ...]:
        """Module, function, registers, spills, most threads."""
        return 1, 1, 32, 0, 1024

    def unload_module(self, module: int) -> None:
        pass


@contextlib.contextmanager
def without_gpu(driver: Any = None) -> Iterator[None]:
    """CPU tensors are served by Triton, whose kernels are compiled and launched but do not run: results are not
    written."""
    serves = lambda x, kind=None: "triton"  # noqa: E731 - a Mock would take longer than what is measured
    with (
        mock.patch.object(triton.runtime.driver, "_active", driver or Driver()),
        mock.patch.object(passes, "backend_for", serves),
        mock.patch.object(packed, "backend_for", serves),
    ):
        yield


def available(device: torch.device) -> bool:
    """Whether there is no GPU to be launched on, and Triton compiles."""
    return device.type == "cpu" and isinstance(triton.language.cdiv, triton.JITFunction)
