"""What is read from a profile of a GPU. There is no GPU here: the events are made up."""

from types import SimpleNamespace

import pytest
import torch

from profiling.harness.device import of_call, summary

MS = 1_000_000


def Event(name, on_device, start, length, annotation=False) -> SimpleNamespace:
    kinds = torch.autograd.DeviceType
    return SimpleNamespace(
        name=lambda: name,
        device_type=lambda: kinds.CUDA if on_device else kinds.CPU,
        start_ns=lambda: start,
        duration_ns=lambda: length,
        is_user_annotation=lambda: annotation,
        is_hidden_event=lambda: False,
    )


def test_overlapping_kernels_count_once_and_every_launch_counts():
    events = [
        Event("kernel", True, 0, 2 * MS),
        Event("kernel", True, 1 * MS, 3 * MS),  # on another stream
        Event("Memcpy HtoD", True, 2 * MS, 1 * MS),
        Event("kernel", True, 6 * MS, 2 * MS),
        Event("aten::add", False, 0, 9 * MS),
        *(Event(name, False, 0, MS) for name in ("cudaLaunchKernel", "cuLaunchKernelEx")),
        *(Event(name, False, 0, MS) for name in ("cudaMemcpyAsync", "hipLaunchKernel")),
        Event("cudaStreamSynchronize", False, 0, MS),
    ]
    found = summary(events, calls=2, seconds=0.006)
    # 0 to 4 and 6 to 8 ms, in two calls of 6 ms each
    assert found == {
        "device_ms": pytest.approx(3.0),
        "busy": pytest.approx(0.5),
        "kernels": 2.0,
        "launches": 2.0,
    }


def test_a_graph_is_one_launch_and_nothing_is_nothing():
    kernels = [Event("kernel", True, i * MS, MS) for i in range(100)]
    found = summary([*kernels, Event("cudaGraphLaunch", False, 0, 10)], calls=1, seconds=0.1)
    assert (found["launches"], found["kernels"], found["busy"]) == (1, 100, pytest.approx(1.0))
    assert summary([], calls=3, seconds=1.0)["device_ms"] == 0


def test_an_annotation_does_not_keep_the_gpu_busy():
    """`record_function` on the device's line spans the gaps between its kernels."""
    recorded = [
        Event("spiketriton::neuron_forward", True, 0, 10 * MS, annotation=True),
        Event("fire_kernel", True, 0, MS),
        Event("fire_kernel", True, 9 * MS, MS),
    ]
    found = summary(recorded, calls=1, seconds=0.01)
    assert (found["busy"], found["kernels"]) == (pytest.approx(0.2), 2)


def test_without_a_gpu_there_is_no_device_time():
    assert of_call(lambda: 1 / 0, torch.device("cpu"), 1.0) == {}
