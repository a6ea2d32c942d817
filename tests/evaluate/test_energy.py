"""Counted operations against other ways to count them: torch's own, by hand, one spike at a time."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from spiketriton.config import Recipe, recipe_from_toml, replace
from spiketriton.evaluate.counters import SpikeCounter
from spiketriton.evaluate.energy import (
    Workload,
    ann_energy_pj,
    energy_pj,
    spike_sources,
    workload,
)
from spiketriton.models import Network, build_model
from spiketriton.models.graph import graph_of

T, B, SIZE = 3, 2, 17  # an odd size: strides leave borders out


def recipe(name: str = "resnet8", kind: str = "if", *overrides: str) -> Recipe:
    text = f'time_steps = {T}\n[data]\nname = "digits"\n[model]\nname = "{name}"\nwidth = 4\n'
    return replace(recipe_from_toml(text, "test"), f"neuron.kind={kind}", *overrides)


def build(recipe: Recipe, channels: int = 2, size: int = SIZE) -> Network:
    torch.manual_seed(0)
    return build_model(recipe, classes=5, channels=channels, image_size=size).eval()


NETS = [
    ("resnet8", "model.block=plain"),
    ("resnet8", "model.block=sew"),
    ("resnet8", "model.block=ms"),
    ("resnet8", "model.block=preact"),
    ("resnet50", "model.block=plain"),
    ("resnet18", "model.stem=imagenet"),
    ("plain", "model.depth=5"),
    ("mlp", "model.depth=3"),
    ("vggsnn", "model.norm=bn"),
    ("net7b", "model.block=sew"),
    ("net7b", "model.block=plain"),
    ("net7b", "model.block=ms"),
]


@pytest.mark.parametrize(("name", "override"), NETS)
def test_macs_are_those_of_torchs_flop_counter(name, override):
    model = build(recipe(name, "relu", override))
    size = 40 if "imagenet" in override else SIZE
    if name not in ("mlp", "vggsnn", "net7b"):  # made for one size
        size += 4
    work = workload(graph_of(model), (2, size, size))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 2, size, size))
    assert work.ann_macs == counter.get_total_flops() / 2


def test_a_net_counted_by_hand():
    """plain, depth 3, width 4 on 1x6x6: convolutions at 6x6, then 3x3 (stride 2), then 2x2."""
    model = build(recipe("plain", "lif", "model.depth=3"), channels=1, size=6)
    work = workload(graph_of(model), (1, 6, 6))
    assert work.layer_macs == {
        "layers.0.weights": 36 * 4 * 9,
        "layers.1.weights": 9 * 4 * 4 * 9,
        "layers.2.weights": 4 * 4 * 4 * 9,
        "fc": 4 * 5,
    }
    assert work.macs_once == 36 * 4 * 9
    assert work.macs_per_step == 0
    assert work.neurons == 4 * 36 + 4 * 9 + 4 * 4
    # a row of six places, padding 1, stride 2: outputs at 0, 2, 4 look one place to each side
    along = torch.tensor([1, 2, 1, 2, 1, 1])
    assert torch.equal(work.fan_out["layers.0.neuron"][0], 4 * along.outer(along))
    along = torch.tensor([1, 2, 1])
    assert torch.equal(work.fan_out["layers.1.neuron"][3], 4 * along.outer(along))
    assert torch.equal(work.fan_out["layers.2.neuron"], torch.full((4, 2, 2), 5))

    # 10 spikes' worth of accumulates, T = 2: a LIF's step is a MAC, an IF's an AC
    operations, with_data = energy_pj(work, 10, 2, membrane_macs=1)
    updates = 2 * work.neurons
    assert operations == pytest.approx(4.6 * (1296 + updates) + 0.9 * 10)
    assert with_data - operations == pytest.approx(5 * (2 * 1296 + 3 * 10 + 2 * updates))
    operations, _ = energy_pj(work, 10, 2, membrane_macs=0)
    assert operations == pytest.approx(4.6 * 1296 + 0.9 * (10 + updates))
    assert ann_energy_pj(work.ann_macs) == pytest.approx(
        (4.6 * (1296 + 1296 + 576 + 20), 14.6 * (1296 + 1296 + 576 + 20))
    )


@pytest.mark.parametrize(("name", "override"), NETS)
def test_operations_are_the_spikes_convolved_with_ones(name, override, monkeypatch):
    """Counts what arrives at every convolution of a running net, and at every shortcut."""
    model = build(recipe(name, "if", override))
    size = 40 if "imagenet" in override else SIZE
    for norm in (m for m in model.modules() if hasattr(m, "running_mean")):
        norm.bias.data.uniform_(0, 1)  # lively
    nodes = graph_of(model)
    work = workload(nodes, (2, size, size))
    counter = SpikeCounter(nodes, work, steps=T, within=T)

    arrived, shortcuts, last = [], [], []

    def at_weights(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        (x,) = inputs
        if name == "vggsnn" and not bool((x == x.round()).all()):
            x = 4 * x  # means of four places
        if isinstance(layer, nn.Conv2d) and x.shape[0] == T * B and bool((x == x.round()).all()):
            ones = torch.ones(layer.out_channels, x.shape[1], *layer.kernel_size)
            arrived.append(F.conv2d(x, ones, None, layer.stride, layer.padding).double().sum())
        elif isinstance(layer, nn.Linear) and layer is not model.fc and x.shape[0] == T * B:
            arrived.append(x.double().sum() * layer.out_features)

    def at_plain_block(block: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if block.downsample is None:
            shortcuts.append(inputs[0].double().sum())

    def at_preact_shortcut(neuron: nn.Module, inputs: object, spikes: torch.Tensor) -> None:
        shortcuts.append(spikes.double().sum())

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_pre_hook(at_weights)
        if type(module).__name__ == "PreActBlock" and module.downsample is None:
            module.neuron1.register_forward_hook(at_preact_shortcut)
        if type(module).__name__ == "PlainBlock":
            module.register_forward_pre_hook(at_plain_block)
    features = model.features

    def spy(images, steps):
        out = features(images, steps)
        last.append(out)
        return out

    monkeypatch.setattr(model, "features", spy)
    with torch.no_grad(), counter.watching(model):
        model(torch.randn(B, 2, size, size))
    place = torch.Size(work.fan_out[spike_sources(nodes)[-1].name].shape[1:]).numel()
    expected = sum(arrived) + sum(shortcuts) + last[0].double().sum() * place * 5
    assert counter.operations_within()[-1] == round(float(expected))
    assert counter.operations_within()[-1] > 50


@pytest.mark.parametrize("reads", ["currents", "spikes"])
def test_the_shortcut_of_currents_costs_macs_at_each_step(reads):
    model = build(recipe("resnet8", "if", "model.block=ms", f"model.shortcut={reads}"))
    work = workload(graph_of(model), (2, SIZE, SIZE))
    names = [name for name in work.layer_macs if "downsample" in name]
    assert len(names) == 2
    in_each_step = sum(work.layer_macs[name] for name in names)
    assert work.macs_per_step == (in_each_step if reads == "currents" else 0)
    assert work.macs_once == work.layer_macs["conv1"]


@pytest.mark.parametrize(("macs", "added", "words"), [(0, 30, 60), (1, 0, 60), (4, 0, 240)])
def test_the_membranes_of_ten_neurons_in_three_steps(macs, added, words):
    """Of IF an accumulate each, of leaky ones a MAC; read and written once, by a PSN of 4 steps four times."""
    work = Workload(layer_macs={}, macs_once=0, macs_per_step=0, neurons=10, fan_out={})
    operations, with_data = energy_pj(work, 5.0, 3, membrane_macs=macs)
    assert operations == pytest.approx(4.6 * 30 * macs + 0.9 * (5 + added))
    assert with_data == pytest.approx(operations + 5 * (3 * 5 + words))
