"""Measuring without training: gradients of the mean loss, kept within float32, and the overlap."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spiketriton.gradients.prober import Prober, classes_apart, overlap_of
from spiketriton.models import Network, build_model
from spiketriton.plugins.tasks import Batch, build_loss
from spiketriton.system.errors import UserError
from tests.small_runs import assert_equal, small_recipe


def network(*changes: str) -> Network:
    torch.manual_seed(0)
    return build_model(small_recipe(*changes), classes=10, channels=1, image_size=8)


def batches(count: int = 2, images: int = 8) -> list[Batch]:
    drawn = torch.Generator().manual_seed(1)
    return [
        (torch.randn(images, 1, 8, 8, generator=drawn), torch.arange(images) % 10)
        for _ in range(count)
    ]


def prober(model: Network, given: list[Batch]) -> Prober:
    return Prober(model, given, build_loss(small_recipe().loss))


def test_two_batches_measure_the_mean_of_their_losses():
    """RMS over both: each batch has half of its own gradient, and its own statistics."""
    model, both = network(), batches()
    first, second = (prober(model, [batch]).measure() for batch in both)
    joined = prober(model, both).measure()
    mean = np.sqrt((first.grad_input_rms**2 + second.grad_input_rms**2) / 2) / 2
    assert np.allclose(joined.grad_input_rms, mean, rtol=1e-5)
    assert np.allclose(
        joined.grad_input_max,
        np.maximum(first.grad_input_max, second.grad_input_max) / 2,
        rtol=1e-5,
    )
    assert np.allclose(joined.firing_rate, (first.firing_rate + second.firing_rate) / 2, rtol=1e-6)


def test_a_measurement_leaves_no_trace():
    model = network()
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    found = prober(model, batches())
    found.measure()
    found.signal()
    assert torch.equal(torch.get_rng_state(), state)
    assert_equal(before, dict(model.state_dict()))
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(x.probe is None and x.on_fire is None for _, x in model.spiking_layers())


def test_the_overlap_of_rates_by_hand():
    """Two images and their copies: cosines 0.6 and 1 with themselves, 0 and 0.8 with the other."""
    rates = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.0, 2.0]])
    same, other = (0.6 + 1) / 2, (0 + 0.8) / 2
    assert overlap_of(rates, 2) == pytest.approx((same - other) / (1 - other))
    rates[1] = (
        0  # a silent image does not count: the first has 0.6 with its copy and 0 with the other's
    )
    assert overlap_of(rates, 2) == pytest.approx(0.6)
    assert overlap_of(torch.zeros(8, 5), 4) == 0
    assert overlap_of(torch.ones(8, 5), 4) == 0
    assert math.isnan(overlap_of(torch.ones(2, 5), 1))
    assert math.isnan(overlap_of(torch.ones(9, 5), 4))  # the first dimension is not that of images


@pytest.mark.parametrize(("noise", "expected"), [(0.0, 1.0), (1e4, 0.0)])
def test_a_copy_without_noise_is_the_image_and_one_of_noise_is_none(noise, expected, monkeypatch):
    monkeypatch.setattr("spiketriton.gradients.prober.NOISE", noise)
    found = prober(network("model.name=mlp", "model.depth=8", "time_steps=5"), batches(2, 32))
    assert np.allclose(found.signal().overlap, expected, atol=1e-5 if expected else 0.3)


@pytest.mark.parametrize(("images", "compared"), [(1, 1), (3, 2), (8, 4)])
def test_half_of_a_batch_is_compared_with_noisy_copies(images, compared):
    """The noise is the same every time, 5 % of the pixels' standard deviation."""
    model, given = network("model.name=mlp", "model.depth=2"), batches(1, images)
    seen: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    found = prober(model, given)
    seen.clear()
    found.signal()
    (shown,) = seen
    one = given[0][0][:compared]
    noise = torch.randn(one.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(shown, torch.cat([one, one + 0.05 * one.std() * noise]))


def test_any_module_is_measured_whose_neurons_are_ours():
    """In the order in which they are called, with the weights' gradients; the same as of a network."""
    net = network("model.name=mlp", "model.depth=3")
    given = batches(1)
    images, labels = given[0]

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.middle, self.first = net.layers[2], net.layers[1], net.layers[0]
            self.fc = net.fc

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.last(self.middle(self.first(x.flatten(1), 3)))).mean(0)

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(out, y)

    wanted = prober(net, given)
    found = Prober(Other(), given, loss, images=0)
    assert found.names == ("first.neuron", "middle.neuron", "last.neuron")
    assert (found.steps, found.elements) == (wanted.steps, wanted.elements)
    ours, theirs = found.measure(), wanted.measure()
    assert np.allclose(ours.grad_input_rms, theirs.grad_input_rms, rtol=1e-4)
    assert np.allclose(found.signal().overlap, wanted.signal().overlap, atol=1e-5)
    (grad,) = torch.autograd.grad(
        build_loss(small_recipe().loss)(net(images), labels), net.fc.weight
    )
    assert theirs.weights["fc.weight"] == pytest.approx(
        float(grad.square().mean().sqrt()), rel=1e-4
    )
    with pytest.raises(UserError, match="of Linear are shown no time steps"):
        Prober(nn.Linear(64, 10), [(images.flatten(1), labels)], loss, images=0)


def test_steps_tell_classes_apart_that_have_half_of_the_variance_between_them_less_that_of_chance():
    random = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    for high, low in ((1.0, 0.8), (1.0, 0.6)):
        x = torch.randn(5, 60, 3, 2, generator=random)
        x[1] += 5 * high * y[:, None, None]
        x[3] += 5 * low * y[:, None, None]
        found = []
        for values in x.double().numpy():
            means = np.stack([values[y == label].mean(0) for label in range(3)])
            between = 20 * ((means - values.mean(0)) ** 2).sum()
            found.append(between - 2 / 59 * ((values - values.mean(0)) ** 2).sum())
        assert classes_apart(x, y) == tuple(float(one >= 0.5 * max(found)) for one in found)
        assert classes_apart(x, y) == (0, 1, 0, float(low > 0.7), 0)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.randn(3, 6, 2), torch.arange(6)),  # a class of its own for each
        (torch.ones(3, 6, 2), torch.arange(6) % 2),
        (torch.randn(3, 6, 2), torch.randn(6)),
        (torch.randn(3, 6, 2), torch.zeros(6, 4, dtype=torch.long)),
        (torch.randn(3, 6, 2), None),
        (torch.randn(3, 6, 2), torch.zeros(6, dtype=torch.long)),
    ],
)
def test_where_labels_tell_no_classes_apart_none_are(x, y):
    assert classes_apart(x, y) == ()
