"""Loss, speed and time spent waiting since the last row of metrics; sums stay on the device. Memory, and its end."""

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# messages of allocators and libraries that raise a plain RuntimeError; the last is oneDNN's
_WORDS = (
    "can't allocate memory",
    "CUDA out of memory",
    "bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "could not create a primitive",
)


class Meters:
    """Sums between two calls of `read`, which alone waits for the device.

    The speed leaves out a session's first step, in which kernels are compiled, unless it is the only one.
    """

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), device=device, dtype=torch.float64)
        self.grad_norm = torch.zeros((), device=device)
        self.left_out = torch.zeros((), device=device, dtype=torch.int64)
        self.steps = 0
        self._first: tuple[int, float, float] | None = None  # images, seconds, seconds waited
        self._restart()

    def _restart(self) -> None:
        self._images, self._waited, self._start = 0, 0.0, time.perf_counter()

    def step(self, images: int, loss: Tensor, grad_norm: Tensor) -> None:
        """Counts an optimizer step; a loss that is not finite is left out of the mean."""
        finite = loss.isfinite()
        self.loss += torch.where(finite, loss, 0.0)
        self.left_out += ~finite
        self.steps += 1
        self._images += images
        self.grad_norm = grad_norm
        if self._first is None:
            self._first = (self._images, time.perf_counter() - self._start, self._waited)
            self._restart()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Leaves out the time inside, which is not spent on training."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - start

    def peek(self) -> tuple[float, float]:
        """The mean loss since the last `read` (nan without a step), and the last step's norm."""
        numbers = torch.stack([self.loss, self.grad_norm.double(), self.left_out.double()])
        loss, norm, left_out = numbers.tolist()
        counted = self.steps - int(left_out)
        return loss / counted if counted else math.nan, norm

    def read(self) -> dict[str, float]:
        """Mean loss, the last step's gradient norm, images/s, share of time spent waiting."""
        loss, norm = self.peek()
        seconds = time.perf_counter() - self._start
        images, waited = self._images, self._waited
        if images == 0 and self._first is not None:
            images, seconds, waited = self._first
        self.loss.zero_()
        self.left_out.zero_()
        self.steps = 0
        self._restart()
        return {
            "loss": loss,
            "grad_norm": norm,
            "images_per_s": images / seconds,
            "data_wait": waited / seconds,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss.item(), "steps": self.steps, "left_out": self.left_out.item()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loss.fill_(state["loss"])
        self.steps = state["steps"]
        self.left_out.fill_(state["left_out"])


def forget_peak_memory(device: torch.device) -> None:
    """A GPU's peak is from now on that of what follows; a process's cannot be set back."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mib(device: torch.device) -> float:
    """The most memory so far: allocated on the GPU, or resident in this process; 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if resource is None:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, else KiB


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that a GPU or the host ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
