"""build_model: every network that a recipe can name, its ANN twin, and checkpoints between them."""

import copy

import pytest
import torch

from tests.covering import each, pairwise
from tests.models.support import (
    EVERY_BLOCK,
    NORMS,
    SHALLOW_MLP,
    T,
    assert_healthy,
    backward,
    build,
    images,
)

NETS = [
    *EVERY_BLOCK,
    {"name": "resnet18", "stem": "imagenet", "block": "ms"},
    {"name": "plain", "depth": 7},
    SHALLOW_MLP,
]


@pytest.mark.parametrize(("options", "norm", "kind"), pairwise(NETS, NORMS, ["if", "plif", "relu"]))
def test_every_norm_and_neuron_trains(options, norm, kind):
    model = build(**options, norm=norm, width=4, neuron={"kind": kind})
    assert_healthy(model, backward(model, images()), steps=1 if kind == "relu" else T)
    if kind == "plif":
        leaks = [parameter for name, parameter in model.named_parameters() if name.endswith(".w")]
        assert len(leaks) == len(model.spiking_layers()) > 0
        assert sum(leak.grad.abs() > 0 for leak in leaks) > len(leaks) // 2


@pytest.mark.parametrize(
    ("name", "stem", "image_size", "kernel"),
    [
        ("resnet18", "auto", 96, 7),
        ("resnet18", "auto", 95, 3),
        ("resnet18", "imagenet", 32, 7),
        ("resnet18", "cifar", 224, 3),
        ("resnet20", "auto", 224, 3),
    ],
)
def test_the_stem_follows_the_image_size_unless_named(name, stem, image_size, kernel):
    with torch.device("meta"):
        model = build(name, stem=stem, image_size=image_size)
    assert model.conv1.kernel_size == (kernel, kernel)
    assert (model.maxpool is not None) == (kernel == 7)


@pytest.mark.parametrize(("norm", "options"), each(NORMS, [*EVERY_BLOCK, SHALLOW_MLP]))
def test_checkpoints_move_between_the_fused_the_unfused_and_the_twin(options, norm):
    fused = build(**options, norm=norm, width=4)
    unfused = build(**options, norm=norm, width=4, fused=False, seed=1)
    twin = build(**options, norm=norm, width=4, neuron={"kind": "relu"}, seed=2)
    unfused.load_state_dict(fused.state_dict())
    shared = {k: v for k, v in fused.state_dict().items() if not k.endswith("step_gain")}
    twin.load_state_dict(shared)  # strict: an ANN has no steps, all else is the same
    assert torch.equal(twin.fc.weight, fused.fc.weight)


@pytest.mark.parametrize("kind", ["lif", "relu"])
def test_the_width_of_a_layer_that_is_not_there_is_refused(kind):
    net = build(width=2, neuron={"kind": kind})
    state = net.state_dict() | {"layer9._extra_state": torch.tensor(1.0)}
    with pytest.raises(RuntimeError, match=r"layer9\._extra_state"):
        net.load_state_dict(state)


@pytest.mark.parametrize(
    "options",
    [{"norm": "tebn", "block": "ms"}, pytest.param({"block": "sew"}, marks=pytest.mark.slow)],
    ids=str,
)
def test_the_whole_net_compiles_to_one_graph(options):
    model = build(**options, width=2, neuron={"kind": "plif", "decay_input": True})
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    currents = backward(model, images())
    torch.testing.assert_close(backward(compiled, images()), currents)
    for p, q in zip(compiled.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize(
    ("name", "default", "first"),
    [("resnet18", 64, "conv1"), ("resnet8", 16, "conv1"), ("plain", 16, "layers.0.weights")],
)
def test_the_width_is_that_of_the_first_layer(name, default, first):
    options = {"depth": 3} if name == "plain" else {}
    assert build(name, **options).get_submodule(first).out_channels == default
    model = build(name, width=5, **options)
    assert model.get_submodule(first).out_channels == 5
    if name != "plain":
        assert model.layer3[0].conv1.out_channels == 20  # twice as many in each stage
