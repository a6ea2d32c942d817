"""The papers' recipes: neuron, loss and schedule against formulas written out here, and steps on a small folder."""

import math

import pytest
import torch
from torch.nn import functional as F

from spiketriton.config import load_recipe
from spiketriton.data.transforms import Augmentation
from spiketriton.models import build_model, count_parameters
from spiketriton.models.blocks import PreActBlock
from spiketriton.neurons import Norm, build_neuron
from spiketriton.plugins.tasks import build_loss
from spiketriton.training.optim import build_optimizer, build_schedule
from spiketriton_kernels import use_backend

SEW = ["imagenet_sew34", "imagenet_sew18"]
CLIF = ["cifar10_preact18", "cifar100_preact18"]
PAPERS = [*SEW, "imagenet_ms34", *CLIF]


class Step(torch.autograd.Function):
    """A spike, and a given slope in place of its derivative."""

    @staticmethod
    def forward(ctx, u, slope):
        ctx.save_for_backward(slope)
        return (u >= 0).to(u)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0], None


def sew(x):
    """SpikingJelly's IFNode(detach_reset=True, surrogate ATan(alpha=2)): alpha/2 / (1 + (pi/2 alpha u)^2)."""
    v, spikes = torch.zeros_like(x[0]), []
    for current in x:
        h = v + current
        u = h - 1
        s = Step.apply(u, 1 / (1 + (math.pi * u.detach()) ** 2))
        v = h * (1 - s.detach())
        spikes.append(s)
    return torch.stack(spikes)


def ms(x):
    """MS-ResNet's mem_update: decay 0.25, threshold 0.5, gradient 1 within 0.5 of the threshold."""
    mem, spikes, spike = torch.zeros_like(x[0]), [], torch.zeros_like(x[0])
    for current in x:
        mem = mem * 0.25 * (1 - spike.detach()) + current
        u = mem - 0.5
        spike = Step.apply(u, (u.detach().abs() < 0.5).to(u))
        spikes.append(spike)
    return torch.stack(spikes)


def clif(x):
    """CLIF as its authors publish it: tau 2, slope 1 within 0.5 of the threshold, all gradients kept."""
    v, m, spikes = torch.zeros_like(x[0]), torch.zeros_like(x[0]), []
    for current in x:
        h = v * 0.5 + current
        u = h - 1
        s = Step.apply(u, (u.detach().abs() <= 0.5).to(u))
        m = m * torch.sigmoid(h / 2) + s
        v = h - s * (1 + torch.sigmoid(m))
        spikes.append(s)
    return torch.stack(spikes)


def of_each(of_sew, of_ms, *of_clif):
    """Each recipe with what its authors have."""
    return list(zip(PAPERS, (of_sew, of_sew, of_ms, of_clif[0], of_clif[-1]), strict=True))


@pytest.mark.parametrize(("name", "definition"), of_each(sew, ms, clif))
def test_the_neuron_is_the_authors(name, definition):
    recipe = load_recipe(name)
    x = torch.randn(recipe.time_steps, 64, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    with use_backend("torch"):  # the definition, which nothing has to compile
        ours = build_neuron(recipe.neuron)(x)
        (gradient,) = torch.autograd.grad((ours * weight).sum(), x)
    theirs = definition(x)
    assert torch.equal(ours, theirs)
    assert 0.1 < ours.mean() < 0.9
    (expected,) = torch.autograd.grad((theirs * weight).sum(), x)
    torch.testing.assert_close(gradient, expected)


def of_mean(smoothing):
    """Cross-entropy of the mean over time, labels smoothed."""

    def loss(currents, target):
        target = target * (1 - smoothing) + smoothing / target.shape[1]
        return -(target * currents.mean(0).log_softmax(1)).sum(1).mean()

    return loss


def of_each_step(currents, target):
    """TET with lambda 0.05: cross-entropy of each step, and the mean square of the distance from 1."""
    fit = sum(-(target * step.log_softmax(1)).sum(1).mean() for step in currents) / len(currents)
    return 0.95 * fit + 0.05 * ((currents - 1) ** 2).mean()


@pytest.mark.parametrize(("name", "definition"), of_each(of_mean(0.0), of_mean(0.1), of_each_step))
def test_the_loss_is_the_authors(name, definition):
    recipe = load_recipe(name)
    currents, labels = torch.randn(recipe.time_steps, 8, 1000), torch.randint(1000, (8,))
    expected = definition(currents, F.one_hot(labels, 1000))
    torch.testing.assert_close(build_loss(recipe.loss)(currents, labels), expected)


@pytest.mark.parametrize(("name", "decay"), of_each(0.0, 1e-5, 5e-5, 5e-4))
def test_the_schedule_and_the_decay_are_the_authors(name, decay):
    train = load_recipe(name).train
    layers = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    optimizer = build_optimizer(train, layers, train.lr)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {decay}
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}
    steps = 40
    schedule = build_schedule(train, optimizer, steps)
    for step in range(steps):
        cosine = 0.1 * (1 + math.cos(math.pi * step / steps)) / 2
        assert optimizer.param_groups[0]["lr"] == pytest.approx(cosine)
        optimizer.step()
        schedule.step()


def test_images_are_changed_as_the_authors_change_them():
    """RandomResizedCrop with torchvision's scale on ImageNet; on CIFAR a box is cut out of half of them."""
    sew = Augmentation("standard", crop_scale=(0.08, 1.0))
    ms, clif = Augmentation("strong", crop_scale=(0.08, 1.0)), Augmentation("standard", erasing=0.5)
    for name, changes in of_each(sew, ms, clif):
        assert Augmentation.of(load_recipe(name).data) == changes


TORCHVISION = {
    "imagenet_sew18": 11_689_512,
    "imagenet_sew34": 21_797_672,
}  # its ResNets' parameters


@pytest.mark.parametrize("name", SEW)
def test_sew_resnets_have_torchvisions_parameters(name):
    model = build_model(load_recipe(name), classes=1000, channels=3, image_size=224)
    assert count_parameters(model) == TORCHVISION[name]
    assert {type(block).__name__ for _, block in model.blocks()} == {"SEWBlock"}


def test_ms_resnet_halves_in_its_first_block_and_norms_start_at_the_threshold():
    """One shortcut convolution and its norm more than torchvision's ResNet-34; blocks begin as the identity."""
    model = build_model(load_recipe("imagenet_ms34"), classes=1000, channels=3, image_size=224)
    assert count_parameters(model) == TORCHVISION["imagenet_sew34"] + 64 * 64 + 2 * 64
    last = [f"{name}.bn2" for name, _ in model.blocks()]
    for name, norm in model.named_modules():
        if isinstance(norm, Norm):
            assert norm.scale == 1
            assert set(norm.weight.tolist()) == {0.0 if name in last else 0.5}, name
    with torch.no_grad():
        assert model.eval().layer4(torch.randn(1, 1, 256, 4, 4)).shape[-1] == 2


@pytest.mark.parametrize(("name", "classes"), [(CLIF[0], 10), (CLIF[1], 100)])
def test_the_preact_resnet_takes_statistics_of_each_step(name, classes):
    """tests/models/test_blocks.py holds the block against its equation, tests/neurons/test_norm.py the norm."""
    model = build_model(load_recipe(name), classes=classes, channels=3, image_size=32)
    assert {type(block) for _, block in model.blocks()} == {PreActBlock}
    assert [m.each_step for m in model.modules() if isinstance(m, Norm)] == [True] * 17
