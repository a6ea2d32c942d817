"""ResNets: torchvision's parameters and outputs, published sizes, and the equations of the blocks."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from spiketriton.config import NeuronConfig
from spiketriton.models import blocks, count_parameters, resnet
from spiketriton.models.blocks import BLOCKS as BLOCK_TYPES
from spiketriton.models.layers import folded, kept_paths, norm_neuron
from spiketriton.models.resnet import ARCHITECTURES, ResNet
from spiketriton.neurons import Norm, build_neuron
from tests.covering import each
from tests.models.support import (
    BLOCKS,
    CLASSES,
    B,
    T,
    assert_healthy,
    backward,
    build,
    images,
    lively,
    parts_of,
    recipe,
)

LARGE = [name for name, architecture in ARCHITECTURES.items() if architecture.width == 64]


@pytest.mark.parametrize(
    ("name", "block", "kind"), each(list(ARCHITECTURES) * 2, BLOCKS, ["lif", "lif", "relu", "lif"])
)
def test_every_resnet_trains(name, block, kind):
    model = build(name, block=block, width=2, neuron={"kind": kind})
    assert_healthy(model, backward(model, images()), steps=T if kind == "lif" else 1)
    blocks, bottleneck, _ = ARCHITECTURES[name]
    layers = sum(blocks) * (3 if bottleneck else 2) + 1
    if block == "sew":  # and a neuron in each shortcut that changes shape
        layers += len(blocks) - (0 if bottleneck else 1)
    layers += name == "resnet19"  # whose classifier has a hidden layer
    assert len(model.spiking_layers()) == (layers if kind == "lif" else 0)


@pytest.mark.parametrize("kind", ["relu", "lif"])
@pytest.mark.parametrize("name", LARGE)
def test_parameters_are_torchvisions(name, kind):
    with torch.device("meta"):
        model = build(name, image_size=224, neuron={"kind": kind})
        twin = getattr(torchvision.models, name)(num_classes=CLASSES)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    for neuron, _ in model.spiking_layers():  # which keep the width of their surrogate
        assert shapes.pop(f"{neuron}._extra_state") == ()
    assert shapes == {key: value.shape for key, value in twin.state_dict().items()}
    assert count_parameters(model) == sum(p.numel() for p in twin.parameters())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_ann_twin_computes_what_torchvision_computes(name):
    torch.manual_seed(0)
    twin = getattr(torchvision.models, name)(num_classes=CLASSES)
    x = images(size=64)
    with torch.no_grad():
        for norm in (m for m in twin.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.momentum = 0.9
        for _ in range(2):  # running statistics under which activity reaches the classifier
            twin(x)
        model = build(name, stem="imagenet", neuron={"kind": "relu"})
        model.load_state_dict(twin.state_dict())
        expected = twin.eval()(x)
        assert expected.std(0).mean() > 0.1  # and the images give different outputs
        torch.testing.assert_close(model.eval()(x), expected.unsqueeze(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "stem", "size", "advice"),
    [
        ("resnet50", "imagenet", 16, "model.stem=cifar, or data.image_size=33"),
        ("resnet50", "imagenet", 33, None),
        ("resnet50", "cifar", 8, "data.image_size=9"),
        ("resnet20", "cifar", 8, None),
    ],
)
def test_a_net_of_single_pixels_is_warned_of(name, stem, size, advice):
    architecture = ARCHITECTURES[name]._replace(width=2)
    parts = parts_of(recipe())
    net = ResNet(parts, architecture, block="plain", stem=stem, classes=2, channels=1)
    seen = []
    for stage in net.stage_names:
        net.get_submodule(stage)[-1].register_forward_hook(
            lambda _m, _x, out: seen.append(out.shape[-1])
        )
    net(images(1, size))
    warning = resnet.pixel_warning(name, stem, size)
    assert (warning is None) == (advice is None) == (seen[-1] > 1)
    if warning is not None:
        assert f"Try {advice}" in warning


def test_a_net_of_single_pixels_is_warned_of_once(capsys):
    for _ in range(2):
        build("resnet18", width=2, stem="imagenet", image_size=15)
    assert capsys.readouterr().err.count("warning: resnet18") == 1


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_compute_their_equations(kind, fused):
    parts = parts_of(recipe(neuron={"kind": "if"}, fused=fused))
    block = BLOCK_TYPES[kind](parts, 3, 4, 2, False).double()
    conv, bn, *neuron = block.downsample
    x = images().double().repeat(4, 1, 1, 1).unflatten(0, (4, B)) + 1
    out = block(x)

    def run(layer: nn.Module, y: Tensor) -> Tensor:
        return layer(y.flatten(0, 1)).unflatten(0, y.shape[:2])

    shortcut = bn(run(conv, x))
    first, last = block.stages()
    if kind == "ms":
        spikes = last[2](first[1](run(first[0], first[2](x))))
        expected = last[1](run(last[0], spikes)) + shortcut
    else:
        spikes = first[2](first[1](run(first[0], x)))
        current = last[1](run(last[0], spikes))
        if kind == "plain":
            expected = last[2](current + shortcut)
        else:
            expected = last[2](current) + neuron[0](shortcut)
            assert set(out.unique().tolist()) == {0.0, 1.0, 2.0}
    assert 0.05 < (spikes > 0).double().mean() < 0.95
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_straight_through_shortcut_hands_its_gradient_on_as_it_is(dtype):
    """The same spikes; of the gradient, what comes through the branch and all of what goes around."""
    usual = BLOCK_TYPES["plain"](parts_of(recipe()), 4, 4, 1, False)
    x = (torch.rand(T, B, 4, 8, 8) < 0.5).to(dtype).requires_grad_()
    upstream = torch.randn(T, B, 4, 8, 8)

    def run(forward) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            out = forward(x)
        return out, torch.autograd.grad(out, x, upstream.to(out.dtype))[0]

    def around(x: Tensor) -> Tensor:
        norm, neuron = usual.stages()[-1][1:]
        spikes = norm_neuron(norm, neuron, usual.last_current(x), residual=x.detach())
        return spikes + (x - x.detach())

    spikes, through_the_neuron = run(usual)
    _, expected = run(around)
    usual.straight_through = True
    out, grad = run(usual)
    assert torch.equal(out, spikes)
    assert out.dtype == spikes.dtype
    assert torch.equal(grad, expected)
    assert not torch.allclose(grad, through_the_neuron)


@pytest.mark.parametrize("name", ["resnet8", "net7b"])
def test_straight_through_shortcuts_however_the_net_is_run(name):
    results = {}
    for case, options in {
        "usual": {"shortcut_gradient": "surrogate"},
        "straight": {},
        "packed": {"memory": "packed"},
        "recomputed": {"checkpoint_blocks": True},
        "twin": {"neuron": {"kind": "relu"}},
        "usual twin": {"neuron": {"kind": "relu"}, "shortcut_gradient": "surrogate"},
    }.items():
        model = build(name, **{"shortcut_gradient": "straight_through"} | options)
        currents = backward(lively(model), images())
        results[case] = [currents, *(p.grad for p in model.parameters())]

    def same(a: str, b: str) -> bool:
        return all(map(torch.equal, results[a], results[b]))

    assert torch.equal(results["usual"][0], results["straight"][0])
    assert not same("usual", "straight")
    assert same("straight", "packed")
    assert same("straight", "recomputed")
    assert same("twin", "usual twin")  # which has no surrogate to go around


@pytest.mark.parametrize(
    ("name", "thousands"),
    [
        ("resnet20", 270),
        ("resnet56", 850),
        ("resnet110", 1730),
    ],
)
def test_cifar_resnets_have_the_published_size(name, thousands):
    """He et al. 2015, table 6: 0.27, 0.46, 0.66, 0.85, 1.7 million; 1x1 shortcuts add 2.5 thousand."""
    with torch.device("meta"):
        model = build(name, image_size=32)
    assert count_parameters(model) == pytest.approx(thousands * 1e3 + 2.5e3, abs=6e3)


@pytest.mark.parametrize("block", [*BLOCKS, "preact"])
def test_recomputed_blocks_give_the_same_bits_from_less_memory(block):
    kept, results = {}, []
    for recompute in (False, True):
        norm = "step_bn" if block == "preact" else "tebn"
        model = build(block=block, checkpoint_blocks=recompute, norm=norm)
        kept[recompute] = 0

        def count(saved, recompute=recompute):
            kept[recompute] += saved.numel()
            return saved

        model.on_save = count  # torch shows what is saved as bits to these hooks alone
        with torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved):
            currents = model(images())
        currents.square().sum().backward()
        grads = [parameter.grad for parameter in model.parameters()]
        results.append([currents, *grads, *model.buffers()])
        counts = {int(m.num_batches_tracked) for m in model.modules() if isinstance(m, Norm)}
        assert counts == {T if norm == "step_bn" else 1}  # once for each step, or for the window
        assert all(m.tracks for m in model.modules() if isinstance(m, Norm))
    assert kept[True] < kept[False] / 2
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_blocks_are_recomputed_only_where_backward_follows(monkeypatch):
    calls = []
    monkeypatch.setattr(
        blocks, "recomputed", lambda block, *given, on_save: calls.append(block) or block(*given)
    )
    model = build(checkpoint_blocks=True)
    model(images())
    assert len(calls) == 3
    with torch.no_grad():
        model(images())
    model.set_stateful()  # a membrane would be moved on twice
    model(images())
    model.set_stateful(False)
    model.eval()(images())
    assert len(calls) == 3


def starts(model) -> dict[str, tuple[float, float]]:
    """Weight and bias of the last norm of each block, which are the same for all its channels."""
    found = {}
    for name, block in model.blocks():
        norm = block.stages()[-1][1]
        assert norm.weight.unique().numel() == norm.bias.unique().numel() == 1
        found[name] = (norm.weight[0].item(), norm.bias[0].item())
    return found


@pytest.mark.parametrize("name", ["resnet8", "resnet50"])
def test_blocks_start_at_the_gain_and_bias_of_the_recipe(name):
    assert set(starts(build(name)).values()) == {(1.0, 0.0)}
    assert set(starts(build(name, residual_gain=0.25)).values()) == {(0.25, 0.0)}
    both = build(name, residual_gain=0.0, residual_bias=0.5)
    assert set(starts(both).values()) == {(0.0, 0.5)}
    inner = [block.bn1 for _, block in both.blocks()]
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in inner)


@pytest.mark.parametrize(
    ("kind", "block", "weight"),
    [("ilif", "ms", 3**-0.5), ("ilif", "plain", 3**-0.5), ("lif", "ms", 0)],
)
def test_without_a_key_blocks_of_ilif_start_open(kind, block, weight):
    net = build("resnet8", neuron={"kind": kind}, block=block, residual_gain="auto")
    (gain,) = {gain for gain, _ in starts(net).values()}
    assert gain == pytest.approx(weight)


@pytest.mark.parametrize(
    ("neuron", "steps", "expected"),
    [
        ({"kind": "lif"}, 4, 1 / 2.875),
        ({"kind": "if"}, 4, 0.2),
        ({"kind": "lif", "decay_input": True, "v_threshold": 0.5}, 3, 1 / 2.75),
        ({"kind": "relu"}, 4, 0.0),
    ],
)
def test_the_default_start_has_equal_margins(neuron, steps, expected):
    """A spike of the shortcut lifts h as far above the threshold as silence stays below it in the last step."""
    net = build("resnet8", time_steps=steps, neuron=neuron, residual_gain=0.0, residual_bias="auto")
    ((gain, bias),) = set(starts(net).values())
    assert (gain, bias) == (0.0, pytest.approx(expected))
    if neuron["kind"] == "relu":
        return
    cell = build_neuron(NeuronConfig(**neuron, reset="none"))
    arguments = cell.neuron_arguments()
    silent = 0.0
    for _ in range(steps):
        silent = arguments["decay"] * silent + arguments["gain"] * bias
    above = arguments["gain"] * (1 + bias) - arguments["threshold"]
    assert above == pytest.approx(arguments["threshold"] - silent)


@pytest.mark.parametrize("block", ["plain", "sew"])
@pytest.mark.parametrize(
    "neuron",
    [
        {"kind": "psn"},
        {"kind": "masked_psn", "order": 3},
        {"kind": "sliding_psn", "order": 9, "v_threshold": 0.9},
    ],
    ids=str,
)
def test_blocks_of_parallel_neurons_start_by_passing_spikes_on(neuron, block):
    """With room on either side: the same also where a current is a little off."""
    changes = dict(block=block, connect="and" if block == "sew" else "add")
    net = build("resnet8", neuron=neuron, residual_gain=0.0, residual_bias="auto", **changes)
    (_, first), *_ = net.blocks()
    x = (torch.rand(T, B, 16, 4, 4) < 0.4).float()
    norm = first.stages()[-1][1]
    bias = norm.bias[0].item()
    for off in (0.0, 0.01, -0.01):
        torch.nn.init.constant_(norm.bias, bias + off)
        assert torch.equal(first(x), x)


def test_blocks_of_masked_neurons_fire_at_a_gain_of_one():
    """Weights drawn at random read too little to fire: the later half of 18 layers was silent."""
    net, rates = build("resnet20", neuron={"kind": "masked_psn"}, residual_gain=1.0), []
    for _, block in net.blocks():
        block.stages()[-1][2].on_fire = lambda s: rates.append(float(s.detach().mean()))
    net.train()(torch.randn(B, 3, 8, 8))
    assert len(rates) == 9
    assert min(rates) > 0.01


@pytest.mark.parametrize("connect", ["add", "and", "iand"])
def test_sew_blocks_start_by_passing_spikes_on_however_they_connect(connect):
    net = build("resnet8", block="sew", connect=connect, residual_gain=0.0)
    (_, block), *_ = net.blocks()
    x = (torch.rand(T, B, 16, 4, 4) < 0.4).float()
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("bias", [0.0, 0.25])
@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_that_starts_at_0_passes_its_input_on(kind, bias):
    parts = parts_of(recipe(block=kind))
    block = BLOCK_TYPES[kind](parts, 6, 6, 1, False)
    block.start(0.0, bias if kind == "plain" else 0.0)
    x = (torch.rand(T, B, 6, 4, 4) < 0.4).float()
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("block", ["plain", "sew", "ms"])
def test_drop_path_leaves_out_whole_branches(block, monkeypatch):
    """The image in the middle keeps its branch, twice as strong; the others pass the block as they are."""
    net = lively(build(block=block, width=4, drop_path=0.5)).train()
    assert net.draws
    assert [b.drop for _, b in net.blocks()] == pytest.approx([0.5 / 3, 1 / 3, 0.5])
    one = net.blocks()[0][1]  # whose shape is its shortcut's
    kept = torch.tensor([0.0, 2.0, 0.0]).view(1, 3, 1, 1, 1)
    monkeypatch.setattr(blocks, "kept_paths", lambda x, drop: kept.to(x))
    spikes = (torch.rand(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(3)) < 0.3).float()
    found = one(spikes)
    (conv1, norm1, neuron1), (conv2, norm2, neuron2) = one.stages()
    if block == "ms":
        inner = neuron2(norm1(folded(conv1, neuron1(spikes))))
        expected = norm2(folded(conv2, inner)) * kept + spikes
    else:
        branch = norm2(folded(conv2, neuron1(norm1(folded(conv1, spikes)))))
        if block == "sew":
            expected = neuron2(branch) * kept + spikes
        else:
            expected = neuron2(branch * kept + spikes)
    torch.testing.assert_close(found, expected)
    assert not torch.equal(found[:, 1], spikes[:, 1])
    monkeypatch.setattr(blocks, "kept_paths", None)  # is not asked in eval mode
    one.eval()(spikes)


def test_paths_are_dropped_for_images_at_all_steps():
    kept = kept_paths(torch.zeros(4, 2000, 3, 2, 2), 0.25)
    assert kept.shape == (1, 2000, 1, 1, 1)
    assert kept.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert kept.mean().item() == pytest.approx(1.0, abs=0.05)
