"""TC-LIF by its step: the published equations, the loop's spikes to the bit, and a recipe that trains it."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import spiketriton
from spiketriton_kernels import Surrogate
from spiketriton_kernels.nn import SpikingNeuron

HERE = Path(__file__).parent
KEYS = {"data.train_images": 96, "data.test_images": 40, "batch_size": 32, "threads": 1}


@pytest.fixture(scope="module")
def neurons(tmp_path_factory):
    """Those of a net that its recipe has trained. A process knows a part by one file."""
    folder = tmp_path_factory.mktemp("tclif")
    for name in ("tclif.py", "tclif.toml"):
        shutil.copy(HERE / name, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("spiketriton.training.session.draw_run", lambda *_: [])
        run = spiketriton.train("tclif.toml", run_dir="run", quiet=True, epochs=1, **KEYS)
    return [m for m in run.model.modules() if isinstance(m, SpikingNeuron)]


def made(neurons):
    return type(neurons[0])(Surrogate("atan", width=1.0))


def test_two_neurons_by_hand(neurons):
    """sigmoid(0) is a half: somata of 1, 1.25, 1.1875, -1.17 and of 0.25, 0.69, 1.2, 0.67 before the reset."""
    neuron = made(neurons)
    x = torch.tensor([[2.0, 0.5], [1.0, 0.5], [0.0, 0.5], [-4.0, 0.5]]).view(4, 1, 2)
    assert neuron(x)[:, 0].tolist() == [[1, 0], [1, 0], [1, 1], [0, 0]]


def test_spikes_and_gradients_are_the_loops(neurons):
    neuron = made(neurons)
    with torch.no_grad():
        neuron.back.fill_(0.4)
        neuron.ahead.fill_(-0.7)
    torch.manual_seed(0)
    x = torch.randn(9, 2, 3, 7).requires_grad_()
    weights = torch.randn_like(x)
    found, expected = neuron(x), neuron.define(x)
    assert torch.equal(found, expected)
    wanted = [x, neuron.back, neuron.ahead]
    for mine, theirs in zip(
        *(torch.autograd.grad((s * weights).sum(), wanted) for s in (found, expected)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=2e-5)


def test_its_recipe_trains(neurons):
    assert {type(n).__name__ for n in neurons} == {"TCLIF"}
    assert all(n.fuses for n in neurons)
    assert all(float(n.ahead) != 0 and float(n.back) != 0 for n in neurons)


def test_a_net_of_it_is_diagnosed(neurons):
    layers = [part for _ in range(3) for part in (nn.Linear(16, 16), made(neurons))]
    torch.manual_seed(0)
    x = torch.randn(4, 24, 16)
    found = spiketriton.diagnose(nn.Sequential(*layers), (x, torch.arange(24) % 16), tries=0)
    assert len(found.measured.depth_profile) == 3
    assert min(found.measured.depth_profile) > 0
