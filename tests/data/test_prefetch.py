"""Batches on the device: finished there, on a GPU one batch ahead on a stream of its own."""

import contextlib
import threading

import pytest
import torch

from spiketriton.data import prefetch
from spiketriton.data.prefetch import Loaded, finished
from spiketriton.errors import UserError

CUDA = torch.device("cuda", 0)


def source(log, mistake=False):
    """Three loaded batches, the last of which may be a mistake; logs what is asked of it."""
    try:
        for at in range(3):
            if mistake and at == 2:
                raise UserError("a damaged file")
            log.append(f"load {at}")
            yield Loaded(torch.full((2, 1), at, dtype=torch.uint8), torch.tensor([at]), {})
    finally:
        log.append("closed")


class FakeCuda(threading.local):
    """Stands for torch.cuda, and logs the order of events; each thread has a current stream."""

    def __init__(self, log):
        self.log, self.at = log, "consumer"

    def Stream(self, device):
        assert device == CUDA
        return FakeStream(self.log, "side")

    @contextlib.contextmanager
    def stream(self, stream):
        self.at = stream.name
        yield
        self.at = "consumer"

    def current_stream(self, device):
        assert device == CUDA
        return FakeStream(self.log, self.at)


class FakeStream:
    def __init__(self, log, name):
        self.log, self.name = log, name

    def record_event(self):
        self.log.append(f"event on {self.name}")
        return len(self.log)

    def wait_event(self, event):
        self.log.append(f"{self.name} waits for {event}")


class FakeTensor:
    def __init__(self, log, name):
        self.log, self.name = log, name

    def record_stream(self, stream):
        self.log.append(f"{self.name} lives on {stream.name}")


def test_on_a_cpu_a_batch_is_made_when_it_is_asked_for():
    log = []

    def finish(one):
        log.append("finish")
        return one.images.float() + 1, one.labels

    batches = finished(source(log), finish, torch.device("cpu"))
    assert log == []
    images, labels = next(batches)
    assert (images.tolist(), labels.tolist()) == ([[1.0], [1.0]], [0])
    assert log == ["load 0", "finish"]
    assert [labels.item() for _, labels in batches] == [1, 2]
    assert log[-1] == "closed"


@pytest.fixture
def on_a_gpu():
    """`on_a_gpu(log, mistake) -> batches` on a fake GPU, whose batches are logged by name and thread."""

    def start(log, **more):
        cuda = FakeCuda(log)

        def copied(loaded):
            assert cuda.at == "side"
            assert threading.current_thread() is not threading.main_thread()
            at = int(loaded.labels)
            log.append(f"finish {at}")
            return FakeTensor(log, f"images {at}"), FakeTensor(log, f"labels {at}")

        return prefetch._ahead(map(copied, source(log, **more)), CUDA, cuda)

    return start


def test_on_a_gpu_a_thread_puts_the_next_batch_on_its_way(on_a_gpu):
    log = []
    batches = on_a_gpu(log)
    given = next(batches)
    assert [tensor.name for tensor in given] == ["images 0", "labels 0"]
    assert [images.name for images, _ in batches] == ["images 1", "images 2"]
    prepared = [line for line in log if line.startswith(("load", "finish", "event"))]
    assert prepared == [
        line for at in range(3) for line in (f"load {at}", f"finish {at}", "event on side")
    ]
    events = [n for n, line in enumerate(log, 1) if line == "event on side"]
    used = [line for line in log if "consumer" in line]
    assert used == [line for n, at in zip(events, range(3), strict=True) for line in (
        f"consumer waits for {n}", f"images {at} lives on consumer", f"labels {at} lives on consumer"
    )]  # fmt: skip


def test_a_mistake_is_raised_on_a_gpu_too(on_a_gpu):
    batches = on_a_gpu([], mistake=True)
    assert [next(batches)[0].name for _ in range(2)] == ["images 0", "images 1"]
    with pytest.raises(UserError, match="a damaged file"):
        next(batches)
