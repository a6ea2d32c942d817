"""From loaded images to batches on the device: copied as bytes, finished there, one batch ahead on a GPU."""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from spiketriton.data.transforms import Draws

# float32 [b, C, S, S]; int64 [b], or mixed: float32 [b, K]; of sequences of different lengths these, int64 [b]
Batch: TypeAlias = tuple[Tensor, ...]


class Loaded(NamedTuple):
    """What a worker makes of a request."""

    images: Tensor  # uint8 [b, C, S, S]
    labels: Tensor  # int64 [b]
    draws: Draws  # what their augmentation drew
    pairs: np.ndarray | None = None  # how pairs of them are to be mixed, see mixing.py


def finished(
    loaded: Generator[Loaded, None, None], finish: Callable[[Loaded], Batch], device: torch.device
) -> Generator[Batch, None, None]:
    """The batches of `loaded` on `device`, in order; closing it closes `loaded`."""

    def moved(one: Loaded) -> Batch:
        images, labels = (x.to(device, non_blocking=True) for x in one[:2])
        return finish(one._replace(images=images, labels=labels))

    with closing(loaded):
        batches = map(moved, loaded)
        yield from _ahead(batches, device, torch.cuda) if device.type == "cuda" else batches


def _ahead(
    batches: Iterator[Batch], device: torch.device, cuda: Any
) -> Generator[Batch, None, None]:
    """Each batch, while a thread puts the next one on its way; `cuda` is torch.cuda.

    The consumer's stream waits for a batch, the host never does. Where a step is replayed the thread has Python to
    itself: strong augmentation makes a hundred calls a batch.
    """
    side = cuda.Stream(device)

    def prepared() -> tuple[Batch, Any] | None:
        with cuda.stream(side):
            for batch in batches:
                return batch, side.record_event()
        return None

    with ThreadPoolExecutor(1, "augmentation") as thread:
        coming = thread.submit(prepared)
        while (ready := coming.result()) is not None:
            coming = thread.submit(prepared)
            batch, event = ready
            consumer = cuda.current_stream(device)
            consumer.wait_event(event)
            for tensor in batch:
                tensor.record_stream(consumer)  # its memory was taken from the side stream's
            yield batch
