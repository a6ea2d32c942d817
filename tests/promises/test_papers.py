"""The papers' recipes: neuron, loss and schedule against formulas written out here, and steps on a small folder."""

import math

import pytest
import torch
from torch.nn import functional as F

from spiketriton.config import load_recipe
from spiketriton.data import build_data
from spiketriton.models import build_model
from spiketriton.neurons import build_neuron
from spiketriton.runs.folder import RunFolder
from spiketriton.trainer import Trainer
from spiketriton.training.losses import build_loss
from spiketriton.training.optim import build_optimizer, build_schedule
from tests.small_data import make_class_tree
from tests.small_runs import Lines

PAPERS = ["imagenet_sew34", "imagenet_ms34"]


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


@pytest.mark.parametrize(("name", "definition"), list(zip(PAPERS, (sew, ms), strict=True)))
def test_the_neuron_is_the_authors(name, definition):
    recipe = load_recipe(name)
    x = torch.randn(recipe.time_steps, 64, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    ours, theirs = build_neuron(recipe.neuron)(x), definition(x)
    assert torch.equal(ours, theirs)
    assert 0.1 < ours.mean() < 0.9
    gradients = [torch.autograd.grad((s * weight).sum(), x)[0] for s in (ours, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("name", "smoothing"), list(zip(PAPERS, (0.0, 0.1), strict=True)))
def test_the_loss_is_the_authors(name, smoothing):
    recipe = load_recipe(name)
    currents, labels = torch.randn(recipe.time_steps, 8, 1000), torch.randint(1000, (8,))
    target = F.one_hot(labels, 1000) * (1 - smoothing) + smoothing / 1000
    expected = -(target * currents.mean(0).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(build_loss(recipe.loss)(currents, labels), expected)


@pytest.mark.parametrize(("name", "decay"), list(zip(PAPERS, (0.0, 1e-5), strict=True)))
def test_the_schedule_and_the_decay_are_the_authors(name, decay):
    train = load_recipe(name).train
    layers = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    optimizer = build_optimizer(train, layers)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {decay}
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}
    steps = 40
    schedule = build_schedule(train, optimizer, steps)
    for step in range(steps):
        cosine = 0.1 * (1 + math.cos(math.pi * step / steps)) / 2
        assert optimizer.param_groups[0]["lr"] == pytest.approx(cosine)
        optimizer.step()
        schedule.step()


def test_the_networks_are_the_authors():
    """Parameters of torchvision's ResNet-34; MS blocks begin as the identity, tdBN scales to the threshold."""
    for name in PAPERS:
        model = build_model(load_recipe(name), classes=1000, channels=3, image_size=224)
        assert sum(p.numel() for p in model.parameters()) == 21_797_672
    gains = {float(block.bn2.weight.detach().abs().max()) for _, block in model.blocks()}
    assert gains == {0.0}
    assert model.layer1[0].bn1.scale == 0.5


@pytest.mark.parametrize("name", PAPERS)
def test_three_steps_on_a_small_folder(tmp_path, name):
    make_class_tree(tmp_path / "imagenet", ("train", "val"), ("n01", "n02"), 3)
    keys = [
        f"data.root={tmp_path / 'imagenet'}", "data.image_size=32", "data.workers=0",
        "train.batch_size=2", "train.max_steps=3", "train.precision=fp32", "model.width=8",
        "train.threads=1",
    ]  # fmt: skip
    recipe = load_recipe(name, keys)
    folder = RunFolder.create(tmp_path / "run", recipe.name)
    trainer = Trainer(recipe, build_data(recipe), folder, Lines())
    before = trainer.model.layer4[2].bn2.weight.detach().clone()
    outcome = trainer.fit()
    assert outcome.progress.step == 3
    assert not torch.equal(trainer.model.layer4[2].bn2.weight, before)
