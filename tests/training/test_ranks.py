"""Ranks without processes: a single one, torchrun's variables, and the message at the end."""

import pytest
import torch
from torch import nn

from spiketriton.errors import UserError
from spiketriton.training.ranks import _TRANSPORT, Group, Ranks, _reason, ranks_of_torchrun

TORCHRUN = {"WORLD_SIZE": "4", "RANK": "1", "MASTER_PORT": "29500", "MASTER_ADDR": "host0"}


def test_a_single_process_exchanges_nothing():
    with Ranks() as ranks:
        assert (ranks.rank, ranks.world_size, ranks.ranks_here, ranks.first) == (0, 1, 1, True)
        assert (ranks.in_words(), ranks.launcher) == ("", ("python",))
        ranks.claim_device("cuda")
        ranks.meet()
        ranks.explain(RuntimeError("Connection closed"))
        assert ranks.decide(lambda: 3) == 3
        assert ranks.most(2.5) == 2.5
        x, net = torch.tensor([1.0, 2.0]), nn.Linear(1, 1)
        for same in (ranks.total(x), ranks.mean(x), ranks.largest(x)):
            assert same is x
        ranks.average_([x])
        assert x.tolist() == [1.0, 2.0]
        assert ranks.parallel(net) is net
        with ranks.averages(net, when=False):
            pass


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, Group),
        ({"WORLD_SIZE": "1"}, Ranks),
        ({"WORLD_SIZE": ""}, Ranks),
        ({"WORLD_SIZE": None}, Ranks),
        ({"RANK": None}, None),
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
        with pytest.raises(UserError, match=r"the environment says WORLD_SIZE=4.*through torchrun"):
            ranks_of_torchrun()
    else:
        assert type(ranks_of_torchrun()) is found


def test_the_message_names_the_first_reason_or_who_is_missing():
    assert _reason({2: "2 no such image", 1: "1 a bug in it"}, {0}) == "on rank 1: a bug in it"
    lost = _reason({}, {3, 1})
    assert lost.startswith("rank 1, 3 died or stopped responding; all ranks are stopping;")
    assert _reason({}, set()).startswith("the ranks lost their connection; --resume continues")


@pytest.mark.parametrize(
    ("message", "other"),
    [
        ("[../third_party/gloo/gloo/transport/tcp/pair.cc] Connection closed by peer", True),
        ("NCCL error: remote process exited", True),
        ("Timed out waiting 45000ms for recv", True),
        ("shapes do not match", False),
    ],
)
def test_which_errors_come_from_another_rank(message, other):
    assert bool(_TRANSPORT.search(message)) == other


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
