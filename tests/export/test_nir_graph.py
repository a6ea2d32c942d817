"""Export: NIR files do what the network does, torch.export too, and what cannot be said is not."""

import numpy as np
import pytest
import torch

from spiketriton.config import recipe_from_toml, replace
from spiketriton.export.nir_file import compare
from spiketriton.export.nir_graph import to_nir
from spiketriton.export.nir_replay import replay
from spiketriton.models import Network, build_model
from spiketriton.plugins.tasks import Reading
from spiketriton.system.errors import UserError

nir = pytest.importorskip("nir", reason="the extra nir is not installed")

T, SIZE = 4, 10


def build(*overrides: str, channels: int = 2, size: int = SIZE) -> Network:
    """A lively network: norms as after a training, spikes in every layer."""
    text = f'time_steps = {T}\n[data]\nname = "digits"\n[model]\nname = "resnet8"\nwidth = 4\n'
    recipe = replace(recipe_from_toml(text, "test"), *overrides)
    torch.manual_seed(0)
    model = build_model(recipe, classes=5, channels=channels, image_size=size)
    images = torch.randn(8, channels, size, size)
    with torch.no_grad():
        for norm in (m for m in model.modules() if hasattr(m, "running_mean")):
            norm.weight.uniform_(0.8, 1.6)
            norm.bias.uniform_(0, 0.6)
        for _, neuron in model.spiking_layers():
            for learnt in neuron.parameters():
                learnt.add_(torch.rand_like(learnt) / 4)
        for _ in range(20):
            model(images)
    return model.eval()


def images(channels: int = 2, size: int = SIZE) -> torch.Tensor:
    return torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(5))


SPOKEN = {
    "lif": [],
    "if": ["neuron.kind=if"],
    "cuba": ["neuron.kind=cuba", "neuron.tau=3.0", "neuron.tau_synapse=1.5"],
    "plif": ["neuron.kind=plif", "neuron.tau=3.0", "neuron.decay_input=true"],
    "leak to v_reset": ["neuron.tau=4.0", "neuron.v_reset=-0.25", "neuron.v_threshold=0.8"],
    "sew": ["model.block=sew"],
    "ms": ["model.block=ms"],
    "shortcuts of spikes": ["model.block=ms", "model.shortcut=spikes"],
    "bottleneck": ["model.name=resnet50"],
    "tdbn": ["model.norm=tdbn", "neuron.kind=if"],
    "plain net": ["model.name=plain", "model.depth=4"],
    "by channel": [
        *("neuron.kind=plif", "neuron.decay_input=true"),
        *("neuron.threshold_learnt=channel", "neuron.v_threshold=0.7"),
    ],
    "ilif": ["neuron.kind=ilif", "neuron.levels=3"],
    "ilif without leak": ["neuron.kind=ilif", "neuron.tau=1.0", "model.block=plain"],
    "soft": ["neuron.reset=soft", "neuron.threshold_learnt=channel", "neuron.v_threshold=0.7"],
    "if soft": ["neuron.kind=if", "neuron.reset=soft"],
    "cuba soft": ["neuron.kind=cuba", "neuron.tau=3.0", "neuron.reset=soft"],
    "without reset": ["neuron.reset=none"],
    "no norm": ["model.name=mlp", "model.depth=2", "model.norm=none"],
}


@pytest.mark.parametrize(
    ("net", "dt"), [*((net, 1.0) for net in SPOKEN), ("lif", 1e-3), ("if", 1e-3), ("ilif", 1e-3)]
)
def test_a_file_read_back_spikes_as_the_network(net, dt, tmp_path):
    model = build(*SPOKEN[net])
    path = tmp_path / "net.nir"
    nir.write(path, to_nir(model, (2, SIZE, SIZE), dt))
    graph = nir.read(path)
    found = compare(model, graph, images())
    assert found.different == 0, found
    assert found.spikes > 0.02 * found.compared
    given, _ = replay(graph, images().numpy(), T)
    with torch.no_grad():
        currents = model.double()(images().double())
    assert np.allclose(given["output"], currents.numpy(), atol=1e-4)


def test_what_nir_lacks_is_in_the_metadata(tmp_path):
    nir.write(tmp_path / "net.nir", to_nir(build(), (2, SIZE, SIZE), 0.5))
    metadata = nir.read(tmp_path / "net.nir").metadata
    assert metadata["dt"] == 0.5
    assert metadata["time_steps"] == T
    assert metadata["spike_at"] == ">="
    assert metadata["v_init"] == "v_reset"
    assert metadata["read_out"] == "mean over time of the output"
    last = to_nir(build(), (2, SIZE, SIZE), reading=Reading("last"))
    assert last.metadata["read_out"] == "last time step of the output"
    assert to_nir(build(), (2, SIZE, SIZE)).metadata["dt"] == 1


def test_neurons_have_full_shapes_and_shortcuts_are_edges():
    graph = to_nir(build("model.block=plain"), (2, SIZE, SIZE))
    assert graph.nodes["layer2.0.neuron2"].tau.shape == (8, 5, 5)
    assert {e for e in graph.edges if e[1] == "layer1.0.neuron2"} == {
        ("layer1.0.conv2", "layer1.0.neuron2"),
        ("neuron1", "layer1.0.neuron2"),
    }
    assert ("layer1.0.neuron2", "layer2.0.downsample.0") in graph.edges


def test_spikes_of_several_levels_are_those_of_as_many_thresholds():
    """Each of 0 or 1; what they take from their membrane comes back to it."""
    net, name = ["model.name=mlp", "model.depth=2"], "layers.0.neuron"
    graph = to_nir(build(*net, "neuron.kind=ilif", "neuron.levels=3"), (2, SIZE, SIZE))
    levels = [f"{name}.{k}" for k in (1, 2, 3)]
    assert [float(graph.nodes[level].threshold[0]) for level in levels] == [0.5, 1.5, 2.5]
    assert {e for e in graph.edges if any(end.startswith(name) for end in e)} == {
        ("layers.0.weights", f"{name}.membrane"),
        *((f"{name}.membrane", level) for level in levels),
        *((level, f"{name}.reset") for level in levels),
        (f"{name}.reset", f"{name}.membrane"),
        *((level, "layers.1.weights") for level in levels),
    }
    given, _ = replay(graph, images().numpy(), T)
    assert {float(v) for level in levels for v in np.unique(given[level])} == {0.0, 1.0}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["neuron.kind=relu"], "ReLU"),
        (["neuron.kind=clif"], r"CLIF, whose step is not linear between two spikes \(sigmoid\)"),
        (["neuron.kind=alif"], "ALIF, whose step carries more than a membrane"),
        (["neuron.kind=psn"], "PSN, whose step reads all steps of a window at once"),
        (["model.name=resnet18", "model.stem=imagenet"], "max-pool"),
        (["model.block=preact"], "batch norm of a sum"),
        (["model.norm=tebn", "neuron.kind=clif"], "gain for each time step"),
    ],
)
def test_what_nir_cannot_say_is_refused_in_words(overrides, words):
    model = build(*overrides, size=32)
    with pytest.raises(UserError, match=words):
        to_nir(model, (2, 32, 32))
