"""Bytes, counted exactly."""

import pytest
import torch

from profiling.harness.memory import measure, peak_bytes, saved_bytes
from profiling.sections.kernels import KernelCase

CPU = torch.device("cpu")


def test_bytes_are_counted_by_the_allocator():
    x = torch.ones(2**16, requires_grad=True)
    two = peak_bytes(lambda: (x.detach() + 1) * 2, CPU)
    assert two == pytest.approx(2 * 4 * 2**16, abs=64)  # and some scalars
    assert saved_bytes(lambda: (x * x).exp(), [x]) == 4 * 2**16  # exp keeps its result, x is x
    assert saved_bytes(lambda: (x * x).exp(), []) == 2 * 4 * 2**16


def test_parameters_are_alive_anyway():
    model = torch.nn.Linear(8, 8, bias=False)
    x = torch.ones(2**10, 8, requires_grad=True)
    found = measure(lambda: model(x), lambda: model(x), model, CPU, [x])
    assert found["saved_bytes"] == 0
    assert found["peak_bytes"] == pytest.approx(4 * 8 * 2**10, abs=64)


def test_our_neuron_saves_its_input_alone(measured):
    case = KernelCase(op="lif", mode="training", T=3, shape=(4, 8, 16, 16))
    of = measured(case, "spiketriton", "eager", section="memory")
    assert of.keys() == {"spiketriton", "eager"}  # a copy has no memory to compare
    assert of["spiketriton"]["saved_per_element"] == 4
    assert of["spiketriton"]["peak_per_element"] == of["spiketriton"]["peak_bytes"] / (3 * 8192)
    assert of["eager"]["saved_per_element"] > 8
    assert of["eager"]["peak_bytes"] > of["spiketriton"]["peak_bytes"] > 0
