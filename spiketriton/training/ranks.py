"""The ranks of a run: the processes that torchrun started together, or this one alone.

    torchrun --nproc-per-node=2 -m spiketriton.train RECIPE

What the engine has to agree on, sum up or tell once goes through here, in words that mean nothing
to a process alone (`Ranks`) and a collective to several (`Group`). Tensors of a GPU travel by NCCL,
all else by gloo, so that no decision waits for a GPU. docs/many_gpus.md is the page for users.
"""

import contextlib
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from spiketriton.errors import EXIT_ERROR, EXIT_SIGINT, EXIT_USER, UserError, one_line

T = TypeVar("T")

TIMEOUT = timedelta(seconds=45)  # of a collective: a rank that answers no more is lost
PATIENCE = 5.0  # seconds for the survivors to find each other, once one of them noticed
HEARD = 20.0  # seconds for the first rank to tell a mistake; torchrun kills 30 after a signal


class Ranks:
    """One process: the first rank and the only one. Nothing has to be agreed on."""

    rank, world_size, ranks_here, first = 0, 1, 1, True  # ranks_here: on this machine
    launcher: tuple[str, ...] = ("python",)

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
        """What `make()` returns, or the UserError it raises, on the first rank, for all."""
        return make()

    def meet(self) -> None:
        """Waits for all ranks, as long as it takes: one may be downloading."""

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

    def parallel(self, module: Any) -> Any:
        """The module, with a backward that averages gradients over ranks."""
        return module

    def averages(self, module: Any, when: bool) -> AbstractContextManager[None]:
        """Inside, `module`'s backward averages only `when`; else it waits for a later one."""
        return contextlib.nullcontext()

    def explain(self, error: Exception) -> None:
        """Ends the process if `error` came from the death or mistake of another rank."""


def ranks_of_torchrun() -> Ranks:
    """The ranks that this process belongs to, by the environment that torchrun gives it.

    UserError: it is half of one, as some schedulers leave it.
    """
    given = {name: os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK", "MASTER_PORT")}
    if given["WORLD_SIZE"] in ("", "1"):
        return Ranks()
    if not (all(text.isdecimal() for text in given.values()) and "MASTER_ADDR" in os.environ):
        shown = ", ".join(f"{name}={text}" for name, text in given.items() if text)
        raise UserError(
            f"the environment says {shown}, as for one of several ranks, but no rank can be made of "
            "it; accepted: the command through torchrun, or no WORLD_SIZE"
        )
    return Group()


class Group(Ranks):
    """Several processes. Inside of it, what ends one rank ends all, and is told once.

    A rank that fails posts why, breaks its connections, and so wakes the others from whatever they
    wait in. They meet in the store, which torchrun keeps: the posted reasons, and who is missing
    there, make the one message, told by the first rank, or by another if the first is lost.
    """

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
        # a first rank that writes to a slow disk is not lost; one that died is noticed at once
        self.patient = dist.new_group(backend="gloo", timeout=timedelta(hours=1))
        self.on_gpus, self.meetings = False, 0
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
        dist.all_reduce(x)
        return x

    def mean(self, x: Tensor) -> Tensor:
        return self.total(x) / self.world_size

    def largest(self, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x, dist.ReduceOp.MAX)
        return x

    def most(self, value: float) -> float:
        return float(self.largest(torch.tensor(value, dtype=torch.float64)))

    def average_(self, tensors: Sequence[Tensor]) -> None:
        if not tensors:
            return
        flat = self.mean(torch.cat([x.flatten() for x in tensors]))
        for x, mean in zip(tensors, flat.split([x.numel() for x in tensors]), strict=True):
            x.copy_(mean.view_as(x))

    def parallel(self, module: nn.Module) -> DistributedDataParallel:
        device = next(module.parameters()).device
        with warnings.catch_warnings():
            # torch 2.13 calls broadcast_buffers by another name, which 2.11 does not know
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                module,
                device_ids=[device] if device.type == "cuda" else None,
                broadcast_buffers=False,  # see Trainer.statistics
            )

    def averages(self, module: DistributedDataParallel, when: bool) -> AbstractContextManager[None]:
        return contextlib.nullcontext() if when else module.no_sync()

    def explain(self, error: Exception) -> None:
        if isinstance(error, RuntimeError) and _TRANSPORT.search(str(error)):
            self._end_with_the_others()
        if not isinstance(error, UserError):
            self._post(EXIT_ERROR, f"{type(error).__name__}: {error} (see its traceback)")
        elif self.first:
            self._post(EXIT_USER, str(error))
            if self.store.add("told", 1) > 1:  # by one that took this one for lost
                raise SystemExit(EXIT_USER)
        else:
            self._post(EXIT_USER, str(error))
            self._end_with_the_others()

    def _post(self, code: int, reason: str) -> None:
        """Leaves, and says why: what this rank knows of the end of the run, maybe nothing."""
        for number in (signal.SIGTERM, signal.SIGINT):  # torchrun sends them to the survivors
            signal.signal(number, signal.SIG_IGN)
        if not self.store.check([f"failed/{self.rank}"]):
            self.store.set(f"failed/{self.rank}", f"{code} {reason}")
        self._leave()

    def _end_with_the_others(self) -> NoReturn:
        """Waits until the reason is known and told, by this rank if it is its turn."""
        self._post(EXIT_ERROR, "")
        start = time.monotonic()
        while True:
            waited = time.monotonic() - start
            posted = {r: self.store.get(f"failed/{r}").decode() for r in self._listed("failed")}
            reasons = {r: text for r, text in posted.items() if not text.endswith(" ")}
            missing = {*range(self.world_size)} - {*posted}
            known = reasons or not missing or waited > PATIENCE
            mine = self.first or (0 in missing and waited > PATIENCE) or waited > HEARD
            if known and mine and self.store.add("told", 1) == 1:
                print(f"error: {one_line(_reason(reasons, missing))}", file=sys.stderr, flush=True)
            if self.store.check(["told"]):
                codes = [int(text.split()[0]) for text in reasons.values()]
                raise SystemExit(max(codes, default=EXIT_ERROR))
            time.sleep(0.05)

    def _listed(self, what: str) -> set[int]:
        return {rank for rank in range(self.world_size) if self.store.check([f"{what}/{rank}"])}

    def _leave(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


# what gloo, NCCL and torch say when a collective fails
_TRANSPORT = re.compile(r"gloo|NCCL|timeout|timed out|Connection", re.IGNORECASE)


def _reason(reasons: dict[int, str], missing: set[int]) -> str:
    """What ended the run; `reasons` are the posted ones by rank, `missing` who posted nothing."""
    if reasons:
        rank, text = min(reasons.items())
        return f"on rank {rank}: {text.partition(' ')[2]}"
    if missing:
        names = ", ".join(map(str, sorted(missing)))
        return (
            f"rank {names} was lost: it died or answers no more, and the others end with it; "
            "--resume goes on from the last checkpoint"
        )
    return "the ranks lost their connection; --resume goes on from the last checkpoint"
