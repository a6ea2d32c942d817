"""The kernels of a step are compiled before the first one, all at once: one after another takes minutes.

The network is shown a batch of the right shape, forward and back, once more where the gradients are measured. Its
convolutions run; of the fused neurons only the launches are looked at, so that what comes out means nothing.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spiketriton.models.network import Network
from spiketriton.system import machine
from spiketriton.system.errors import one_line
from spiketriton.training.placement import Placement, compiles
from spiketriton.training.randomness import random_state, set_random_state
from spiketriton_kernels.backends.triton_launch import compiling

if TYPE_CHECKING:
    from spiketriton.training.trainer import Trainer

PATIENCE = 10.0
"""Seconds between two lines about how far it is."""


class _Pool(ThreadPoolExecutor):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__(machine.free())
        self.jobs: list[Future[Any]] = []

    def submit(self, *args: Any, **options: Any) -> Future[Any]:
        self.jobs.append(super().submit(*args, **options))
        return self.jobs[-1]


def precompile(
    model: Network,
    shape: tuple[int, ...],
    probes: list[Tensor],
    watch: Callable[[], AbstractContextManager[None]],
    placement: Placement,
    note: Callable[[str], object],
) -> None:
    """Compiles the kernels of a training step on images of a shape, on a GPU; the model is left as it was.

    watch: in whose context `probes` are measured. What is not compiled here is compiled when it is first launched.
    """
    if not compiles(placement.device):
        return
    begun, buffers, drawn = time.monotonic(), list(model.buffers()), random_state()
    before = [buffer.clone() for buffer in buffers]
    images = placement.to_device(torch.zeros(shape, device=placement.device))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    try:
        with _Pool() as pool, compiling(pool):
            for watching, inputs in ((nullcontext, weights), (watch, weights + probes)):
                with watching():
                    with placement.autocast():
                        out = model(images).sum()
                    torch.autograd.grad(out, inputs, allow_unused=True)
            while left := wait(pool.jobs, PATIENCE).not_done:
                note(f"compiling kernels: {len(pool.jobs) - len(left)} of {len(pool.jobs)}")
    except Exception as error:  # the step itself raises it, if it is one
        note(f"kernels are compiled when they are first launched, because {one_line(error)[:300]}")
    else:
        took = time.monotonic() - begun
        if took > PATIENCE:
            note(f"{len(pool.jobs)} kernels compiled in {took:.0f} s, once for this GPU")
    finally:
        set_random_state(drawn)
        torch.cuda.empty_cache()  # steps may run on a stream of their own, which has none of this memory
        with torch.no_grad():
            for buffer, kept in zip(buffers, before, strict=True):
                buffer.copy_(kept)


def precompile_for(trainer: "Trainer") -> None:
    """`precompile` with a batch as the trainer's steps have it, by the first rank of each machine."""
    data, monitor, ranks = trainer.data, trainer.monitor, trainer.ranks
    part = data.train.batch_size // (data.train.accumulate * data.train.world_size)
    image = (part, *data.facts.image_shape)
    shape = (data.frames, *image) if data.frames else image
    note = trainer.display.note
    first_here = ranks.rank % ranks.ranks_here == 0  # torchrun numbers a machine's ranks in a row
    if not first_here:
        ranks.meet()
    with ranks.alone() if trainer.shares_statistics else nullcontext() as group:
        # what ranks measure of the same images they measure each by itself
        for shared in (group, False) if group else (False,):
            trainer.model.set_synchronised(shared)
            precompile(
                trainer.model, shape, monitor.probes.probes, monitor.watch, trainer.placement, note
            )
        trainer.model.set_synchronised(False)
    if first_here:
        ranks.meet()
