"""Several ranks. Tensors on a GPU are exchanged by NCCL, all else by gloo, so that no decision waits for a GPU."""

import contextlib
import itertools
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import partial
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from spiketriton.system.errors import EXIT_ERROR, EXIT_SIGINT, EXIT_USER, UserError, one_line
from spiketriton.system.ranks import Ranks

T = TypeVar("T")

# of a collective: one rank may compile, or write, for minutes longer
TIMEOUT = timedelta(minutes=10)
PULSE = 1.0  # seconds between a rank's signs of life
LOST = 20  # pulses of this rank without one of another, which is then lost
PATIENCE = 5.0  # seconds for the survivors to report, after the first of them noticed
# seconds for the first rank to report; torchrun kills all ranks 30 s after a signal
REPORTED = 20.0


class Group(Ranks):
    """Several processes. While it is entered, an error on one rank ends all, with one message.

    A rank that fails posts the reason in the store (which torchrun keeps) and closes its connections, so that
    collectives of the others fail too. These look in the store: the posted reasons, and which ranks posted nothing,
    make up the message, which the first rank prints, or another one if the first is lost. A second thread sees to it
    where the main one waits for a kernel of NCCL; its pulse shows the others that this process is alive.
    """

    def __init__(self) -> None:
        self.left = threading.Event()
        self.watcher: threading.Thread | None = None

    def __enter__(self) -> "Group":
        here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        self.local_rank, self.ranks_here = int(os.environ.get("LOCAL_RANK", 0)), here
        gpus = torch.cuda.is_available() and dist.is_nccl_available()
        self.store, self.rank, self.world_size = next(rendezvous("env://", timeout=TIMEOUT))
        self.first = self.rank == 0
        machines = [f"--nnodes={self.world_size // here}"] * (self.world_size > here)
        self.launcher = ("torchrun", *machines, f"--nproc-per-node={here}")
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            store=dist.PrefixStore("group", self.store),
            rank=self.rank,
            world_size=self.world_size,
            timeout=TIMEOUT,
        )
        # the first rank may write to a slow disk for long; if it dies, this is noticed at once
        self.patient = dist.new_group(backend="gloo", timeout=timedelta(hours=1))
        # DDP never lets go of the default group, so that its threads live on while Python ends. One of
        # them that still holds a tensor then aborts the process: what comes last goes through here.
        self.on_cpu = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self.on_gpus, self.meetings = False, 0
        # on a store that no call of the main thread blocks
        watch = partial(self._watch, self.store.clone())
        self.watcher = threading.Thread(target=watch, name="ranks", daemon=True)
        self.watcher.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyboardInterrupt) and not self.first:
            raise SystemExit(EXIT_SIGINT)
        if isinstance(error, Exception):
            self.explain(error)
        self._leave()

    def in_words(self) -> str:
        return f"{self.world_size} ranks, by {'NCCL' if self.on_gpus else 'gloo'}"

    def claim_device(self, wanted: str) -> None:
        if wanted == "cpu" or not torch.cuda.is_available():
            return
        if self.ranks_here > torch.cuda.device_count():
            raise UserError(
                f"{self.ranks_here} ranks were started on a machine with "
                f"{torch.cuda.device_count()} GPUs; accepted: --nproc-per-node up to that number, "
                'or train.device = "cpu"'
            )
        torch.cuda.set_device(self.local_rank)
        self.on_gpus = True

    def decide(self, make: Callable[[], T]) -> T:
        box: list[Any] = [None, ""]
        if self.first:
            try:
                box[0] = make()
            except UserError as error:
                box[1] = str(error)
        dist.broadcast_object_list(box, group=self.patient)
        if box[1]:
            raise UserError(box[1])
        return cast(T, box[0])

    def meet(self) -> None:
        self.meetings += 1
        place = f"met{self.meetings}"
        self.store.set(f"{place}/{self.rank}", "")
        while len(self._listed(place)) < self.world_size:
            if self._listed("failed"):
                self._end_with_the_others()
            time.sleep(0.05)

    def total(self, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x, group=self._group(x))
        return x

    def mean(self, x: Tensor) -> Tensor:
        return self.total(x) / self.world_size

    def largest(self, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x, dist.ReduceOp.MAX, group=self._group(x))
        return x

    def most(self, value: float) -> float:
        return float(self.largest(torch.tensor(value, dtype=torch.float64)))

    def average_(self, tensors: Sequence[Tensor]) -> None:
        if not tensors:
            return
        flat = self.mean(torch.cat([x.flatten() for x in tensors]))
        for x, mean in zip(tensors, flat.split([x.numel() for x in tensors]), strict=True):
            x.copy_(mean.view_as(x))

    def parallel(self, module: nn.Module, unused: bool = False) -> DistributedDataParallel:
        device = next(module.parameters()).device
        with warnings.catch_warnings():
            # torch 2.13 calls broadcast_buffers by another name, which 2.11 does not know
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                module,
                device_ids=[device] if device.type == "cuda" else None,
                find_unused_parameters=unused,
                broadcast_buffers=False,  # see Trainer.statistics
            )

    def averages(self, module: DistributedDataParallel, when: bool) -> AbstractContextManager[None]:
        return contextlib.nullcontext() if when else module.no_sync()

    @contextlib.contextmanager
    def alone(self) -> Iterator[dist.ProcessGroup]:
        group = dist.new_group([self.rank], timeout=TIMEOUT, use_local_synchronization=True)
        try:
            yield group
        finally:
            dist.destroy_process_group(group)

    def explain(self, error: Exception) -> None:
        if isinstance(error, RuntimeError) and _TRANSPORT.search(str(error)):
            self._end_with_the_others()
        if not isinstance(error, UserError):
            self._post(EXIT_ERROR, f"{type(error).__name__}: {error} (see its traceback)")
        elif self.first:
            self._post(EXIT_USER, str(error))
            if self.store.add("reported", 1) > 1:  # another rank took this one for lost
                raise SystemExit(EXIT_USER)
        else:
            self._post(EXIT_USER, str(error))
            self._end_with_the_others()

    def _post(self, code: int, reason: str) -> None:
        """Posts why this rank ends (an empty reason: it does not know) and closes its connections."""
        for number in (signal.SIGTERM, signal.SIGINT):  # torchrun sends them to the survivors
            signal.signal(number, signal.SIG_IGN)
        if not self.store.check([f"failed/{self.rank}"]):
            self.store.set(f"failed/{self.rank}", f"{code} {reason}")
        self._leave()

    def _end_with_the_others(self) -> NoReturn:
        """Ends this process once the reason is known and printed."""
        self._post(EXIT_ERROR, "")
        raise SystemExit(self._reported(self.store))

    def _reported(self, store: dist.Store) -> int:
        """Waits until the reason is printed, and prints it if that is this rank's task; the exit code."""
        start = time.monotonic()
        while True:
            waited = time.monotonic() - start
            posted = {r: store.get(f"failed/{r}").decode() for r in self._listed("failed", store)}
            reasons = {r: text for r, text in posted.items() if not text.endswith(" ")}
            missing = {*range(self.world_size)} - {*posted}
            known = reasons or not missing or waited > PATIENCE
            mine = self.first or (0 in missing and waited > PATIENCE) or waited > REPORTED
            if known and mine and store.add("reported", 1) == 1:
                print(f"error: {one_line(_reason(reasons, missing))}", file=sys.stderr, flush=True)
            if store.check(["reported"]):
                codes = [int(text.split()[0]) for text in reasons.values()]
                return max(codes, default=EXIT_ERROR)
            time.sleep(0.05)

    def _watch(self, store: dist.Store) -> None:
        """Ends this process when another has failed and the main thread does not notice."""
        pulses: dict[int, tuple[bytes, int]] = {}
        for count in itertools.count():
            store.set(f"pulse/{self.rank}", str(count))
            for rank in self._listed("pulse", store):
                pulse = store.get(f"pulse/{rank}")
                if pulses.get(rank, (b"", 0))[0] != pulse:
                    pulses[rank] = pulse, count
            # counted by own pulses: where all ranks were stopped for a while, none is lost
            lost = [at for pulse, at in pulses.values() if pulse != b"left" and count - at > LOST]
            if lost or self._listed("failed", store):
                break
            if self.left.wait(PULSE):
                store.set(f"pulse/{self.rank}", "left")
                return
        if not self.left.wait(PATIENCE):
            if not store.check([f"failed/{self.rank}"]):
                store.set(f"failed/{self.rank}", f"{EXIT_ERROR} ")
            code = self._reported(store)
            sys.stdout.flush()
            os._exit(code)

    def _listed(self, what: str, store: dist.Store | None = None) -> set[int]:
        store = store or self.store
        return {rank for rank in range(self.world_size) if store.check([f"{what}/{rank}"])}

    def _group(self, x: Tensor) -> dist.ProcessGroup | None:
        return None if x.is_cuda else self.on_cpu

    def _leave(self) -> None:
        """Closes the connections and ends gloo's threads, which wait for the last reference."""
        self.left.set()
        if self.watcher is not None:
            self.watcher.join()
        if dist.is_initialized():
            dist.destroy_process_group()
        self.patient = self.on_cpu = None


# what gloo, NCCL and torch say when a collective fails
_TRANSPORT = re.compile(r"gloo|NCCL|timeout|timed out|Connection", re.IGNORECASE)


def _reason(reasons: dict[int, str], missing: set[int]) -> str:
    """The message: `reasons` as posted, by rank; `missing` are the ranks that posted nothing."""
    if reasons:
        rank, text = min(reasons.items())
        return f"on rank {rank}: {text.partition(' ')[2]}"
    if missing:
        names = ", ".join(map(str, sorted(missing)))
        return (
            f"rank {names} died or stopped responding; all ranks are stopping; "
            "--resume continues from the last checkpoint"
        )
    return "the ranks lost their connection; --resume continues from the last checkpoint"
