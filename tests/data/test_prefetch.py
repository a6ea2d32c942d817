"""Batches on the device: finished there, on a GPU one batch ahead on a stream of its own."""

import contextlib
import threading
from unittest.mock import MagicMock, call

import pytest
import torch

from spiketriton.data import prefetch
from spiketriton.data.prefetch import Loaded, finished
from spiketriton.system.errors import UserError

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
def gpu():
    """Stands for torch.cuda; `gpu.log` has the order of events on its side stream."""
    gpu, here = MagicMock(log=[]), threading.local()
    side = gpu.Stream.return_value

    @contextlib.contextmanager
    def stream(chosen):
        here.at = chosen
        yield
        here.at = None

    def record_event():
        gpu.log.append("event")
        return len(gpu.log)

    def copied(loaded):
        assert here.at is side
        assert threading.current_thread() is not threading.main_thread()  # the step costs no more
        gpu.log.append(f"finish {loaded.labels.item()}")
        return MagicMock(), MagicMock()

    gpu.stream, side.record_event, gpu.copied = stream, record_event, copied
    return gpu


def test_on_a_gpu_a_thread_puts_the_next_batch_on_its_way(gpu):
    batches = prefetch._ahead(map(gpu.copied, source(gpu.log)), CUDA, gpu)
    given, consumer = [next(batches)], gpu.current_stream.return_value
    given += batches
    steps = [line for at in range(3) for line in (f"load {at}", f"finish {at}", "event")]
    assert gpu.log == [*steps, "closed"]
    assert consumer.wait_event.mock_calls == [call(3), call(6), call(9)]
    for tensor in (tensor for batch in given for tensor in batch):
        tensor.record_stream.assert_called_once_with(consumer)
    assert gpu.Stream.mock_calls[0] == gpu.current_stream.mock_calls[0] == call(CUDA)
    assert not [one for one in threading.enumerate() if one.name.startswith("augmentation")]


def test_a_mistake_is_raised_on_a_gpu_too(gpu):
    batches = prefetch._ahead(map(gpu.copied, source(gpu.log, mistake=True)), CUDA, gpu)
    next(batches), next(batches)
    with pytest.raises(UserError, match="a damaged file"):
        next(batches)
