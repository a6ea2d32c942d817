"""Ranks without other processes: one alone, torchrun's variables, collectives, the last message."""

import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from spiketriton.runs.folder import RunFolder
from spiketriton.system import group as module
from spiketriton.system.errors import EXIT_ERROR, EXIT_SIGINT, EXIT_USER, UserError
from spiketriton.system.group import _TRANSPORT, Group
from spiketriton.system.ranks import Ranks
from spiketriton.system.torchrun import ranks_of_torchrun

TORCHRUN = {"WORLD_SIZE": "4", "RANK": "1", "MASTER_PORT": "29500", "MASTER_ADDR": "host0"}


def test_a_single_process_exchanges_nothing():
    with Ranks() as ranks:
        ranks.meet()
        ranks.explain(RuntimeError("Connection closed"))
        x, net = torch.tensor([1.0, 2.0]), nn.Linear(1, 1)
        ranks.average_([x])
        for same in (ranks.total, ranks.mean, ranks.largest, ranks.most, ranks.parallel):
            given = net if same == ranks.parallel else x
            assert same(given) is given
        assert x.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, Group),
        ({"WORLD_SIZE": "1"}, Ranks),
        ({"WORLD_SIZE": None}, Ranks),
        ({"MASTER_ADDR": None}, None),
        ({"MASTER_PORT": "http"}, None),
    ],
)
def test_the_ranks_of_an_environment(monkeypatch, changes, found):
    for name, value in {**TORCHRUN, **changes}.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    if found is None:
        with pytest.raises(UserError, match=r"WORLD_SIZE=4.* in the environment.*through torchrun"):
            ranks_of_torchrun()
    else:
        assert type(ranks_of_torchrun()) is found


@pytest.mark.parametrize(
    "message",
    [
        "[../third_party/gloo/gloo/transport/tcp/pair.cc] Connection closed by peer",
        "NCCL error: remote process exited",
        "Timed out waiting 45000ms for recv",
    ],
)
def test_which_errors_come_from_another_rank(message):
    assert _TRANSPORT.search(message)


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    group, claimed = Group(), []
    group.ranks_here, group.local_rank, group.on_gpus = 3, 1, False
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", claimed.append)
    group.claim_device("cpu")
    assert not group.on_gpus
    with pytest.raises(UserError, match=r"3 ranks were started on a machine with 2 GPUs"):
        group.claim_device("auto")
    group.ranks_here = 2
    group.claim_device("auto")
    assert (claimed, group.on_gpus) == ([1], True)


@pytest.mark.parametrize(
    ("rank", "here", "launcher"),
    [
        (0, None, ("torchrun", "--nproc-per-node=4")),
        (3, "2", ("torchrun", "--nnodes=2", "--nproc-per-node=2")),
    ],
)
def test_a_group_knows_its_place_and_the_backend(monkeypatch, rank, here, launcher):
    monkeypatch.setenv("WORLD_SIZE", "4")
    for name, value in (("LOCAL_WORLD_SIZE", here), ("LOCAL_RANK", here and "1")):
        monkeypatch.delenv(name, raising=False)
        if value:
            monkeypatch.setenv(name, value)
    store, begun = dist.HashStore(), []
    monkeypatch.setattr(module, "rendezvous", lambda *_, **given: iter([(store, rank, 4)]))
    monkeypatch.setattr(
        dist, "init_process_group", lambda backend, **given: begun.append((backend, given["rank"]))
    )
    monkeypatch.setattr(dist, "new_group", lambda **given: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(here))
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    with Group() as group:
        pass
    assert begun == [("cpu:gloo,cuda:nccl" if here else "gloo", rank)]
    assert (group.rank, group.world_size, group.first) == (rank, 4, rank == 0)
    assert (group.local_rank, group.ranks_here) == ((1, 2) if here else (0, 4))
    assert group.launcher == launcher


@pytest.fixture
def alone(monkeypatch):
    """A real group, of one process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with Group() as group:
        yield group
    assert not dist.is_initialized()


def gloo_threads() -> int:
    names = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # of a thread that has just ended
            names.append(task.joinpath("comm").read_text())
    return sum("gloo" in name for name in names)


def test_no_thread_outlives_the_group(request):
    """One that holds the tensor of a last collective while Python ends aborts the process."""
    before = gloo_threads()
    group = request.getfixturevalue("alone")
    group.most(1.0)
    group.decide(lambda: 1)
    assert gloo_threads() > before
    group.__exit__(None, None, None)
    assert gloo_threads() == before


def test_collectives(alone, monkeypatch):
    assert not alone.on_gpus
    assert alone.decide(lambda: {"a": 1}) == {"a": 1}
    with pytest.raises(UserError, match="nowhere does not exist"):
        alone.decide(partial(RunFolder.open, "nowhere"))
    alone.meet()
    alone.meet()
    assert alone.store.check(["met1/0", "met2/0"])
    net = alone.parallel(nn.Linear(2, 1))
    assert isinstance(net, DistributedDataParallel)
    assert not net.broadcast_buffers
    for when in (True, False):
        with alone.averages(net, when):
            assert net.require_backward_grad_sync == when

    def two(x: torch.Tensor, op: dist.ReduceOp = dist.ReduceOp.SUM, group: object = None) -> None:
        """The other rank has 10. DDP keeps the default group, so nothing else may pass it."""
        assert group is alone.on_cpu is not dist.group.WORLD
        x.copy_(torch.maximum(x, torch.tensor(10.0)) if op == dist.ReduceOp.MAX else x + 10)

    alone.world_size = 2
    monkeypatch.setattr(dist, "all_reduce", two)
    x, y = torch.tensor([1.0, 20.0]), torch.tensor([[4.0]])
    assert alone.total(x).tolist() == [11, 30]
    assert alone.mean(x).tolist() == [5.5, 15]
    assert alone.largest(x).tolist() == [10, 20]
    assert (alone.most(0.1), alone.most(20.1)) == (10, 20.1)  # a double is not rounded
    assert x.tolist() == [1, 20]
    alone.average_([])
    alone.average_([x, y])
    assert (x.tolist(), y.tolist()) == ([5.5, 15], [[7.0]])


class Clock:
    """Time that passes by sleeping only; `events` happen when it comes to them."""

    def __init__(self, monkeypatch) -> None:
        self.now, self.events = 100.0, dict[float, Callable[[], object]]()
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 150, "nobody reports"
        for when in [when for when in self.events if self.now >= 100 + when]:
            self.events.pop(when)()


@pytest.fixture
def lost(monkeypatch):
    """`lost(rank, posted)`: a group of three in which others have posted why they end."""
    ignored: list[tuple] = []
    monkeypatch.setattr(signal, "signal", lambda *given: ignored.append(given))

    def make(rank: int, posted: dict[int, str]) -> Group:
        group = Group()
        group.store, group.rank, group.world_size = dist.HashStore(), rank, 3
        group.first, group.meetings = rank == 0, 0
        for other, text in posted.items():
            group.store.set(f"failed/{other}", text)
        return group

    yield make
    assert {(signal.SIGTERM, signal.SIG_IGN), (signal.SIGINT, signal.SIG_IGN)} >= {*ignored} > set()


@pytest.mark.parametrize(
    ("rank", "posted", "seconds", "code", "said"),
    [
        (0, {1: "2 no such image"}, 0, 2, "on rank 1: no such image"),
        (0, {1: "1 a bug", 2: "2 no such image"}, 0, 2, "on rank 1: a bug"),
        (0, {1: "1 ", 2: "1 "}, 0, 1, "the ranks lost their connection"),
        (0, {2: "1 "}, 5, 1, "rank 1 died or stopped responding"),
        (1, {2: "1 "}, 5, 1, "rank 0 died or stopped responding"),
        (1, {0: "1 ", 2: "2 no such image"}, 20, 2, "on rank 2: no such image"),
    ],
)
def test_when_a_rank_reports_and_with_which_code(
    monkeypatch, capsys, lost, rank, posted, seconds, code, said
):
    """At once where the reason is known; after 5 s without word from one; 20 s for the first rank."""
    clock, group = Clock(monkeypatch), lost(rank, posted)
    with pytest.raises(SystemExit) as left:
        group.explain(RuntimeError("Connection closed by peer"))
    assert left.value.code == code
    assert capsys.readouterr().err.startswith(f"error: {said}")
    assert seconds <= clock.now - 100 < seconds + 0.2
    assert group.store.get(f"failed/{rank}") == b"1 "


def test_a_rank_waits_for_the_report_of_the_first(monkeypatch, capsys, lost):
    clock, group = Clock(monkeypatch), lost(1, {0: "1 ", 2: "1 "})
    clock.events[3] = lambda: group.store.add("reported", 1)
    with pytest.raises(SystemExit) as left:
        group.explain(UserError("no such image"))
    assert left.value.code == EXIT_USER
    assert capsys.readouterr().err == ""
    assert 3 <= clock.now - 100 < 3.2
    assert group.store.get("failed/1") == b"2 no such image"  # kept, though it posts once more


def test_errors_are_posted_and_one_of_another_rank_is_none(lost):
    group = lost(0, {})
    group.explain(ValueError("timeout"))
    assert group.store.get("failed/0").decode() == "1 ValueError: timeout (see its traceback)"
    group = lost(0, {})
    group.explain(UserError("no such image"))  # returns: the error is about to be printed
    assert group.store.get("failed/0") == b"2 no such image"
    with pytest.raises(SystemExit) as left:
        group.explain(UserError("no such image"))
    assert left.value.code == EXIT_USER


def test_a_meeting_waits_for_all_and_ends_when_one_fails(monkeypatch, capsys, lost):
    clock, group = Clock(monkeypatch), lost(0, {})
    clock.events[1] = lambda: group.store.set("met1/1", "")
    clock.events[2] = lambda: group.store.set("met1/2", "")
    group.meet()
    assert 2 <= clock.now - 100 < 2.2
    clock.events[3] = lambda: group.store.set("failed/2", "2 no such image")
    with pytest.raises(SystemExit):
        group.meet()
    assert "on rank 2: no such image" in capsys.readouterr().err


def test_how_a_group_is_left(lost):
    one, other = lost(0, {}), lost(1, {})
    one.__exit__(None, None, None)
    one.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    with pytest.raises(SystemExit) as left:
        other.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert left.value.code == EXIT_SIGINT
    assert not one.store.check(["failed/0"])
    one.__exit__(ValueError, ValueError("a bug"), None)
    assert one.store.get("failed/0").decode().startswith(f"{EXIT_ERROR} ValueError: a bug")
