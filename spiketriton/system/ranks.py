"""The ranks of a run: the processes that torchrun started together, or this one alone (docs/gpu.md).

Whatever ranks decide together, sum up or report once goes through `Ranks`: nothing for a single process, which is
here, collectives for several (`group.Group`).
"""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


class Ranks:
    """A single process, which is the first rank. There is nothing to exchange."""

    rank, world_size, ranks_here, first = 0, 1, 1, True  # ranks_here: on this machine
    launcher: tuple[str, ...] = ()

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        pass

    def in_words(self) -> str:
        """`2 ranks, by gloo`; "" for one."""
        return ""

    def claim_device(self, wanted: str) -> None:
        """Makes this rank's GPU the current one. UserError: there are more ranks than GPUs."""

    def decide(self, make: Callable[[], T]) -> T:
        """Calls `make` on the first rank; all ranks return its result or raise its UserError."""
        return make()

    def meet(self) -> None:
        """Waits for all ranks, without a timeout: one may be downloading."""

    def total(self, x: Tensor) -> Tensor:
        """The sum over ranks of a tensor."""
        return x

    def mean(self, x: Tensor) -> Tensor:
        """The mean over ranks of a tensor."""
        return x

    def largest(self, x: Tensor) -> Tensor:
        """The largest of each element over ranks."""
        return x

    def most(self, value: float) -> float:
        """The largest of a number over ranks."""
        return value

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces floating-point tensors by their means over ranks."""

    def parallel(self, module: Any, unused: bool = False) -> Any:
        """The module, with a backward that averages gradients over ranks. unused: some weights may get none."""
        return module

    def averages(self, module: Any, when: bool) -> AbstractContextManager[None]:
        """Inside, the backward of `module` averages gradients if `when` is true, else a later one does."""
        return contextlib.nullcontext()

    def alone(self) -> AbstractContextManager[Any]:
        """A process group of this rank, for what is computed with the others later; None where there are none."""
        return contextlib.nullcontext()

    def explain(self, error: Exception) -> None:
        """Ends the process if `error` was caused by another rank."""
