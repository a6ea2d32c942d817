"""Triton's launcher where there is no GPU: everything that it does on the host, and a driver that does nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget

from spiketriton_kernels.convolutions import packed
from spiketriton_kernels.window import passes


class Driver:
    """Of a GPU that is not here: kernels are compiled for `target`, and kept under the number or name of `device`."""

    def __init__(self, target: GPUTarget = GPUTarget("cuda", 90, 32), device: Any = 0) -> None:  # noqa: B008
        self.utils = self
        self.get_current_target = lambda: target
        self.get_current_device = lambda: device
        self.get_current_stream = lambda device: 0
        self.get_device_properties = lambda device: {"max_shared_mem": 232448}
        self.launcher_cls = lambda source, metadata: lambda *arguments: None
        self.unload_module = lambda module: None

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, ...]:
        """Module, function, registers, spills, most threads."""
        return 1, 1, 32, 0, 1024


@contextlib.contextmanager
def without_gpu(driver: Driver | None = None) -> Iterator[None]:
    """CPU tensors are served by Triton, whose kernels are compiled and launched but do not run: results are not
    written."""
    serves = lambda x, *_: "triton"  # noqa: E731 - a Mock would take longer than what is measured
    with (
        mock.patch.object(triton.runtime.driver, "_active", driver or Driver()),
        mock.patch.object(passes, "backend_for", serves),
        mock.patch.object(packed, "backend_for", serves),
    ):
        yield


def available(device: torch.device) -> bool:
    """Whether there is no GPU to be launched on, and Triton compiles."""
    return device.type == "cpu" and isinstance(triton.language.cdiv, triton.JITFunction)
