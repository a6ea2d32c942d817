"""Leaky, made of snnTorch's Leaky and norse's cells: equal, in one call for a window. swap leaves and names them."""

import re

import norse.torch as norse
import pytest
import snntorch
import torch
from norse.torch.functional.iaf import IAFParameters
from norse.torch.functional.lif_box import LIFBoxParameters
from norse.torch.functional.reset import reset_subtract
from snntorch import surrogate, utils
from torch import nn as torch_nn

from spiketriton_kernels.nn import Leaky, swap
from tests.kernels.support import normal

T, B, N = 12, 4, 20


class Tutorial(torch_nn.Module):
    """snnTorch's tutorial 5: two layers, a loop over time steps, the membranes of the last layer recorded."""

    def __init__(self, **options):
        super().__init__()
        self.fc1, self.lif1 = torch_nn.Linear(N, 30), snntorch.Leaky(**({"beta": 0.95} | options))
        self.fc2, self.lif2 = torch_nn.Linear(30, 5), snntorch.Leaky(**({"beta": 0.95} | options))

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk2_rec, mem2_rec = [], []
        for step in range(x.shape[0]):
            spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec), torch.stack(mem2_rec)


class Window(torch_nn.Module):
    """The same layers, the loop over time turned inside out."""

    def __init__(self, net):
        super().__init__()
        self.fc1, self.fc2 = net.fc1, net.fc2
        self.lif1 = Leaky.from_snntorch(net.lif1, return_mem=False)
        self.lif2 = Leaky.from_snntorch(net.lif2)

    def forward(self, x):
        return self.lif2(self.fc2(self.lif1(self.fc1(x))))


def learn(net, x):
    """Spikes, membranes and gradients of the tutorial's loss, the membranes' cross entropy summed over time."""
    net.zero_grad()
    x = x.clone().requires_grad_()
    spikes, mem = net(x)
    target = torch.arange(B) % mem.shape[-1]
    loss = sum(torch_nn.functional.cross_entropy(step, target) for step in mem)
    (loss + (spikes * normal(spikes.shape, seed=3)).sum()).backward()
    gradients = {
        n.replace("v_threshold", "threshold"): p.grad.clone() for n, p in net.named_parameters()
    }
    return spikes.detach(), mem.detach(), gradients | {"x": x.grad}


LEAKY = {
    "default": {},
    "zero": dict(reset_mechanism="zero"),
    "none": dict(reset_mechanism="none", threshold=2.0),
    "zero at once": dict(reset_mechanism="zero", reset_delay=False),
    "learning": dict(learn_beta=True, learn_threshold=True, spike_grad=surrogate.fast_sigmoid(5)),
    "zero, learning": dict(reset_mechanism="zero", learn_beta=True, learn_threshold=True),
    "sigmoid": dict(spike_grad=surrogate.sigmoid(slope=4), threshold=0.5),
}


def inputs(seed=0):
    return normal((T, B, N), seed=seed, mean=0.5, std=2.0)


@pytest.mark.parametrize("kind", LEAKY)
def test_the_tutorials_network_as_a_window(kind):
    """Spikes and membranes bit for bit: the arithmetic is the same, in the same order."""
    torch.manual_seed(0)
    before = Tutorial(**LEAKY[kind])
    expected = learn(before, inputs())
    assert 0.02 < expected[0].mean() < 0.9
    spikes, mem, gradients = learn(Window(before), inputs())
    assert torch.equal(spikes, expected[0])
    assert torch.equal(mem, expected[1])
    assert gradients.keys() == expected[2].keys()
    for name, right in expected[2].items():
        torch.testing.assert_close(gradients[name], right, rtol=1e-4, atol=1e-4, msg=name)
    assert ("lif1.beta" in gradients) == ("learning" in kind)  # the same parameter, of both


def test_a_decay_of_each_neuron():
    beta = torch.linspace(0.5, 0.99, 6)
    before = torch_nn.Sequential(snntorch.Leaky(beta=beta, init_hidden=True, learn_beta=True))
    x = normal((T, B, 6), mean=0.5)
    torch.stack([before(step) for step in x]).sum().backward()
    right, before[0].beta.grad = before[0].beta.grad, None
    window = Leaky.from_snntorch(before[0], return_mem=False)
    spikes = window(x)
    spikes.sum().backward()  # of the same Parameter
    torch.testing.assert_close(before[0].beta.grad, right, rtol=1e-4, atol=1e-5)
    utils.reset(before)
    assert torch.equal(spikes, torch.stack([before(step) for step in x]))


def test_neurons_of_snntorch_and_norse_stay_and_are_named():
    net = torch_nn.ModuleDict(
        {
            "leaky": snntorch.Leaky(beta=0.9),
            "box": norse.LIFBoxCell(),
            "window": norse.IAF(),
            "lif": norse.LIF(),
            "synaptic": snntorch.Synaptic(alpha=0.9, beta=0.8),
            "adex": norse.LIFAdExCell(),
            "recurrent": norse.LIFRecurrentCell(3, 4),
            "container": norse.SequentialState(torch_nn.Linear(2, 2), norse.LICell()),
        }
    )
    kinds = [type(module) for module in net.modules()]
    report = swap(net)
    assert report.swapped == {}
    assert [type(module) for module in net.modules()] == kinds
    assert list(report.left) == [
        *("leaky", "box", "window", "lif", "synaptic", "adex", "recurrent", "container.1"),
    ]
    assert "Leaky.from_snntorch(module) takes a whole window" in report.left["leaky"]
    for name in ("box", "window"):
        assert "Leaky.from_norse(module) takes a whole window" in report.left[name]
    assert "by a synapse" in report.left["lif"]
    assert "known are Leaky" in report.left["synaptic"]
    assert "LIFAdExCell" in report.left["adex"]
    with pytest.raises(ValueError, match=r"accepted: a snntorch\.Leaky"):
        Leaky.from_snntorch(net["synaptic"])
    with pytest.raises(ValueError, match=r"accepted: norse's LIFBoxCell, IAFCell"):
        Leaky.from_norse(net["adex"])
    with pytest.raises(TypeError, match="neuron itself"):
        swap(snntorch.Leaky(beta=0.5))


# ---- norse


def box(**options):
    return norse.LIFBoxCell(LIFBoxParameters(**options), dt=0.004)


def tensor(value):
    return torch.as_tensor(value)


CELLS = {
    "LIFBoxCell": lambda: box(),
    "LIFBoxCell, subtract": lambda: box(reset_method=reset_subtract, v_th=tensor(0.4)),
    "LIFBoxCell, rest at -0.5": lambda: box(v_leak=tensor(-0.5), v_reset=tensor(-0.5)),
    "LIFBoxCell, triangle": lambda: box(method="triangle", alpha=tensor(0.3), v_th=tensor(0.5)),
    "LIFBoxCell, tanh": lambda: box(method="tanh", alpha=tensor(2.0)),
    "LIFBoxCell, heavi_erfc": lambda: box(method="heavi_erfc", alpha=tensor(1.5)),
    "IAFCell": lambda: norse.IAFCell(IAFParameters(v_th=tensor(1.5))),
    "IAF": lambda: norse.IAF(),
}


class Cells(torch_nn.Module):
    """A linear layer and a cell in a loop over time, or over the window where the module is one."""

    def __init__(self, cell):
        super().__init__()
        self.fc, self.cell = torch_nn.Linear(N, 8), cell

    def forward(self, x, state=None):
        x = self.fc(x)
        if hasattr(self.cell, "record_states"):
            spikes, state = self.cell(x, state)
        else:
            out = []
            for step in x:
                spike, state = self.cell(step, state)
                out.append(spike)
            spikes = torch.stack(out)
        return spikes, state.v


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_of_norse_is_equal(kind):
    """Spikes and gradients; a cell that begins at its rest, from there."""
    torch.manual_seed(0)
    before = Cells(CELLS[kind]())
    x, runs = 2 * inputs(), []
    window = Leaky.from_norse(before.cell, stateful=True)
    start = before.cell.p.v_reset if "rest" in kind else None
    window.v = None if start is None else start.expand(B, 8)
    for net in (before, lambda x: window(before.fc(x))):
        given = x.clone().requires_grad_()
        found = net(given)
        spikes = found[0] if isinstance(found, tuple) else found
        before.zero_grad()
        (spikes * normal(spikes.shape, seed=1)).sum().backward()
        runs.append([spikes, given.grad, *(p.grad.clone() for p in before.fc.parameters())])
    assert 0.02 < runs[0][0].mean() < 0.98
    for found, expected in zip(*reversed(runs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def leaky(**options):
    return snntorch.Leaky(beta=0.9, **options)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: leaky(inhibition=True), "inhibition=True"),
        (lambda: leaky(state_quant=lambda x: x), "state_quant"),
        (lambda: leaky(spike_grad=surrogate.triangular()), "surrogate triangular has no equal"),
        (lambda: leaky(spike_grad=torch.relu), "surrogate relu of your own has no equal"),
        (lambda: leaky(reset_delay=False), "subtracts twice"),
        (lambda: box(v_leak=tensor(0.2)), "v_leak 0.2"),
        (lambda: box(method="circ"), "method circ"),
        (lambda: box(v_th=torch.ones((), requires_grad=True)), "v_th is a tensor"),
        (lambda: box(v_th=tensor(-1.0)), "v_th -1.0; accepted: above 0.0"),
        (lambda: box(tau_mem_inv=tensor(1000.0)), "dt * tau_mem_inv = 4.0"),
        (norse.LIFCell, "filters its current by a synapse"),
    ],
)
@pytest.mark.filterwarnings("ignore:Inhibition")
def test_what_has_no_equal_is_left_and_named(make, reason):
    net = torch_nn.Sequential(make())
    kind = type(net[0])
    assert reason in swap(net).left["0"]
    assert type(net[0]) is kind
    read = Leaky.from_snntorch if kind is snntorch.Leaky else Leaky.from_norse
    with pytest.raises(ValueError, match=re.escape(reason)):
        read(net[0])


def test_leaky_keeps_membranes_as_it_is_told():
    x = inputs()
    window, steps = Leaky(0.9, reset_delay=True), Leaky(0.9, reset_delay=True, step_mode="s")
    assert torch.equal(torch.stack([steps(step) for step in x]), window(x))
    stored = Leaky(0.9, reset_delay=True, return_mem=True, store_v_seq=True)
    assert stored(x)[1] is stored.v_seq
    stepped = Leaky(0.9, reset_delay=True, return_mem=True, step_mode="s")
    assert torch.equal(torch.stack([stepped(step)[1] for step in x]), stored.v_seq)
    assert window.takes_norm
    assert not stored.takes_norm
    assert "beta=0.9" in repr(window)
    with pytest.raises(ValueError, match=r"beta 1\.5: accepted: a number from 0 to 1"):
        Leaky(1.5)
    with pytest.raises(ValueError, match="accepted: detach_reset=True"):
        Leaky(0.5, reset_delay=True, detach_reset=False)
