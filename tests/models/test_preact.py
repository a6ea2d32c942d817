"""Pre-activation ResNets against a network written out here, which is called once for each time step."""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from spiketriton.config.recipe import SurrogateConfig
from spiketriton.models import count_parameters
from spiketriton.models.resnet import ARCHITECTURES
from tests.covering import each
from tests.models.support import CLASSES, B, T, assert_healthy, backward, build, images, lively

STEPS = 4
SOFT = {
    "reset": "soft",
    "detach_reset": False,
    "surrogate": SurrogateConfig(shape="rectangle", width=0.5),
}


class Rectangle(torch.autograd.Function):
    """A spike where u >= 0; slope 1 where |u| <= 1/2."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u >= 0).to(u)

    @staticmethod
    def backward(ctx, grad):
        return grad * (ctx.saved_tensors[0].abs() <= 0.5)


class Stepwise:
    """The network as the authors call it: one step at a time, batch norm of each step by itself."""

    def __init__(self, weights, blocks):
        self.weights, self.blocks, self.v = weights, blocks, {}

    def norm(self, name, x):
        w = self.weights
        return F.batch_norm(
            x, w[f"{name}.running_mean"], w[f"{name}.running_var"], w[f"{name}.weight"],
            w[f"{name}.bias"], training=True,
        )  # fmt: skip

    def fire(self, name, x):
        h = 0.5 * self.v.get(name, torch.zeros_like(x)) + x
        s = Rectangle.apply(h - 1)
        self.v[name] = h - s
        return s

    def conv(self, name, x, stride=1):
        kernel = self.weights[f"{name}.weight"]
        return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def __call__(self, x):
        x = self.conv("conv1", x)
        for name, stride in self.blocks:
            s = self.fire(f"{name}.1", self.norm(f"{name}.bn1", x))
            y = self.conv(f"{name}.conv1", s, stride)
            y = self.fire(f"{name}.2", self.norm(f"{name}.bn2", y))
            changes = f"{name}.downsample.weight" in self.weights
            x = self.conv(f"{name}.conv2", y) + (
                self.conv(f"{name}.downsample", s, stride) if changes else s
            )
        s = self.fire("last", self.norm("bn_last", x))
        return F.linear(s.mean((2, 3)), self.weights["fc.weight"], self.weights["fc.bias"])


def test_currents_gradients_and_statistics_are_those_of_single_steps():
    model = build(
        "resnet18", block="preact", norm="step_bn", width=4, time_steps=STEPS, neuron=SOFT
    )
    model = lively(model.double())
    twin = {
        name: value.detach().clone().requires_grad_(value.is_floating_point() and "running" not in name)
        for name, value in model.state_dict().items()
    }  # fmt: skip
    names = [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]
    net = Stepwise(
        twin, [(name, 2 if name in ("layer2.0", "layer3.0", "layer4.0") else 1) for name in names]
    )
    x = images().double()
    ours, theirs = model(x), torch.stack([net(x) for _ in range(STEPS)]).float()
    torch.testing.assert_close(ours, theirs)
    assert ours.std(1).mean() > 1e-3
    weight = torch.randn_like(ours)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, twin[name].grad, msg=name)
    for name, buffer in model.named_buffers():
        if "running" in name:
            torch.testing.assert_close(buffer, twin[name], msg=name)


def test_the_parameters_are_the_authors():
    """ResNet-18 of 64 to 512 channels, 1x1 convolutions in three shortcuts, a norm before each convolution."""
    model = build("resnet18", block="preact", channels=3, image_size=32)
    widths = [64, 64, 64, 64, 64, 128, 128, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512]
    convs = 3 * 64 * 9 + sum(9 * a * b for a, b in pairwise(widths))
    shortcuts = 64 * 128 + 128 * 256 + 256 * 512
    assert count_parameters(model) == convs + shortcuts + 2 * sum(widths) + 513 * CLASSES
    assert not model.fc.bias.any()


@pytest.mark.parametrize(
    ("name", "kind"), each([n for n in ARCHITECTURES if n != "resnet19"], ["lif", "relu"])
)
def test_every_preact_resnet_trains(name, kind):
    model = lively(build(name, block="preact", width=2, neuron={"kind": kind}))
    assert_healthy(model, backward(model, images()), steps=T if kind == "lif" else 1)
    blocks, bottleneck, _ = ARCHITECTURES[name]
    layers = sum(blocks) * (3 if bottleneck else 2) + 1
    assert len(model.spiking_layers()) == (layers if kind == "lif" else 0)


def test_the_strided_stem_halves_in_the_first_block():
    """MS-ResNet's: 7x7 with stride 2 and no pool; the first block has a stride and so a shortcut."""
    for block in ("plain", "sew", "ms", "preact"):
        model = build("resnet18", block=block, stem="strided", width=4, image_size=64)
        assert model.maxpool is None
        assert model.layer1[0].downsample is not None
        seen = []

        def see(module, args, out, seen=seen):
            seen.append((out[0] if isinstance(out, tuple) else out).shape)  # MS: the current first

        model.layer1[1].register_forward_hook(see)
        model(images(size=64))
        assert seen == [(T, B, 4, 16, 16)]
