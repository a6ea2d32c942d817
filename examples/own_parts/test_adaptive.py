"""A neuron of one's own, by its step, in a recipe: it is fused, measured, evaluated, resumed, and refused by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import spiketriton
from spiketriton.export.nir_graph import not_in_nir
from spiketriton_kernels.nn import SpikingNeuron

HERE = Path(__file__).parent
KEYS = {"data.train_images": 96, "data.test_images": 40, "batch_size": 32, "threads": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adaptive")
    for name in ("adaptive.py", "adaptive.toml"):
        shutil.copy(HERE / name, folder)
    return folder


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("spiketriton.training.session.draw_run", lambda *_: [])


@pytest.fixture(scope="module")
def whole(folder):
    """A trained run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("spiketriton.training.session.draw_run", lambda *_: [])
        return spiketriton.train("adaptive.toml", run_dir="whole", quiet=True, **KEYS)


def test_it_trains_is_measured_and_evaluated_and_resumes_to_the_bit(whole):
    neurons = [m for m in whole.model.modules() if isinstance(m, SpikingNeuron)]
    assert {type(n).__name__ for n in neurons} == {"Adaptive"}
    assert all(n.fuses and n.is_binary for n in neurons)
    assert any((n.beta != 0.2).any() for n in neurons)
    rows = [json.loads(line) for line in Path("whole/gradients.jsonl").read_text().splitlines()]
    assert {row["layer"] for row in rows} >= {name for name, _ in whole.model.spiking_layers()}
    found = whole.evaluate()
    assert max(found.layers[0].rate) > 0
    shutil.copytree("whole", "killed")  # as it was after its first epoch
    Path("killed/checkpoints/last.1.pt").rename("killed/checkpoints/last.pt")
    continued = spiketriton.train(resume="killed", quiet=True)
    assert continued.step == whole.step
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, continued.model.state_dict()[name]), name


def test_fused_and_alone_are_the_same_network():
    """In float64, where no spike hangs on the rounding of a norm; the logits are float32."""
    nets = []
    for fused in (True, False):
        keys = KEYS | {"max_steps": 1, "model.fused": fused}
        run = spiketriton.train("adaptive.toml", run_dir=f"fused_{fused}", quiet=True, **keys)
        nets.append(run.model)
    nets[1].load_state_dict(nets[0].state_dict())
    images = torch.rand(6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for net in nets:
        logits = net.double().train()(images)
        gradients = torch.autograd.grad(logits.square().sum(), list(net.parameters()))
        found.append([logits, *gradients])
    assert found[0][0].abs().max() > 0.1
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() <= 1e-6 * other.abs().max()


def test_nir_names_what_it_does_not_have(whole):
    said = "the neuron Adaptive, whose step carries more than a membrane and a synaptic current"
    assert said in list(not_in_nir(whole.model.graph()))
