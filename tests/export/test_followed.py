"""A file's answers against the network's: rounding is forgiven where a spike hangs on it, and nothing else is."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from spiketriton.export.followed import CLOSE, MOST, TIE, Compared, Told, by_name, compared
from spiketriton.export.one_step import export_step
from spiketriton.export.plain import export_onnx, export_torch
from spiketriton_kernels import nn as kernels
from spiketriton_kernels.neurons.definition import Walk
from tests.evaluate.test_stream import FRAMES, IMAGES, SIGNALS, Window, made

T, B = 6, 3
NEURONS = {
    "lif": lambda: kernels.LIF(decay_input=False),
    "ilif": lambda: kernels.ILIF(4, v_threshold=0.5),
    "alif": lambda: kernels.ALIF(v_threshold=0.5),
    "psn": lambda: kernels.SlidingPSN(3),
    "recurrent": lambda: kernels.Recurrent(kernels.LIF(decay_input=False), 40),
}


class Net(nn.Module):
    """[T, B, 8] -> [T, B, 5] by a layer of neurons."""

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.enter, self.neuron, self.head = nn.Linear(8, 40), neuron, nn.Linear(40, 5)

    def forward(self, x):
        return self.head(self.neuron(2 * self.enter(x)))


@pytest.fixture(params=NEURONS)
@torch.no_grad()
def shown(request):
    torch.manual_seed(0)
    net = Net(NEURONS[request.param]()).eval().requires_grad_(False)
    x = torch.randn(T, B, 8)
    told = Told(net, [x])
    return net, x, told


def other_file(net, x, change):
    """What a file answers whose neurons get currents that `change` makes of the network's."""
    told = Told(net, [x])
    neuron = net.neuron.neuron if isinstance(net.neuron, kernels.Recurrent) else net.neuron
    own, neuron.backend = neuron.walk, "eager"
    neuron.__dict__["walk"] = lambda step, current, states, trace: own(
        step, change(current), states, trace
    )
    try:
        currents, *spikes = told(x)
    finally:
        del neuron.__dict__["walk"]
        neuron.backend = "auto"
    return currents, lambda: (currents, currents, by_name(told.names, spikes))


@torch.no_grad()
def hanging(net, x):
    """The network, of which one current meets its threshold but for rounding; and how far that is moved."""
    seen = []
    other_file(net, x, lambda current: seen.append(current) or current)
    current = seen[-1]
    by = TIE * float(current.abs().max()) / 4
    for scale in torch.linspace(0.5, 1.5, 4001):  # of which one lies on a threshold
        net.enter.weight.data *= scale
        few = other_file(net, x, lambda c: c + by)[1]()[2], other_file(net, x, lambda c: c)[1]()[2]
        if any(
            (a[0] != b[0]).sum() == 1 for a, b in zip(few[0].values(), few[1].values(), strict=True)
        ):
            return by
        net.enter.weight.data /= scale
    raise AssertionError("no spike hangs on rounding")


@torch.no_grad()
def test_a_spike_on_rounding_is_forgiven_and_all_behind_it_is_compared(shown):
    net, x, _ = shown
    by = hanging(net, x)
    currents, told = other_file(net, x, lambda current: current + by)
    found = compared(net, x, currents, told)
    assert found.agrees
    assert (found.spikes, found.hanging, found.wrong) == (T * B * 40, 1, 0)
    assert "; 1 hang on rounding" in str(found)

    def and_wrong(current):
        moved = current + by
        moved[-1, 1, 7] = -moved[-1, 1, 7] + 2.0
        return moved

    currents, told = other_file(net, x, and_wrong)
    found = compared(net, x, currents, told)
    assert not found.agrees
    assert found.wrong == 1
    assert f"time step {T - 1}, image 1, neuron [7]" in str(found)


@torch.no_grad()
def test_currents_of_right_spikes_are_compared_too(shown):
    net, x, told = shown
    currents, told = other_file(net, x, lambda current: current)
    assert compared(net, x, currents, told) == Compared(0.0)
    worse = currents.clone()
    worse[2, 1, 3] += 2 * CLOSE * currents.abs().max()
    found = compared(net, x, worse, lambda: (worse, *told()[1:]))
    assert (found.agrees, found.wrong, found.hanging) == (False, 0, 0)
    found = compared(net, x, worse, lambda: (worse, worse, told()[2]))
    assert (found.agrees, found.wrong, found.hanging) == (False, 0, 0)
    worse[0, 0, 0] = math.nan
    assert not compared(net, x, worse, lambda: (worse, worse, told()[2])).agrees


def test_how_much_may_hang_on_rounding():
    many = Compared(0.0, spikes=1000, hanging=int(1000 * MOST))
    assert many.agrees
    more = Compared(0.0, spikes=1000, hanging=int(1000 * MOST) + 1)
    assert not more.agrees
    assert more.and_of(many) == Compared(0.0, 2000, more.hanging + many.hanging)
    for both in (Compared(math.nan).and_of(many), many.and_of(Compared(math.nan))):
        assert not both.agrees


SEQUENCE = ("model.name=sequence", "model.width=12", "model.depth=2")
RUNS = {
    "images": lambda: made(IMAGES)._run,
    "recurrent": lambda: made(SIGNALS, *SEQUENCE, "model.recurrent=true")._run,
    "handed": lambda: made(FRAMES, net=Window(kernels.LIF(v_threshold=0.3)))._run,
}
WRITERS = {
    "torch": partial(export_torch, batch_size=3),
    "onnx": partial(export_onnx, batch_size=3),
    "step": partial(export_step, batch_size=3),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("to", WRITERS)
def test_a_file_that_is_wrong_in_one_image_of_three_is_not_written(to, name, tmp_path, monkeypatch):
    """Wrong in a spike of one layer, also where the file tells its spikes."""
    run, path = RUNS[name](), tmp_path / "net"
    assert WRITERS[to](run, path).agrees
    path.unlink()
    own = kernels.SpikingNeuron.walk

    def wrong(neuron, step, current, states, trace):
        out = own(neuron, step, current, states, trace)
        if neuron.backend == "eager":  # the definition
            return out
        third = torch.arange(current.shape[1]).view(1, -1, *[1] * (current.ndim - 2)) == 2
        return Walk(torch.where(third, 1 - out.spikes, out.spikes), out.states, out.trace)

    monkeypatch.setattr(kernels.SpikingNeuron, "walk", wrong)
    found = WRITERS[to](run, path)
    assert not found.agrees
    assert found.wrong > 0
    assert "image 2, neuron" in str(found)
    assert not path.exists()


def test_of_neurons_of_others_each_image_answers_as_the_network_or_as_that_does_beside_it(
    monkeypatch,
):
    pytest.importorskip("snntorch")
    import snntorch

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.neuron = nn.Linear(128, 4), snntorch.Leaky(0.5, init_hidden=True)

        def forward(self, x):
            return self.neuron(4 * self.enter(x.flatten(1)))

    net = made(FRAMES, net=Loop())._run.model
    x = torch.randn(5, 3, *FRAMES.image_shape)
    with torch.no_grad():
        right = net(x)
        assert compared(net, x, right, pytest.fail) == Compared(0.0)
        wrong = right.clone()
        wrong[2, 1, 0] = 1 - wrong[2, 1, 0]
        found = compared(net, x, wrong, pytest.fail)
        assert (found.agrees, found.images) == (False, 0)
        monkeypatch.setattr("spiketriton.export.followed.ROUNDING", 0.05)
        by = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        beside = net(x + 0.05 * x.abs().max() * by)
        assert not torch.equal(beside, right)
        found = compared(net, x, beside, pytest.fail)
        assert found.agrees
        assert 1 <= found.images <= 3
