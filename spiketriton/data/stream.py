"""Batches: an endless stream for training, one fixed pass for testing.

The batch of a training step is a function of (seed, step): epoch e visits the images in an order drawn from
(seed, e), and image i is augmented from (seed, e, i). Neither workers nor ranks nor a resumption change it.
"""

import atexit
import itertools
import signal
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from spiketriton.data.counter_rng import mix, on_device
from spiketriton.data.prefetch import Batch, Loaded, finished
from spiketriton.data.splits import Split
from spiketriton.data.transforms import Transform, seeded_each
from spiketriton.system.errors import UserError, in_code_of_others, one_line
from spiketriton.system.machine import shared_memory, usable

if TYPE_CHECKING:
    from spiketriton.data.mixing import Mixing


class Request(NamedTuple):
    """A batch to be loaded."""

    indices: np.ndarray  # of its images
    keys: np.ndarray | None = None  # of their augmentation; None: test images
    pairs: np.ndarray | None = None  # how pairs of them are to be mixed; None: not at all


CPU = torch.device("cpu")
LIMIT = 600  # seconds that a batch may take to be loaded
LOOK = 5  # seconds between looks whether the workers live, as the signal of a child's end may be missed
AHEAD = 2  # batches that each worker loads before they are asked for
_PAGES = 1 << 14  # bytes that small tensors of a batch take, at least

# Keep the uses of one seed apart; 3, 5 and 6 are taken elsewhere.
_ORDER, _AUGMENTATION, _OWN = 1, 2, 7


@dataclass(eq=False)
class Batches(Dataset[Loaded | UserError]):
    """Turns a request into what was loaded, or into the `UserError` that it raised, as a value.

    DataLoader would wrap an exception raised in a worker into a page of traceback.
    """

    split: Split
    transform: Transform
    mixing: "Mixing | None" = None
    augment: Callable[[torch.Tensor], torch.Tensor] | None = None  # a plugin's, of training images

    def __getitem__(self, request: Request) -> Loaded | UserError:
        try:
            images, draws = self.transform.load(self.split.read(request.indices), request.keys)
            if self.augment is not None and request.keys is not None:
                images = augmented(self.augment, images, request.keys)
        except UserError as error:
            return error
        labels = self.split.labels[torch.from_numpy(request.indices)]
        return Loaded(images, labels, draws, request.pairs)

    def finish(self, loaded: Loaded) -> Batch:
        """What is left to be done on the device of what was loaded: images, labels, and lengths of sequences."""
        images, labels = self.transform.finish(loaded.images, loaded.draws), loaded.labels
        if "lengths" in loaded.draws:
            return images, labels, on_device(loaded.draws["lengths"], images.device)
        if self.mixing is None or loaded.pairs is None:
            return images, labels
        return self.mixing.mixed(images, labels, loaded.pairs)

    def whole(self, images: Any) -> torch.Tensor:
        """Raw images, as the split has them, as tests show them to a network."""
        return self.transform(images, None)


def augmented(
    augment: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, keys: np.ndarray
) -> torch.Tensor:
    """Images uint8 [b, C, S, S], each through a plugin's own augmentation. UserError: it fails, or returns another."""
    try:
        found = seeded_each(augment, images, mix(keys, _OWN))
    except Exception as error:  # somebody else's code, whose traceback would stay in a worker
        why = in_code_of_others(error) or f"failed: {type(error).__name__}: {one_line(error)}"
        raise UserError(f"augment of the data set: {why}") from error
    for image in found:
        good = isinstance(image, torch.Tensor) and image.dtype == torch.uint8
        if not (good and image.shape == images.shape[1:]):
            what = f"{image.dtype} {list(image.shape)}" if isinstance(image, torch.Tensor) else ""
            raise UserError(
                f"augment of the data set returned {what or type(image).__name__}; accepted: uint8 "
                f"{list(images.shape[1:])}, as it is given"
            )
    return torch.stack(found)


@dataclass(frozen=True)
class Loading:
    """How batches are loaded; their contents do not depend on it."""

    workers: int
    pin_memory: bool

    def batches(
        self, dataset: Batches, requests: Iterable[Request], device: torch.device
    ) -> Generator[Batch, None, None]:
        loader = DataLoader(
            dataset,
            batch_size=None,  # a request is already a batch
            sampler=requests,
            num_workers=self.workers,
            collate_fn=_as_it_is,
            pin_memory=self.pin_memory,
            worker_init_fn=_leave_signals_to_the_parent,
            generator=torch.Generator(),  # or it would draw a seed from the global one
            timeout=min(LOOK, LIMIT) if self.workers else 0,
            prefetch_factor=AHEAD if self.workers else None,
        )
        loaded = _raise_mistakes(iter(loader), self.workers)
        batches = finished(loaded, dataset.finish, device)
        _open.add(batches)
        return batches


def _as_it_is(answer: Any) -> Any:
    """Instead of torch's way to make tensors of what a data set gives."""
    return answer


# Closed at exit, before multiprocessing waits for their workers.
_open: "weakref.WeakSet[Generator[Batch, None, None]]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for batches in list(_open):
        batches.close()


def _raise_mistakes(
    answers: Iterator[Loaded | UserError], workers: int
) -> Generator[Loaded, None, None]:
    waited = 0.0
    try:
        while True:
            try:
                answer = next(answers)
            except StopIteration:
                return
            except RuntimeError as error:
                if not workers or not str(error).startswith("DataLoader"):
                    raise
                why, waited = one_line(error), waited + LOOK
                if "timed out" in why and waited < LIMIT:
                    continue
                why = why.replace(f"after {LOOK} seconds", f"after {LIMIT} seconds")
                raise UserError(_no_batch(workers, why)) from None
            waited = 0.0
            if isinstance(answer, UserError):
                # A new error: `answer` would refer to this frame and keep both alive.
                raise UserError(str(answer))
            yield answer
    finally:
        del answers  # ends the workers even if a traceback keeps this frame alive


def _no_batch(workers: int, why: str) -> str:
    free = shared_memory()
    room = "" if free is None else f"; /dev/shm has {_mib(free)} free"
    return (
        f"data.workers = {workers}: no batch came from the processes that load images ({why}{room}); accepted: "
        "data.workers=0, which needs no shared memory, or more of it (of a container: --shm-size=8g, or --ipc=host)"
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def workers_that_fit(
    workers: int, asked: bool, batch_bytes: int, ranks_here: int
) -> tuple[int, str]:
    """How many workers have room in shared memory for the batches that they hand over, and a note where it is fewer.

    Loaded ahead are `AHEAD` batches a worker, in training and, while a test runs, for that as well. UserError: fewer
    than were `asked` for.
    """
    free = shared_memory()
    if not workers or free is None:
        return workers, ""
    one = 2 * ranks_here * AHEAD * (batch_bytes + _PAGES)
    fit = min(workers, free // one)
    if fit == workers:
        return workers, ""
    need = f"need {_mib(one * workers)} of shared memory, and /dev/shm has {_mib(free)} free"
    if not free:
        need = "need shared memory, and /dev/shm cannot be written"
    more = "of a container: --shm-size=8g, or --ipc=host"
    if asked:
        raise UserError(
            f"data.workers = {workers}: the processes that load images {need}; accepted: data.workers={fit}, or more "
            f"of it ({more})"
        )
    return fit, f"images are loaded by {fit} processes, not {workers}, which {need} ({more})"


def _leave_signals_to_the_parent(worker: int) -> None:
    """Workers go on while the run saves; they end with the stream or the parent, or a minute after SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):  # not on Windows
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(60))


def auto_workers(*, in_memory: bool, cuda: bool, ranks_here: int) -> int:
    """Worker processes for `data.workers = "auto"`.

    Images in memory are worth up to 4 if a GPU computes meanwhile and cores are idle. Files are decoded by as many as
    leave one core to the training process.
    """
    cores = usable() // ranks_here
    if in_memory and not (cuda and cores > 4):
        return 0
    return max(0, min(4, cores - 1) if in_memory else cores - 1)


@dataclass(frozen=True, kw_only=True)
class _Members:
    """The part of one rank in some images of a data set."""

    dataset: Batches
    members: np.ndarray  # indices of the images, over all ranks
    batch_size: int
    rank: int
    world_size: int
    loading: Loading

    @property
    def images(self) -> int:
        """Images over all ranks; of an epoch, with those of its last, incomplete batch, which is dropped."""
        return len(self.members)

    @property
    def targets(self) -> torch.Tensor:
        """Of the images in their order, over all ranks."""
        return self.dataset.split.labels[torch.from_numpy(self.members)]


@dataclass(frozen=True, kw_only=True)
class TrainStream(_Members):
    """Endless training batches. `batch_size` counts the images of a step over all ranks."""

    seed: int
    accumulate: int

    @property
    def steps_per_epoch(self) -> int:
        return len(self.members) // self.batch_size

    def from_step(self, step: int, device: torch.device = CPU) -> Generator[Batch, None, None]:
        """Micro-batches on `device` from global step `step` on, `accumulate` per step, without end.

        Images float32 [b, C, S, S] (time first, recordings [T, b, C, S, S] and sequences [T, b, C]) and labels int64
        [b], or of mixed images float32 [b, K], b = batch_size / accumulate / world_size: this rank's contiguous part.
        Of sequences that are not all of one length also their lengths, int64 [b]. Workers live until the iterator is
        closed. UserError: a broken image.
        """
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        return self.loading.batches(self.dataset, self.requests(step), device)

    def of_all_ranks(self) -> "TrainStream":
        """The batches of all ranks for one process, as consecutive micro-batches."""
        return replace(self, accumulate=self.accumulate * self.world_size, rank=0, world_size=1)

    def requests(self, step: int) -> Iterator[Request]:
        micro_batch = self.batch_size // self.accumulate
        part = micro_batch // self.world_size
        mixing, pairs = self.dataset.mixing, None
        known = -1
        for now in itertools.count(step):
            epoch, at = divmod(now, self.steps_per_epoch)
            if epoch != known:
                known, order = epoch, self._order(epoch)
            if mixing is not None:
                drawn = mixing.draw(self.seed, now, self.batch_size // 2, epoch)
            for micro in range(self.accumulate):
                of_batch = micro * micro_batch + self.rank * part
                start = at * self.batch_size + of_batch
                indices = order[start : start + part]
                keys = mix(self.seed, _AUGMENTATION, epoch, indices)
                if mixing is not None:
                    pairs = drawn[of_batch // 2 : (of_batch + part) // 2]
                yield Request(indices, keys, pairs)

    def _order(self, epoch: int) -> np.ndarray:
        """The images of an epoch in order."""
        generator = torch.Generator().manual_seed(int(mix(self.seed, _ORDER, epoch)[0]))
        return self.members[torch.randperm(len(self.members), generator=generator).numpy()]


@dataclass(frozen=True, kw_only=True)
class TestSet(_Members):
    """The test images in a fixed order, unaugmented; each rank sees every world_size-th, perhaps none.

    Iterating gives batches as `TrainStream` does; the last batch may be smaller. `batch_size` is
    that of this rank.
    """

    __test__ = False  # pytest: not a class of tests

    def __len__(self) -> int:
        """Batches that this rank gets."""
        return -(-len(self._mine) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def batches(self, device: torch.device = CPU) -> Generator[Batch, None, None]:
        mine, size = self._mine, self.batch_size
        requests = (Request(mine[start : start + size]) for start in range(0, len(mine), size))
        return self.loading.batches(self.dataset, requests, device)

    def rounds(self, device: torch.device = CPU) -> Iterator[Batch | None]:
        """The batches, then None while another rank still has one: as many items on all ranks."""
        mine = self.batches(device)
        rounds = -(-len(self.members) // (self.world_size * self.batch_size))
        for _ in range(rounds):
            yield next(mine, None)

    @property
    def _mine(self) -> np.ndarray:
        return self.members[self.rank :: self.world_size]


def subset(members: np.ndarray, count: int) -> np.ndarray:
    """`count` of the indices `members` (0: all), in ascending order; the choice depends on no seed."""
    if count == 0:
        return members
    chosen = torch.randperm(len(members), generator=torch.Generator().manual_seed(0))[:count]
    return members[chosen.sort().values.numpy()]
