"""What holds for every network that a recipe can name."""

import copy
import itertools

import pytest
import torch
from torch import nn

from spiketriton.models.agreement import counted_graph
from spiketriton.models.graph import channels_of, layers, shapes_of
from spiketriton.models.memory import PackedSpikes
from spiketriton.system.errors import UserError
from tests.covering import each, pairwise
from tests.models.support import (
    CLASSES,
    NORMS,
    B,
    T,
    backward,
    build,
    frames,
    images,
    lively,
    norms_of,
)

NETS = {
    "plain": {"width": 4},
    "sew": {"block": "sew", "width": 4},
    "ms": {"block": "ms", "width": 4},
    "preact": {"block": "preact", "width": 4},
    "stem": {"name": "resnet18", "stem": "imagenet", "block": "ms", "width": 4},
    "bottleneck": {"name": "resnet50", "block": "sew", "width": 2},
    "ms bottleneck": {"name": "resnet50", "block": "ms", "width": 2},
    "shortcuts of spikes": {"name": "resnet50", "block": "ms", "shortcut": "spikes", "width": 2},
    "strided": {"name": "resnet18", "block": "preact", "stem": "strided", "width": 4},
    "resnet19": {"name": "resnet19", "width": 4},
    "net7b": {"name": "net7b", "block": "sew", "width": 6},
    "net7b ms": {"name": "net7b", "block": "ms", "width": 6},
    "vggsnn": {"name": "vggsnn", "width": 4},
    "vgg11": {"name": "vgg11", "width": 4},
    "csnn": {"name": "csnn", "width": 4},
    "plain net": {"name": "plain", "depth": 4},
    "mlp": {"name": "mlp", "depth": 3},
}
every_net = pytest.mark.parametrize("net", NETS)


def settled(model):
    """In eval mode, with running statistics of frames: layers fire for some inputs and not others."""
    for norm in norms_of(model).values():
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(frames(3, batch=8, seed=3))
    return model.eval()


@pytest.mark.parametrize(
    ("net", "norm", "kind", "dtype", "sees"),
    each(
        list(NETS) * 2,
        ("bn", "tdbn", "tebn", "none", "step_bn"),
        ("lif", "plif", "relu"),
        (torch.float32, torch.bfloat16, torch.float32, torch.bfloat16, torch.float32, torch.float32, torch.float32),
        ("images", "frames", "frames"),
    ),
)  # fmt: skip
def test_training_reaches_every_weight(net, norm, kind, dtype, sees):
    model = lively(build(**NETS[net], norm=norm, neuron={"kind": kind})).train()
    seen = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and name != "fc":
            module.register_forward_hook(lambda _, args, out: seen.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        currents = backward(model, images() if sees == "images" else frames(T))
    assert set(seen) == {dtype}
    assert currents.shape == (1 if kind == "relu" and sees == "images" else T, B, CLASSES)
    assert currents.dtype == torch.float32
    assert currents.isfinite().all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("net", "norm", "time_steps", "neuron"),
    each(
        list(NETS),
        ("bn", "tdbn", "tebn"),
        (3, 3, 18, 1),
        (
            {"kind": "lif"},
            {"kind": "plif", "decay_input": True},
            {"reset": "none"},
            {"reset": "soft", "detach_reset": False},
            {"reset": "hard"},
        ),
    ),
)
def test_fused_and_unfused_give_the_same(net, norm, time_steps, neuron):
    """In float64, where a spike would flip only for currents that meet the threshold exactly."""
    options = NETS[net] | {"norm": norm, "neuron": neuron, "time_steps": time_steps}
    fused, unfused = lively(build(**options).double()), build(**options, fused=False).double()
    unfused.load_state_dict(fused.state_dict())
    x = images(batch=2).double()
    torch.testing.assert_close(*(backward(model, x) for model in (fused, unfused)))
    sizes = {name: q.grad.abs().max().item() for name, q in unfused.named_parameters()}
    least = 1e-4 * max(
        sizes.values()
    )  # layers that see one pixel, of which batch norm leaves little
    assert sum(size > 0 for size in sizes.values()) > 0.6 * len(sizes)
    for name, p in fused.named_parameters():
        grad, atol = unfused.get_parameter(name).grad, 1e-6 * max(sizes[name], least)
        torch.testing.assert_close(p.grad, grad, rtol=1e-6, atol=atol, msg=name)
    for (name, p), q in zip(fused.named_buffers(), unfused.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(fused.eval()(x), unfused.eval()(x), rtol=1e-6, atol=1e-9)


@every_net
def test_frames_are_seen_one_at_each_step_and_an_image_at_all(net):
    """Its first layer runs once for an image, and at every step for frames."""
    model, shown, ran = settled(build(**NETS[net])), frames(6), []
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    first.register_forward_hook(lambda _, args, out: ran.append(len(out)))
    currents, constant = model(shown), model(shown[2], time_steps=6)
    assert ran == [6 * B, B]
    assert currents.shape == (6, B, CLASSES)
    torch.testing.assert_close(model(shown[2].expand(6, -1, -1, -1, -1)), constant)
    # seen at the first neuron: the last ones of an untrained net may always fire
    neuron, fired = model.spiking_layers()[0][1], []
    neuron.on_fire = fired.append
    model(shown)
    model(shown.flip(0))
    assert not torch.equal(*fired)
    later = shown.clone()
    later[3:] = 0
    torch.testing.assert_close(model(later)[:3], currents[:3])


@pytest.mark.parametrize(
    ("net", "norm", "sees"), each(list(NETS) + ["plain"], NORMS, ("image", "frames", "frames"))
)
def test_a_streamed_window_equals_the_whole(net, norm, sees):
    model = lively(build(**NETS[net], norm=norm, time_steps=6, neuron={"reset": "soft"}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("step_gain"):
                parameter.copy_(torch.linspace(0.5, 1.5, 6))
    shown = frames(6)
    settled(model)
    with torch.no_grad():
        whole = model(shown) if sees == "frames" else model(shown[0])
        model.set_stateful()
        for cuts in ((0, 1, 4, 6), (0, 6)):
            parts = [
                model(shown[a:b]) if sees == "frames" else model(shown[0], time_steps=b - a)
                for a, b in itertools.pairwise(cuts)
            ]
            torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-6)
            model.reset()
        model.set_stateful(False)
        for _ in range(2):
            assert torch.equal(model(shown) if sees == "frames" else model(shown[0]), whole)


@every_net
def test_the_ann_twin_takes_its_weights_and_answers_each_frame_by_itself(net):
    spiking, twin = build(**NETS[net]), build(**NETS[net], neuron={"kind": "relu"}, seed=1)
    twin.load_state_dict(spiking.state_dict())
    assert torch.equal(twin.fc.weight, spiking.fc.weight)
    shown = frames(4)
    whole = settled(twin)(shown)
    torch.testing.assert_close(whole, torch.stack([twin(frame)[0] for frame in shown]))
    with pytest.raises(UserError, match="an ANN has no time"):
        twin(shown[0], time_steps=2)


@torch.no_grad()
@pytest.mark.parametrize(
    ("net", "norm", "kind"), each(list(NETS), ("bn", "tdbn", "none"), ("lif", "lif", "relu", "lif"))
)
def test_the_graph_computes_the_network_and_knows_its_shapes(net, norm, kind):
    model = lively(build(**NETS[net], norm=norm, neuron={"kind": kind}, channels=2))
    x = images(channels=2)
    model(x)  # statistics
    nodes = counted_graph(model.eval(), x)  # which compares their answers
    found = {}
    for node in nodes.values():
        if node.module is not None:
            node.module.register_forward_hook(
                lambda _, args, out, name=node.name: found.update({name: tuple(out.shape[-3:])})
            )
    model(x)
    shapes = shapes_of(nodes, (2, 16, 16))
    for node in nodes.values():
        if node.kind in ("weights", "maxpool", "avgpool"):
            wide = len(shapes[node.name])
            assert found[node.name][-wide:] == shapes[node.name]
        if node.kind not in ("input", "flatten"):
            assert channels_of(nodes, node) == shapes[node.name][0]
    assert shapes["fc"] == (CLASSES,)
    if kind == "lif":
        names = [name for name, _ in model.spiking_layers()]
        assert [node.name for node in layers(nodes, "neuron")] == names


@pytest.mark.parametrize(
    ("block", "norm", "fused", "kind"),
    pairwise(["plain", "sew", "ms"], ["bn", "tebn", "none"], [True, False], ["lif", "relu"]),
)
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


@pytest.mark.parametrize(
    ("block", "change", "fused"),
    [
        *pairwise(["plain", "sew", "ms"], ["memory"], [True, False]),
        *((block, "checkpoint_blocks", True) for block in ("plain", "sew", "ms", "preact")),
        ("ms of spikes", "memory", True),
        ("ms of spikes", "checkpoint_blocks", True),
    ],
)
def test_packed_and_recomputed_give_the_same_bits_from_less_memory(
    monkeypatch, block, change, fused
):
    # by a matrix unit, what is kept without bits takes half as much
    monkeypatch.setattr("spiketriton_kernels.convolutions.tiles.available", lambda: False)
    runs, kept = [], []
    block, _, reads = block.partition(" of ")
    norm = "step_bn" if block == "preact" else "bn" if change == "memory" else "tebn"
    for options in ({}, {change: "packed" if change == "memory" else True}):
        around = {"shortcut_gradient": "straight_through"} if block == "plain" else {}
        around |= {"shortcut": reads} if reads else {}
        model = build(block=block, norm=norm, fused=fused, **around, **options)
        saved = {}

        def keep(tensor, saved=saved):
            if not isinstance(tensor, nn.Parameter):
                saved.setdefault(tensor.data_ptr(), tensor)
            return tensor

        model.on_save = keep  # torch shows what is saved as bits to these hooks alone
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            currents = model(images(batch=4))
        assert PackedSpikes.open == 0
        currents.square().sum().backward()
        runs.append([currents, *(p.grad for p in model.parameters()), *model.buffers()])
        kept.append(sum(tensor.untyped_storage().nbytes() for tensor in saved.values()))
        counts = {int(norm.num_batches_tracked) for norm in norms_of(model).values()}
        assert counts == {T if norm == "step_bn" else 1}  # once for each step, or for the window
        assert all(norm.tracks for norm in norms_of(model).values())
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    # SEW's sums are whole numbers, kept as they are
    share = 0.5 if change != "memory" else 0.9 if block == "sew" else 0.75
    assert kept[1] < share * kept[0]


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
