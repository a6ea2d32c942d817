"""What is read from a profile of a GPU, and from nvidia-smi. There is no GPU here: what they say is made up."""

import subprocess
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from profiling.harness.device import clocks, of_call, summary

MS = 1_000_000


def event(name: str, start: int = 0, length: int = MS, annotation: bool = False) -> SimpleNamespace:
    on_gpu = name.startswith(("kernel", "Memcpy")) or annotation
    return SimpleNamespace(
        name=lambda: name,
        device_type=lambda: DeviceType.CUDA if on_gpu else DeviceType.CPU,
        start_ns=lambda: start,
        duration_ns=lambda: length,
        is_user_annotation=lambda: annotation,
        is_hidden_event=lambda: False,
    )


def test_overlapping_kernels_count_once_and_every_launch_counts():
    events = [
        event("kernel", 0, 2 * MS),
        event("kernel", 1 * MS, 3 * MS),  # on another stream
        event("Memcpy HtoD", 2 * MS, 1 * MS),
        event("kernel", 6 * MS, 2 * MS),
        event("spiketriton::neuron_forward", 0, 10 * MS, annotation=True),  # spans the gaps
        event("aten::add", 0, 9 * MS),
        *map(event, ("cudaLaunchKernel", "cuLaunchKernelEx", "cudaMemcpyAsync", "hipLaunchKernel")),
        *map(event, ("cudaStreamSynchronize", "cudaGraphLaunch")),
    ]
    # 0 to 4 and 6 to 8 ms, in two calls of 6 ms each
    assert summary(events, calls=2, seconds=0.006) == {
        "device_ms": pytest.approx(3.0),
        "busy": pytest.approx(0.5),
        "kernels": 2.0,
        "launches": 2.5,
    }
    assert of_call(lambda: 1 / 0, torch.device("cpu"), 1.0) == {}


@pytest.mark.parametrize("answer", ["1980, 2619, 688.10, 0x0000000000000004\n", None])
def test_rows_of_a_gpu_tell_its_clocks_and_what_slows_it(monkeypatch, answer):
    def asked(command, **_):
        assert "--id=GPU-12-34" in command
        if answer is None:
            raise FileNotFoundError("nvidia-smi")
        return SimpleNamespace(stdout=answer)

    monkeypatch.setattr(subprocess, "run", asked)
    card = SimpleNamespace(uuid="12-34")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    found = clocks(torch.device("cuda"))
    if answer is None:
        assert found == {"throttled_by": "unknown: nvidia-smi"}
    else:
        assert (found["sm_mhz"], found["throttled_by"]) == ("1980", "0x0000000000000004")
    assert clocks(torch.device("cpu")) == {}
