"""Networks: shapes, torchvision's parameters and outputs, the fused seam, streaming."""

import copy
import dataclasses

import pytest
import torch
import torchvision
from torch import Tensor, nn

from spiketriton.config import DataConfig, ModelConfig, NeuronConfig, Recipe
from spiketriton.errors import UserError
from spiketriton.models import Network, build_model, count_parameters
from spiketriton.models.layers import Parts
from spiketriton.models.resnet import ARCHITECTURES
from spiketriton.models.resnet import BLOCKS as BLOCK_TYPES
from spiketriton.neurons import Norm, SpikingNeuron

BLOCKS = ("plain", "sew", "ms")
NORMS = ("bn", "tdbn", "tebn", "none")
LARGE = [name for name, architecture in ARCHITECTURES.items() if architecture.width == 64]
PLAIN_NETS = ("plain", "mlp")
EVERY_BLOCK = [{"block": block} for block in BLOCKS]
SHALLOW_PLAIN = {"name": "plain", "depth": 4}
SHALLOW_MLP = {"name": "mlp", "depth": 3}
T, B, CLASSES = 2, 3, 10


def recipe(name: str = "resnet8", *, time_steps: int = T, neuron: dict | None = None, **model):
    return Recipe(
        name="test",
        time_steps=time_steps,
        data=DataConfig(name="synthetic"),
        model=ModelConfig(name=name, **model),
        neuron=NeuronConfig(**(neuron or {})),
    )


def build(name: str = "resnet8", *, channels: int = 3, image_size: int = 16, seed=0, **options):
    torch.manual_seed(seed)
    return build_model(
        recipe(name, **options), classes=CLASSES, channels=channels, image_size=image_size
    )


@torch.no_grad()
def lively(model: Network) -> Network:
    """Biases under which narrow, untrained layers fire at every depth: no test is vacuous."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.fill_(0.5)
    return model


def images(channels: int = 3, size: int = 16, batch: int = B, seed: int = 1) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


def backward(model: Network, x: Tensor) -> Tensor:
    """A loss in which every class and step differs, so that no gradient is zero by symmetry."""
    currents = model(x)
    weights = torch.randn(currents.shape, generator=torch.Generator().manual_seed(2))
    (currents * weights).sum().backward()
    return currents


def assert_healthy(model: Network, currents: Tensor, steps: int) -> None:
    assert currents.shape == (steps, B, CLASSES)
    assert currents.dtype == torch.float32
    assert currents.isfinite().all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("kind", ["lif", "relu"])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_resnet_trains(name, block, kind):
    model = build(name, block=block, width=2, neuron={"kind": kind})
    assert_healthy(model, backward(model, images()), steps=T if kind == "lif" else 1)
    blocks, bottleneck, _ = ARCHITECTURES[name]
    layers = sum(blocks) * (3 if bottleneck else 2) + 1
    if block == "sew":  # and a neuron in each shortcut that changes shape
        layers += len(blocks) - (0 if bottleneck else 1)
    assert len(model.spiking_layers()) == (layers if kind == "lif" else 0)


@pytest.mark.parametrize("kind", ["if", "plif", "relu"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "options",
    [
        *EVERY_BLOCK,
        {"name": "resnet18", "stem": "imagenet", "block": "ms"},
        {"name": "plain", "depth": 7},
        SHALLOW_MLP,
    ],
    ids=str,
)
def test_every_norm_and_neuron_trains(options, norm, kind):
    model = build(**options, norm=norm, width=4, neuron={"kind": kind})
    assert_healthy(model, backward(model, images()), steps=1 if kind == "relu" else T)
    if kind == "plif":
        leaks = [parameter for name, parameter in model.named_parameters() if name.endswith(".w")]
        assert len(leaks) == len(model.spiking_layers()) > 0
        assert sum(leak.grad.abs() > 0 for leak in leaks) > len(leaks) // 2


@pytest.mark.parametrize(
    ("options", "before_a_sum"),
    [
        ({"block": "plain"}, ["layer3.0.downsample.1", "layer3.0.bn2"]),
        ({"block": "ms"}, ["layer3.0.downsample.1", "layer3.0.bn2"]),
        ({"block": "sew"}, []),
        (SHALLOW_MLP, []),
    ],
)
def test_tdbn_gives_the_sum_of_currents_the_width_of_the_threshold(options, before_a_sum):
    """Zheng et al. 2021: v_threshold, over sqrt(2) for each of two terms; the ANN twin has none."""
    model = build(**options, norm="tdbn", neuron={"v_threshold": 2.0})
    scales = {name: m.scale for name, m in model.named_modules() if isinstance(m, Norm)}
    reduced = [name for name, scale in scales.items() if scale == pytest.approx(2 / 2**0.5)]
    assert [name for name in reduced if name.startswith("layer3")] == before_a_sum
    assert all(scale == 2.0 for name, scale in scales.items() if name not in reduced)
    twin = build(**options, norm="tdbn", neuron={"kind": "relu", "v_threshold": 2.0})
    assert {m.scale for m in twin.modules() if isinstance(m, Norm)} == {1.0}


@pytest.mark.parametrize("name", PLAIN_NETS)
@pytest.mark.parametrize("depth", [1, 2, 3, 20])
def test_depth_is_the_number_of_spiking_layers(name, depth):
    model = build(name, depth=depth, width=4, channels=1)
    assert model(images(channels=1)).shape == (T, B, CLASSES)
    assert len(model.spiking_layers()) == depth
    if name == "plain":
        strides = [m.stride[0] for m in model.modules() if isinstance(m, nn.Conv2d)]
        halved = [i for i, stride in enumerate(strides) if stride == 2]
        assert halved == {1: [], 2: [1], 3: [1, 2], 20: [6, 13]}[depth]


# -- torchvision ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["relu", "lif"])
@pytest.mark.parametrize("name", LARGE)
def test_parameters_are_torchvisions(name, kind):
    with torch.device("meta"):
        model = build(name, image_size=224, neuron={"kind": kind})
        twin = getattr(torchvision.models, name)(num_classes=CLASSES)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert shapes == {key: value.shape for key, value in twin.state_dict().items()}
    assert count_parameters(model) == sum(p.numel() for p in twin.parameters())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_ann_twin_computes_what_torchvision_computes(name):
    torch.manual_seed(0)
    twin = getattr(torchvision.models, name)(num_classes=CLASSES)
    x = images(size=64)
    with torch.no_grad():
        for _ in range(20):  # running statistics under which activity reaches the classifier
            twin(x)
        model = build(name, stem="imagenet", neuron={"kind": "relu"})
        model.load_state_dict(twin.state_dict())
        expected = twin.eval()(x)
        assert expected.std(0).mean() > 0.1  # and the images can be told apart
        torch.testing.assert_close(model.eval()(x), expected.unsqueeze(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_compute_their_equations(kind, fused):
    parts = dataclasses.replace(Parts.of(recipe(neuron={"kind": "if"})), fused=fused)
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


@pytest.mark.parametrize(
    ("name", "thousands"),
    [("resnet20", 270), ("resnet32", 460), ("resnet44", 660), ("resnet56", 850)],
)
def test_cifar_resnets_have_the_published_size(name, thousands):
    """He et al. 2015, table 6: 0.27, 0.46, 0.66, 0.85 million; 1x1 shortcuts add 2.5 thousand."""
    with torch.device("meta"):
        model = build(name, image_size=32)
    assert count_parameters(model) == pytest.approx(thousands * 1e3 + 2.5e3, abs=6e3)


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


def test_weights_start_as_torchvisions_do():
    model = build("resnet18")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), name
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    biased = build("plain", depth=2, norm="none")
    assert all((m.bias == 0).all() for m in biased.modules() if isinstance(m, nn.Conv2d))


# -- time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("options", [*EVERY_BLOCK, SHALLOW_MLP], ids=str)
def test_the_first_layer_runs_once(options, fused):
    model = build(**options, fused=fused, time_steps=5)
    calls: dict[str, list[int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(
                lambda _, args, out, name=name: calls.setdefault(name, []).append(len(out))
            )
    model(images())
    first, *rest = calls
    assert first in ("conv1", "layers.0.weights")
    assert calls[first] == [B]
    assert all(calls[name] == [5 * B] for name in rest if name != "fc")


@pytest.mark.parametrize("options", [*EVERY_BLOCK, SHALLOW_PLAIN], ids=str)
def test_spiking_layers_are_listed_in_forward_order(options):
    model = build(**options, fused=False)
    fired: list[SpikingNeuron] = []
    for module in model.modules():
        if isinstance(module, SpikingNeuron):
            module.register_forward_hook(lambda module, *_: fired.append(module))
    model(images())
    assert [neuron for _, neuron in model.spiking_layers()] == fired
    assert all(model.get_submodule(name) is neuron for name, neuron in model.spiking_layers())


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("norm", NORMS)
def test_a_streamed_window_equals_the_whole(block, norm):
    model = lively(build(block=block, norm=norm, width=4, time_steps=6, neuron={"reset": "soft"}))
    if norm == "tebn":
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("step_gain"):
                    parameter.copy_(torch.linspace(0.5, 1.5, 6))
    x = images()
    model(x)  # statistics
    model.eval()
    with torch.no_grad():
        whole = model(x)
        assert not torch.equal(whole[0], whole[5])
        model.set_stateful()
        for lengths in ([1, 2, 3], [6]):
            streamed = torch.cat([model(x, time_steps=steps) for steps in lengths])
            torch.testing.assert_close(streamed, whole, rtol=1e-5, atol=1e-6)
            model.reset()
        model.set_stateful(False)
        assert torch.equal(model(x), whole)
        assert torch.equal(model(x), whole)


def test_another_number_of_steps_than_the_recipes():
    model = build()
    model(images())
    model.eval()
    longer = model(images(), time_steps=5)
    assert longer.shape == (5, B, CLASSES)
    assert torch.equal(longer[:T], model(images()))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: build()(images(channels=1)), r"\(3, 1, 16, 16\).*\[B, 3, H, W\]"),
        (lambda: build()(images()[0]), r"\(3, 16, 16\)"),
        (lambda: build()(images(), time_steps=0), "time_steps 0.*1 or more"),
        (lambda: build(neuron={"kind": "relu"})(images(), time_steps=2), "time_steps 2.*no time"),
        (lambda: build(norm="tebn")(images(), time_steps=3), "gains for 2 time steps"),
    ],
)
def test_calls_that_do_not_fit_are_refused(call, words):
    with pytest.raises(UserError, match=words):
        call()


# -- one net, three ways -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lif", "plif"])
@pytest.mark.parametrize("norm", ["bn", "tdbn", "tebn"])
@pytest.mark.parametrize("options", [*EVERY_BLOCK, SHALLOW_MLP], ids=str)
def test_fused_and_unfused_give_the_same(options, norm, kind):
    """In float64, where a spike would flip only for currents that meet the threshold exactly."""
    neuron = {"kind": kind, "decay_input": kind == "plif"}
    fused = lively(build(**options, norm=norm, width=4, neuron=neuron, time_steps=3).double())
    unfused = build(
        **options, norm=norm, width=4, neuron=neuron, time_steps=3, fused=False
    ).double()
    unfused.load_state_dict(fused.state_dict())
    x = images().double()
    currents = [backward(model, x) for model in (fused, unfused)]
    torch.testing.assert_close(*currents, rtol=1e-6, atol=1e-9)
    for (name, p), q in zip(fused.named_parameters(), unfused.parameters(), strict=True):
        scale = q.grad.abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-7 * scale, msg=name)
    for (name, p), q in zip(fused.named_buffers(), unfused.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(fused.eval()(x), unfused.eval()(x), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("options", [*EVERY_BLOCK, SHALLOW_MLP], ids=str)
def test_checkpoints_move_between_the_fused_the_unfused_and_the_twin(options, norm):
    fused = build(**options, norm=norm, width=4)
    unfused = build(**options, norm=norm, width=4, fused=False, seed=1)
    twin = build(**options, norm=norm, width=4, neuron={"kind": "relu"}, seed=2)
    unfused.load_state_dict(fused.state_dict())
    shared = {k: v for k, v in fused.state_dict().items() if not k.endswith("step_gain")}
    twin.load_state_dict(shared)  # strict: an ANN has no steps, all else is the same
    assert torch.equal(twin.fc.weight, fused.fc.weight)


def test_only_the_fused_net_uses_the_fused_operation(monkeypatch):
    calls = []
    original = SpikingNeuron.fused_norm
    monkeypatch.setattr(
        SpikingNeuron,
        "fused_norm",
        lambda self, *args, **kwargs: calls.append(self) or original(self, *args, **kwargs),
    )
    model = build()
    model(images())
    # the stem's constant current is normalised before its neuron, everything else in one operation
    assert calls == [neuron for _, neuron in model.spiking_layers()][1:]
    calls.clear()
    build(fused=False)(images())
    build(norm="none")(images())
    build(neuron={"kind": "relu"})(images())
    assert calls == []


# -- layouts and dtypes --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lif", "relu"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("norm", ["bn", "tebn", "none"])
@pytest.mark.parametrize("block", BLOCKS)
def test_channels_last_stays_channels_last(block, norm, fused, kind):
    options = {"block": block, "norm": norm, "fused": fused, "neuron": {"kind": kind}, "width": 4}
    model = lively(build("resnet18", stem="imagenet", **options))
    plain_format = copy.deepcopy(model)
    model = model.to(memory_format=torch.channels_last)
    seen = []
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    for conv in convs:
        conv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for conv in convs[1:]:  # autograd sums the steps of the constant first current into NCHW
        conv.register_full_backward_hook(lambda _, grads_in, grads_out: seen.append(grads_out[0]))
    x = images(size=64)
    currents = backward(model, x.to(memory_format=torch.channels_last))
    assert len(seen) == 2 * len(convs) - 1
    for tensor in seen:
        assert tensor.is_contiguous(memory_format=torch.channels_last), tensor.stride()
    torch.testing.assert_close(currents, plain_format(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "options",
    [*({"block": b, "norm": n} for b in BLOCKS for n in NORMS), SHALLOW_MLP],
    ids=str,
)
def test_bf16_autocast_trains(options, fused):
    model = lively(build(**options, fused=fused, width=4, neuron={"kind": "plif"}))
    inputs = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and name != "fc":
            module.register_forward_hook(lambda _, args, out: inputs.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        currents = backward(model, images())
    assert_healthy(model, currents, steps=T)
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())
    assert set(inputs) == {torch.bfloat16}


@pytest.mark.parametrize("options", [{"norm": "tebn"}, {"block": "sew"}, {"block": "ms"}], ids=str)
def test_the_whole_net_compiles_to_one_graph(options):
    model = build(**options, width=2, neuron={"kind": "plif", "decay_input": True})
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    currents = backward(model, images())
    torch.testing.assert_close(backward(compiled, images()), currents)
    for p, q in zip(compiled.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("block", ["plain", "sew", "ms"])
def test_packed_memory_gives_the_same_gradients_from_fewer_bytes(block, fused):
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    results = {}
    for memory in ("standard", "packed"):
        chosen = ModelConfig(name="resnet8", block=block, memory=memory, fused=fused)
        torch.manual_seed(0)
        net = build_model(
            dataclasses.replace(recipe(), model=chosen), classes=CLASSES, channels=3, image_size=16
        )
        kept = {}

        def keep(saved, kept=kept):
            kept.setdefault(saved.data_ptr(), saved)
            return saved

        net.on_save = keep
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
            currents = net(images)
        nn.functional.cross_entropy(currents.mean(0), labels).backward()
        saved = sum(
            t.untyped_storage().nbytes() for t in kept.values() if not isinstance(t, nn.Parameter)
        )
        results[memory] = saved, currents.detach(), [p.grad for p in net.parameters()]
    (dense, currents, grads), (packed, packed_currents, packed_grads) = (
        results["standard"],
        results["packed"],
    )
    assert torch.equal(currents, packed_currents)
    assert all(torch.equal(a, b) for a, b in zip(grads, packed_grads, strict=True))
    assert (
        packed < (0.9 if block == "sew" else 0.75) * dense
    )  # SEW's sums are whole numbers, kept as they are


def test_packed_memory_forgets_spikes_with_their_tensors():
    from spiketriton.models import memory

    net = build_model(
        dataclasses.replace(recipe(), model=ModelConfig(name="resnet8", memory="packed")),
        classes=CLASSES, channels=3, image_size=16,
    )  # fmt: skip
    currents = net(torch.randn(2, 3, 16, 16))
    assert not memory._spikes
    assert memory.PackedSpikes.open == 0
    currents.sum().backward()
