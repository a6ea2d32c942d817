"""VGGSNN and 7B-Net, and how every network sees frames: shape by shape, against networks written anew."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spiketriton.errors import UserError
from spiketriton.models import count_parameters
from spiketriton.models.graph import graph_of
from spiketriton.neurons import Norm
from spiketriton_kernels import multistep_lif_reference
from tests.covering import each
from tests.models.support import BLOCKS, CLASSES, NORMS, B, build, lively

STEPS, SIDE = 5, 16
NETS = [
    {"name": "vggsnn", "width": 4},
    {"name": "vgg11", "width": 4},
    {"name": "csnn", "width": 4},
    {"name": "resnet19", "width": 4},
    *({"name": "net7b", "width": 6, "block": block} for block in BLOCKS),
    {"name": "resnet8", "width": 4, "block": "sew"},
    {"name": "resnet18", "width": 4, "stem": "imagenet", "block": "ms"},
    {"name": "resnet50", "width": 4},
    {"name": "resnet18", "width": 4, "block": "preact", "stem": "strided"},
    {"name": "plain", "depth": 3},
    {"name": "mlp", "depth": 2},
]
every_net = pytest.mark.parametrize("options", NETS, ids=lambda o: " ".join(map(str, o.values())))
pooled_net = pytest.mark.parametrize(
    "options", NETS[:7], ids=lambda o: " ".join(map(str, o.values()))
)


def frames(steps=STEPS, batch=B, side=SIDE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 4, (steps, batch, 2, side, side), generator=generator).float().log1p()


def net(**options):
    return build(channels=2, image_size=SIDE, **options)


def settled(model, side=SIDE):
    """In eval mode, with running statistics of frames: layers fire for some inputs and not others."""
    norms = [module for module in model.modules() if isinstance(module, Norm)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(frames(batch=8, side=side, seed=3))
    return model.eval()


@every_net
def test_frames_are_seen_one_at_each_step(options):
    model = settled(net(**options))
    shown = frames()
    currents = model(shown)
    assert currents.shape == (STEPS, B, CLASSES)
    constant = model(shown[2], time_steps=STEPS)
    torch.testing.assert_close(model(shown[2].expand(STEPS, -1, -1, -1, -1)), constant)
    # seen at the first neuron: the last ones of an untrained net may always fire
    neuron, fired = model.spiking_layers()[0][1], []
    neuron.on_fire = fired.append
    model(shown)
    model(shown.flip(0))
    assert not torch.equal(*fired)
    later = shown.clone()
    later[3:] = 0
    torch.testing.assert_close(model(later)[:3], currents[:3])


@every_net
def test_the_first_layer_runs_once_for_an_image_and_at_every_step_for_frames(options):
    model = net(**options, fused=False)
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    seen = []
    first.register_forward_hook(lambda _, args, out: seen.append(len(out)))
    model(frames())
    model(frames()[0], time_steps=STEPS)
    assert seen == [STEPS * B, B]


@every_net
def test_streamed_frames_equal_the_whole(options):
    model = settled(net(**options))
    shown = frames(6)
    whole = model(shown)
    model.set_stateful(True)
    parts = [model(shown[start:end]) for start, end in ((0, 1), (1, 4), (4, 6))]
    model.set_stateful(False)
    torch.testing.assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize(("options", "norm"), each(NETS, NORMS))
def test_training_reaches_every_weight(options, norm):
    model = lively(net(**options, norm=norm, time_steps=STEPS)).train()
    currents = model(frames())
    (currents * torch.randn_like(currents)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pooled_net
def test_fused_and_unfused_agree(options):
    fused, apart = (lively(net(**options, fused=fused)) for fused in (True, False))
    apart.load_state_dict(fused.state_dict())
    torch.testing.assert_close(fused(frames()), apart(frames()), rtol=1e-4, atol=1e-4)


@every_net
def test_the_ann_twin_answers_each_frame_by_itself(options):
    model = settled(net(**options, neuron={"kind": "relu"}))
    shown = frames()
    whole = model(shown)
    torch.testing.assert_close(whole, torch.stack([model(frame)[0] for frame in shown]))
    with pytest.raises(UserError, match="an ANN has no time"):
        model(shown[0], time_steps=2)


@pytest.mark.parametrize(
    ("shown", "options", "words"),
    [
        (frames()[:, :, :1], {}, r"frames \[T, B, 2, H, W\]"),
        (frames()[:0], {}, "0 frames"),
        (frames()[None], {}, r"accepted: images \[B, 2, H, W\]"),
    ],
)
def test_frames_that_do_not_fit_are_refused(shown, options, words):
    with pytest.raises(UserError, match=words):
        net()(shown, **options)


def test_another_number_of_steps_than_frames_is_refused():
    with pytest.raises(UserError, match="5 frames are shown in as many time steps, not in 4"):
        net()(frames(), time_steps=4)


def lif(current):
    """LIF of tau 2 with hard reset, by its definition."""
    return multistep_lif_reference(current, decay=0.5)


def layer(conv, norm, x):
    y = norm(conv(x.flatten(0, 1)).unflatten(0, x.shape[:2]))
    return lif(y)


def pooled(pool, x):
    return pool(x.flatten(0, 1), 2).unflatten(0, x.shape[:2])


def test_vggsnn_is_the_papers():
    """Deng et al. 2022: 64, 128, pool, 256, 256, pool, 512, 512, pool, 512, 512, pool, linear."""
    model = build("vggsnn", channels=2, image_size=48)
    widths = [one.weights.out_channels for one in model.layers]
    assert widths == [64, 128, 256, 256, 512, 512, 512, 512]
    assert (model.fc.in_features, model.fc.out_features) == (512 * 3 * 3, CLASSES)
    convs = sum(9 * a * b for a, b in zip([2, *widths], widths, strict=False))
    assert count_parameters(model) == convs + 2 * sum(widths) + 4608 * CLASSES + CLASSES

    model = settled(net(name="vggsnn", width=4))
    x = shown = frames()
    for number, one in enumerate(model.layers):
        x = layer(one.weights, one.bn, x)
        if number % 2:
            x = pooled(F.avg_pool2d, x)
    torch.testing.assert_close(model(shown), model.fc(x.flatten(2)))


@pytest.mark.parametrize("side", [128, 48, 20])
def test_net7b_is_the_papers(side):
    """Fang et al. 2021: a stem of 32 channels, then 7 times a SEW block and a max-pool."""
    model = build("net7b", channels=2, image_size=side, block="sew")
    convs = 2 * 32 + 14 * 9 * 32 * 32
    left = side
    for _ in range(7):
        left = max(1, left // 2)
    assert left == model.fc.in_features // 32 == 1
    assert count_parameters(model) == convs + 15 * 64 + 32 * CLASSES + CLASSES

    model = build("net7b", channels=2, image_size=side, block="sew", width=4)
    model = settled(model, side)
    shown = frames(side=side)
    x = layer(model.conv1, model.bn1, shown)
    for block in model.layers:
        inner = layer(block.conv1, block.bn1, x)
        x = layer(block.conv2, block.bn2, inner) + x
        if x.shape[-1] > 1:
            x = pooled(F.max_pool2d, x)
    torch.testing.assert_close(model(shown), model.fc(x.flatten(2)))


def test_too_small_images_are_refused():
    with pytest.raises(UserError, match=r"data\.image_size = 15 is too small for vggsnn"):
        build("vggsnn", image_size=15)


def test_blocks_of_net7b_start_as_asked():
    model = net(name="net7b", block="sew", residual_gain=0)
    norms = [block.bn2 for block in model.layers]
    assert all((norm.weight == 0).all() for norm in norms)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # by hand: 9 C C' of a convolution (C C' of a shortcut's), 2 C' of a norm, linear layers with biases
        ("vgg11", 9_228_362),
        ("vgg16", 14_724_042),
        ("resnet19", 12_697_994),
        ("csnn", 70_113_034),
    ],
)
def test_the_networks_of_the_cifar_tables_have_the_published_sizes(name, parameters):
    with torch.device("meta"):
        model = build(name, image_size=32)
    assert count_parameters(model) == parameters


@pytest.mark.parametrize("connect", ["and", "iand"])
def test_sew_blocks_join_spikes_by_and(connect):
    model = lively(build("resnet8", block="sew", connect=connect, width=4, time_steps=STEPS))
    block = model.blocks()[1][1]
    spikes = torch.randint(0, 2, (STEPS, B, 4 * 2, 8, 8)).float()[
        :, :, : block.stages()[0][0].in_channels
    ]
    fired = []
    block.stages()[-1][2].on_fire = fired.append
    if block.downsample is not None:
        block.downsample[2].on_fire = fired.append
    out = block(spikes)
    *shortcut, s = fired if block.downsample is None else (fired[0], fired[1])
    other = shortcut[0] if shortcut else spikes
    assert torch.equal(out, s * other if connect == "and" else (1 - s) * other)
    assert set(out.unique().tolist()) <= {0.0, 1.0}
    with pytest.raises(UserError, match=f'model.connect = "{connect}" is no sum'):
        graph_of(model)
