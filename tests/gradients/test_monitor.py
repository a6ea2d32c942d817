"""The gradient monitor against plain autograd, and what it says in words."""

import json
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from spiketriton.config import Recipe
from spiketriton.gradients.monitor import GradientMonitor, elements_per_image
from spiketriton.models import Network, build_model
from spiketriton.system.ranks import Ranks
from spiketriton.training.optim import clipped_norm
from spiketriton.training.placement import Placement
from spiketriton_kernels.neuron import Outputs
from spiketriton_kernels.nn import SpikingNeuron
from tests.small_runs import small_recipe, small_trainer

T, B, SIZE = 3, 4, 8
SHAPE = (1, SIZE, SIZE)


def network(*overrides: str) -> tuple[Recipe, Network]:
    torch.manual_seed(0)
    recipe = small_recipe(*overrides)
    return recipe, build_model(recipe, classes=10, channels=1, image_size=SIZE)


def monitor_of(
    model: Network, rows: list, scale: float = 1.0, batch: int = B, ranks: Ranks | None = None
) -> GradientMonitor:
    return GradientMonitor(
        model,
        batch=batch,
        image_shape=SHAPE,
        scale=lambda: scale,
        write=lambda step, measured: rows.extend(measured.rows(step)),
        ranks=ranks,
    )


def loss_of(model: Network) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(B, *SHAPE, generator=generator).to(model.fc.weight.dtype)
    labels = torch.randint(10, (B,), generator=generator)
    return torch.nn.functional.cross_entropy(model(images).mean(0), labels)


def measure(model: Network) -> list[dict]:
    rows: list[dict] = []
    monitor = monitor_of(model, rows)
    with monitor.watch():
        loss_of(model).backward()
    monitor.read(7)
    return rows


def rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def retained(calls: list[tuple[Tensor, Tensor]]) -> Callable[..., Outputs]:
    """The reference neuron in place of the kernel; keeps currents and spikes with gradients."""

    def run(neuron: SpikingNeuron, x: Tensor, *_: object, **__: object) -> Outputs:
        x = x.view_as(x)  # in MS blocks a current goes elsewhere too, and only this way counts
        spikes = neuron.define(x)
        x.retain_grad()
        spikes.retain_grad()
        calls.append((x, spikes))
        return Outputs(spikes)

    return run


def exactly(calls: list[tuple[Tensor, Tensor]]) -> Callable[..., Outputs]:
    """As `retained`, in a network of float64, by the currents that `calls` hold, which these take the place of."""
    given = iter([x.detach().double() for x, _ in calls])
    fired = iter([spikes.detach().double() for _, spikes in calls])
    calls.clear()
    retain = retained(calls)

    def run(neuron: SpikingNeuron, x: Tensor, *_: object, **__: object) -> Outputs:
        found = retain(neuron, x + (next(given) - x).detach())
        assert torch.equal(found.spikes, next(fired))
        return found

    return run


NETS = {
    "soft reset, not detached": ["neuron.reset=soft", "neuron.detach_reset=false"],
    "if, hard reset, not detached": ["neuron.kind=if", "neuron.detach_reset=false"],
    "plif": ["neuron.kind=plif", "neuron.surrogate.shape=triangle"],
    "mlp": ["model.name=mlp", "model.depth=3"],
    "ms blocks": ["model.block=ms"],
    "bf16": ["train.precision=bf16"],
}


@pytest.mark.parametrize("net", NETS)
def test_norms_equal_those_of_retained_gradients(net, monkeypatch):
    """In bf16, where both round, with those of float64 at the same spikes.

    A value is rounded by up to 2^-9 in each of about ten operations on its way, most of which is gone in a mean.
    """
    overrides = [*NETS[net], "model.fused=false"]
    recipe, model = network(*overrides)
    autocast = Placement.of(recipe.train).autocast
    with autocast():
        rows = measure(model)

    calls: list[tuple[Tensor, Tensor]] = []
    monkeypatch.setattr(SpikingNeuron, "call_kernels", retained(calls))
    _, model = network(*overrides)
    with autocast():
        loss_of(model).backward()

    assert (calls[0][0].dtype == torch.bfloat16) == (net == "bf16")
    near, of_one = 1e-4, 1e-4
    if net == "bf16":
        near, of_one = 0.005, 10 * 2**-9
        monkeypatch.setattr(SpikingNeuron, "call_kernels", exactly(calls))
        _, model = network(*overrides)
        loss_of(model.double()).backward()
    names = [name for name, _ in model.spiking_layers()]
    assert len(calls) == len(names) > 1
    assert [(row["index"], row["layer"], row["time_step"]) for row in rows] == [
        (index, name, t) for index, name in enumerate(names) for t in range(T)
    ]
    for row in rows:
        dx, ds = (tensor.grad[row["time_step"]] for tensor in calls[row["index"]])
        spikes = calls[row["index"]][1][row["time_step"]]
        assert row["grad_input_rms"] == pytest.approx(rms(dx), rel=near)
        assert row["grad_spike_rms"] == pytest.approx(rms(ds), rel=near)
        assert row["grad_input_max"] == pytest.approx(dx.abs().max().item(), rel=of_one)
        assert row["firing_rate"] == pytest.approx(spikes.mean().item())
        assert row["nonfinite"] == 0
        assert row["step"] == 7


@pytest.mark.parametrize("block", ["plain", "ms"])
def test_fused_and_unfused_networks_measure_the_same(block):
    nets = (network(f"model.block={block}", f"model.fused={word}")[1] for word in ("true", "false"))
    for fused, apart in zip(*map(measure, nets), strict=True):
        assert fused.pop("layer") == apart.pop("layer")
        assert fused == pytest.approx(apart, rel=1e-3)


def test_a_part_of_a_step_shows_the_gradient_of_the_whole_steps_loss(tmp_path):
    """Without a norm images do not mix: the last of two parts is half of what one part measures."""
    alike = ["model.norm=none", "data.augment=none", "train.max_steps=1"]
    rows = {}
    for parts in (1, 2):
        small_trainer(tmp_path / f"{parts}", f"train.accumulate={parts}", *alike).fit()
        lines = (tmp_path / f"{parts}" / "gradients.jsonl").read_text().splitlines()
        rows[parts] = [json.loads(line) for line in lines]
    ratios = [
        part["grad_input_rms"] / whole["grad_input_rms"]
        for whole, part in zip(rows[1], rows[2], strict=True)
        if whole["grad_input_rms"] > 0
    ]
    # 8 of the 16 images, each with its true gradient: about the same RMS, and not half of it
    assert ratios
    assert 0.7 < math.exp(sum(map(math.log, ratios)) / len(ratios)) < 1.4
    whole, part = (sum(row["firing_rate"] for row in rows[parts]) for parts in (1, 2))
    assert 0.8 < part / whole < 1.25  # of 8 images, not of 16


@pytest.mark.parametrize(
    ("overrides", "first", "last"),
    [
        ([], 4 * 8 * 8, 16 * 2 * 2),
        (["model.name=mlp", "model.depth=3", "model.width=20"], 20, 20),
        (["model.name=plain", "model.depth=3", "model.width=6"], 6 * 8 * 8, 6 * 2 * 2),
        (["model.name=resnet18", "model.stem=imagenet", "model.width=4"], 4 * 4 * 4, 32),
    ],
)
def test_neurons_are_counted_without_a_trace(overrides, first, last):
    _, model = network(*overrides)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    counts = elements_per_image(model, SHAPE, torch.device("cpu"))
    assert len(counts) == len(model.spiking_layers())
    assert (counts[0], counts[-1]) == (first, last)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(layer.v is None and not layer.stateful for _, layer in model.spiking_layers())


def test_nothing_is_attached_outside_a_measurement_and_each_starts_from_zero():
    _, model = network("model.norm=none")
    rows: list[dict] = []
    monitor = monitor_of(model, rows)

    def attached() -> set[bool]:
        return {layer.probe is not None for _, layer in model.spiking_layers()}

    def fails() -> None:
        with monitor.watch():
            assert attached() == {True}
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert (attached(), rows) == ({False}, [])
    for _ in range(2):
        with monitor.watch():
            loss_of(model).backward()
        monitor.read(2)
    assert attached() == {False}
    assert len(rows) == 2 * len(model.spiking_layers()) * T
    assert rows[: len(rows) // 2] == rows[len(rows) // 2 :]


def test_two_ranks_are_summed_and_each_loss_is_the_mean_of_its_own_images():
    class Two(Ranks):
        """The other rank has the same images and three times the largest value."""

        world_size = 2

        def total(self, x: Tensor) -> Tensor:
            return 2 * x

        def largest(self, x: Tensor) -> Tensor:
            return 3 * x

    alone, rows = measure(network()[1]), []
    model = network()[1]
    monitor = monitor_of(model, rows, scale=4.0, batch=2 * B, ranks=Two())
    with monitor.watch():
        (4.0 * loss_of(model)).backward()
    monitor.read(7)
    for row, one in zip(rows, alone, strict=True):
        assert row["grad_input_rms"] == pytest.approx(one["grad_input_rms"] / 2)
        assert row["grad_input_max"] == pytest.approx(one["grad_input_max"] * 3 / 2)
        assert row["firing_rate"] == pytest.approx(one["firing_rate"])
    assert monitor.summary.step == 7
    state = monitor.state_dict()
    again = monitor_of(model, [])
    again.load_state_dict(state)
    assert again.summary == monitor.summary


@pytest.mark.parametrize(("limit", "left"), [(0.0, 5.0), (2.0, 2.0), (9.0, 5.0)])
def test_the_norm_is_that_of_before_clipping(limit, left):
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    for p, grad in zip(parameters, (3.0, -4.0), strict=False):  # the third has none
        p.grad = torch.tensor([grad])
    assert float(clipped_norm(parameters, limit)) == pytest.approx(5)
    norm = torch.stack([p.grad for p in parameters[:2]]).norm()
    assert float(norm) == pytest.approx(left, rel=1e-5)
