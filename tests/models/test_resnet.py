"""ResNets: torchvision's parameters and outputs, published sizes, and stems."""

from itertools import pairwise as neighbours

import pytest
import torch
import torchvision

from spiketriton.models import count_parameters
from spiketriton.models.resnet import ARCHITECTURES, pixel_warning
from spiketriton.system.errors import warn_once
from tests.models.support import CLASSES, B, T, build, frames, images

LARGE = [name for name, architecture in ARCHITECTURES.items() if architecture.width == 64]


def test_a_name_says_how_many_layers_have_weights():
    for name, (blocks, bottleneck, _) in ARCHITECTURES.items():
        layers = sum(blocks) * (3 if bottleneck else 2) + 2
        assert (
            name == f"resnet{layers + (name == 'resnet19')}"
        )  # whose classifier has a hidden layer


@pytest.mark.parametrize(
    ("name", "block"),
    [
        (name, block)  # two blocks each, and each block with half of them
        for i, name in enumerate(ARCHITECTURES)
        for j, block in enumerate(["plain", "sew", "ms", "preact"])
        if i % 2 == j % 2
    ],
)
def test_every_layer_of_every_resnet_fires(name, block):
    if (name, block) == ("resnet19", "preact"):
        return
    with torch.device("meta"):
        model = build(name, block=block, width=2)
    blocks, bottleneck, _ = ARCHITECTURES[name]
    layers = sum(blocks) * (3 if bottleneck else 2) + 1
    if block == "sew":  # and a neuron in each shortcut that changes shape
        layers += len(blocks) - (0 if bottleneck else 1)
    layers += name == "resnet19"  # whose classifier has a hidden layer
    assert len(model.spiking_layers()) == layers


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
        ("resnet20", "auto", 8, None),
    ],
)
def test_a_net_of_single_pixels_is_warned_of_once(name, stem, size, advice, capsys):
    warn_once.cache_clear()
    nets = [build(name, stem=stem, width=2, image_size=size) for _ in range(2)]
    seen = []
    last = nets[0].get_submodule(nets[0].stage_names[-1])[-1]
    last.register_forward_hook(lambda _m, _x, out: seen.append(out.shape[-1]))
    nets[0](images(size=size))
    warning = pixel_warning(name, stem.replace("auto", "cifar"), size)
    assert (warning is None) == (advice is None) == (seen[-1] > 1)
    assert capsys.readouterr().err.count(f"warning: {name}") == (advice is not None)
    if warning is not None:
        assert f"Try {advice}" in warning


@pytest.mark.parametrize(
    ("name", "parameters", "off"),
    [
        # He et al. 2015, table 6: 0.27, 0.85, 1.7 million; 1x1 shortcuts add 2.5 thousand
        ("resnet20", 272_500, 6e3),
        ("resnet56", 852_500, 6e3),
        ("resnet110", 1_732_500, 6e3),
        # by hand: 9 C C' of a convolution (C C' of a shortcut's), 2 C' of a norm, linear layers with biases
        ("vgg8", 1_985_706, 0),
        ("vgg11", 9_228_362, 0),
        ("vgg16", 14_724_042, 0),
        ("resnet19", 12_697_994, 0),
        ("csnn", 70_113_034, 0),
    ],
)
def test_the_networks_of_the_tables_have_the_published_sizes(name, parameters, off):
    with torch.device("meta"):
        model = build(name, image_size=32)
    assert count_parameters(model) == pytest.approx(parameters, abs=off)


def test_the_preact_resnet_18_has_the_parameters_of_its_authors():
    """64 to 512 channels, 1x1 convolutions in three shortcuts, a norm before each convolution."""
    model = build("resnet18", block="preact", channels=3, image_size=32)
    widths = [64] * 5 + [128] * 4 + [256] * 4 + [512] * 4
    convs = 3 * 64 * 9 + sum(9 * a * b for a, b in neighbours(widths))
    shortcuts = 64 * 128 + 128 * 256 + 256 * 512
    assert count_parameters(model) == convs + shortcuts + 2 * sum(widths) + 513 * CLASSES
    assert not model.fc.bias.any()


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


@pytest.mark.parametrize("block", ["plain", "sew", "ms", "preact"])
def test_the_strided_stem_halves_in_the_first_block(block):
    """MS-ResNet's: 7x7 with stride 2 and no pool; the first block has a stride and so a shortcut."""
    model, seen = build("resnet18", block=block, stem="strided", width=4, image_size=64), []
    assert model.maxpool is None
    assert model.layer1[0].downsample is not None
    model.layer1[1].conv2.register_forward_hook(lambda _m, _x, out: seen.append(out.shape))
    model(images(size=64))
    assert seen == [(T * B, 4, 16, 16)]


@pytest.mark.parametrize("side", [128, 20])
def test_net7b_is_the_papers(side):
    """Fang et al. 2021: a stem of 32 channels, then 7 times a SEW block and a max-pool."""
    with torch.device("meta"):
        model = build("net7b", channels=2, image_size=side, block="sew")
    convs = 2 * 32 + 14 * 9 * 32 * 32
    assert model.fc.in_features == 32
    assert count_parameters(model) == convs + 15 * 64 + 32 * CLASSES + CLASSES
    model, seen = build("net7b", channels=2, image_size=side, block="sew", width=2), []
    for block in model.layers:
        block.register_forward_hook(lambda _m, _x, out: seen.append(out.shape[-1]))
    model(frames(1, channels=2, size=side))
    assert seen == [max(1, side >> i) for i in range(7)]
