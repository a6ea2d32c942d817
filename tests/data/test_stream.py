"""The batch of a step is a function of (seed, step), however it is loaded."""

import gc
import multiprocessing
import os
import pickle
import random
import signal
import time
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from spiketriton.data import build_data
from spiketriton.data import stream as module
from spiketriton.data.counter_rng import mix
from spiketriton.data.preparing import workers_of
from spiketriton.data.stream import (
    _leave_signals_to_the_parent,
    auto_workers,
    subset,
    workers_that_fit,
)
from spiketriton.system.errors import UserError
from tests.processes import done
from tests.small_data import all_of, data_recipe, make_class_tree, make_fashion_mnist, same, take


@pytest.fixture(scope="module", params=["fashion_mnist", "imagefolder"])
def make(request, tmp_path_factory):
    """`make(data=..., train=..., seed=..., rank=..., world_size=...) -> Data` of 22 images."""
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "imagefolder":
        make_class_tree(root, ("train", "val"), ("ape", "bee"), per_class=11)
        size = "image_size = 16\n"
    else:
        make_fashion_mnist(root, n=22)
        size = ""

    def build(*, data='augment = "strong"', train="", seed=0, rank=0, world_size=1):
        recipe = data_recipe(request.param, root, data=size + data, train=train, seed=seed)
        return build_data(recipe, rank=rank, world_size=world_size)

    return build


one_source = pytest.mark.parametrize("make", ["fashion_mnist"], indirect=True)
"""Of what processes do, whatever they read."""


def test_a_batch_is_the_same_with_workers_from_any_start_and_in_micro_batches(make):
    alone = take(make(), 12)  # 5 steps an epoch
    assert same(alone, take(make(data='augment = "strong"\nworkers = 2'), 12))
    for step in (5, 7):
        assert same(alone[step:], take(make(), 12 - step, step=step))
    micro = take(make(train="accumulate = 2"), 14)
    assert {len(images) for images, _ in micro} == {2}
    assert same(alone[:7], [all_of(pair) for pair in zip(micro[::2], micro[1::2], strict=True)])
    # a start counts optimizer steps, not micro-batches
    assert same(micro[6:], take(make(train="accumulate = 2"), 8, step=3))


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_global_batch_in_order(make, world_size):
    ranks = [take(make(rank=r, world_size=world_size), 7) for r in range(world_size)]
    assert same(take(make(), 7), [all_of(step) for step in zip(*ranks, strict=True)])


@pytest.mark.parametrize("seed", [0, 5])
def test_the_batches_of_a_seed_are_these_for_ever(make, seed):
    """Or a resumed run would see other images. Every image once an epoch; the ragged rest is dropped."""
    requests = make(seed=seed).train.requests(4)
    for epoch, at in ((0, 4), (1, 0)):
        order = torch.Generator().manual_seed(int(mix(seed, 1, epoch)[0]))
        indices = torch.randperm(22, generator=order).numpy()[4 * at : 4 * at + 4]
        found, keys, _ = next(requests)
        assert np.array_equal(found, indices)
        assert np.array_equal(keys, mix(seed, 2, epoch, indices))


def test_one_process_gets_the_batches_of_all_ranks(make):
    keys = {"train": "accumulate = 2", "world_size": 2}
    ranks = [islice(make(rank=r, **keys).train.requests(3), 6) for r in range(2)]
    whole = make(rank=1, **keys).train.of_all_ranks()
    ours = [indices for indices, *_ in islice(whole.requests(3), 12)]
    assert np.array_equal(ours, [part[0] for step in zip(*ranks, strict=True) for part in step])


def test_a_subset_is_drawn_once_and_for_ever():
    drawn = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert subset(np.arange(50), 7).tolist() == sorted(drawn[:7].tolist())
    assert subset(np.arange(50), 0).tolist() == list(range(50))


def test_workers_leave_signals_to_the_parent(monkeypatch):
    given, alarms = {}, []
    monkeypatch.setattr(signal, "signal", given.__setitem__)
    monkeypatch.setattr(signal, "alarm", alarms.append)
    _leave_signals_to_the_parent(0)
    assert given[signal.SIGINT] == given[signal.SIGHUP] == signal.SIG_IGN
    given[signal.SIGTERM](signal.SIGTERM, None)
    assert alarms == [60]  # seconds, in which the parent saves


@pytest.mark.parametrize("workers", [0, 2])
def test_the_test_set_is_whole_ordered_and_unaugmented(make, workers):
    """And loading leaves the global generators alone."""

    def states():
        mersenne = np.random.get_state()[1].tolist()  # noqa: NPY002 - the global one is meant
        return torch.get_rng_state().tolist(), mersenne, random.getstate()

    before = states()
    data = make(data=f'augment = "strong"\nworkers = {workers}')
    take(data, 3)
    batches = list(data.test)
    assert states() == before
    assert [len(labels) for _, labels in batches] == [4, 4, 4, 4, 4, 2]
    labels = torch.cat([labels for _, labels in batches])
    assert torch.equal(labels, data.test.dataset.split.labels)
    assert same(batches, list(make(data='augment = "none"').test))


@pytest.mark.parametrize(
    ("ranks", "images", "rounds"),
    [
        (2, 0, [[4, 4, 3], [4, 4, 3]]),
        (4, 9, [[3], [2], [2], [2]]),
        (4, 3, [[1], [1], [1], [None]]),
        (4, 17, [[4, 1], [4, None], [4, None], [4, None]]),
    ],
)
def test_ranks_share_the_test_set_in_as_many_rounds(make, ranks, images, rounds):
    extra = f"test_images = {images}"
    whole = torch.cat([images for images, _ in make(data=extra).test])
    for rank in range(ranks):
        test = replace(make(data=extra, rank=rank, world_size=ranks).test, batch_size=4)
        shown = list(test.rounds())
        assert [batch and len(batch[1]) for batch in shown] == rounds[rank]
        assert (test.images, len(test)) == (len(whole), len(list(test)))
        for ours, batch in enumerate(test):
            assert torch.equal(batch[0], whole[rank::ranks][4 * ours : 4 * ours + 4])


@one_source
def test_workers_outlive_ctrl_c_and_a_scheduler_and_end_with_the_stream(make):
    expected = take(make(), 9)
    before = set(multiprocessing.active_children())
    stream = make(data='augment = "strong"\nworkers = 1').train.from_step(0)
    got = [next(stream)]
    (worker,) = set(multiprocessing.active_children()) - before
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
        got += islice(stream, 4)
    assert same(got, expected)
    assert worker.is_alive()
    stream.close()
    worker.join(10)
    assert not worker.is_alive()


def test_datasets_travel_to_workers_that_are_not_forked(make):
    data = make().train
    request = next(data.requests(0))
    one, two = (
        given[request] for given in (pickle.loads(pickle.dumps(data.dataset)), data.dataset)
    )
    assert same([one[:2]], [two[:2]])
    np.testing.assert_equal(one.draws, two.draws)


@pytest.mark.parametrize(
    ("cores", "in_memory", "cuda", "ranks", "workers"),
    [
        (1, True, False, 1, 0),
        (64, True, False, 1, 0),  # training on the CPU needs the cores itself
        (4, True, True, 1, 0),
        (5, True, True, 1, 4),
        (1, False, False, 1, 0),
        (8, False, False, 1, 7),
        (64, False, True, 1, 63),
        (16, False, True, 4, 3),
    ],
)
def test_auto_workers(monkeypatch, cores, in_memory, cuda, ranks, workers):
    of_this_process = {0: set(range(cores))}.__getitem__
    monkeypatch.setattr(os, "sched_getaffinity", of_this_process, raising=False)
    assert auto_workers(in_memory=in_memory, cuda=cuda, ranks_here=ranks) == workers


MIB = 1 << 20


@pytest.mark.parametrize(
    ("workers", "free", "ranks", "fit"),
    [
        (4, None, 1, 4),  # no Linux
        (0, 0, 1, 0),
        (4, 0, 1, 0),  # read-only, or missing
        (4, 1 << 16, 1, 0),
        (4, 64 * MIB, 1, 3),  # a container's, of which each takes 4 batches of 4.02 MiB
        (4, 65 * MIB, 1, 4),
        (4, 65 * MIB, 2, 2),
    ],
)
def test_workers_have_room_for_what_they_hand_over(monkeypatch, workers, free, ranks, fit):
    monkeypatch.setattr(module, "shared_memory", lambda: free)
    size = 4 * MIB
    found, note = workers_that_fit(workers, False, size, ranks)
    assert found == fit
    assert bool(note) == (fit < workers)
    if fit == workers:
        assert workers_that_fit(workers, True, size, ranks) == (workers, "")
        return
    with pytest.raises(UserError) as refused:
        workers_that_fit(workers, True, size, ranks)
    for words in (f"data.workers = {workers}", "/dev/shm", f"data.workers={fit},", "--shm-size"):
        assert words in str(refused.value)
    assert ("cannot be written" in str(refused.value)) == (free == 0)


@one_source
def test_shared_memory_is_looked_at_before_the_first_batch(make, monkeypatch):
    monkeypatch.setattr(module, "shared_memory", lambda: 0)
    with pytest.raises(
        UserError, match=r"data\.workers = 2: .*/dev/shm cannot be written; accepted"
    ):
        make(data='augment = "strong"\nworkers = 2')
    monkeypatch.setattr("spiketriton.data.auto_workers", lambda **_: 3)
    data = make(data='augment = "strong"\nworkers = "auto"')
    assert data.train.loading.workers == 0
    assert "images are loaded by 0 processes, not 3, which need shared memory" in data.note
    monkeypatch.setattr("spiketriton.data.preparing.shared_memory", lambda: 0)
    assert workers_of(data_recipe("digits", data="workers = 2").data) == 0


@one_source
def test_a_batch_that_does_not_come_ends_in_a_line(make, monkeypatch):
    """As of workers that find no shared memory: they say so on stderr, and hand over nothing."""
    monkeypatch.setattr(module, "LIMIT", 0.25)
    data = make(data='augment = "none"\nworkers = 1').train
    monkeypatch.setattr(type(data.dataset), "__getitem__", lambda *_: time.sleep(0.5))
    with pytest.raises(UserError) as refused:
        next(data.from_step(0))
    assert "data.workers = 1: no batch came from the processes that load images" in str(
        refused.value
    )
    assert "timed out after 0.25 seconds; /dev/shm has " in str(refused.value)
    assert "accepted: data.workers=0, which needs no shared memory" in str(refused.value)


@one_source
@pytest.mark.parametrize("missed", [False, True])
def test_a_worker_that_is_killed_ends_in_a_line(make, monkeypatch, missed):
    """Also where the signal of its end reaches nobody, as one does that comes right before a wait."""
    gc.collect()  # a loader of another test, if it ended its workers just now, would take the signal
    monkeypatch.setattr(module, "LOOK", 0.1)
    if missed:
        monkeypatch.setattr(signal_handling, "_error_if_any_worker_fails", lambda: None)
    waits, get = [], _MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(
        _MultiProcessingDataLoaderIter,
        "_try_get_data",
        lambda self, timeout: waits.append(timeout) or get(self, timeout),
    )
    data = make(data='augment = "none"\nworkers = 1').train
    monkeypatch.setattr(
        type(data.dataset), "__getitem__", lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    )
    with pytest.raises(UserError, match=r"data\.workers = 1: no batch came.*DataLoader worker"):
        next(data.from_step(0))
    assert {*waits} == {0.1}


@one_source
def test_a_batch_that_takes_longer_than_a_look_comes(make, monkeypatch):
    monkeypatch.setattr(module, "LOOK", 0.1)
    data = make(data='augment = "none"\nworkers = 1').train
    load, expected = type(data.dataset).__getitem__, next(data.from_step(0))

    def slowly(*given):
        time.sleep(0.5)
        return load(*given)

    monkeypatch.setattr(type(data.dataset), "__getitem__", slowly)
    assert same([next(data.from_step(0))], [expected])


def test_a_program_that_ends_with_an_open_stream_ends(tmp_path):
    """Workers that sat out SIGTERM would keep multiprocessing waiting for them at exit."""
    program = (
        "from spiketriton.data import build_data\n"
        "from tests.small_data import data_recipe\n"
        "data = build_data(data_recipe('digits', data='workers = 1'))\n"
        "train, test = data.train.from_step(0), iter(data.test)\n"
        "next(train), next(test)\n"
        "print('over', flush=True)\n"
        "raise LookupError('left open')\n"
    )
    ended = done("-c", program, folder=tmp_path)
    assert ended.stdout == "over\n"
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "LookupError: left open"
