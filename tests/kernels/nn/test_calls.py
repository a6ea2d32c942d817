"""snnTorch's Leaky and norse's cells on our kernels: called as before, equal, and in one call for a whole window."""

import copy
import io
import re

import norse.torch as norse
import pytest
import snntorch
import torch
from norse.torch.functional.iaf import IAFParameters
from norse.torch.functional.lif import LIFParameters
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
def test_the_tutorials_network_swapped_and_as_a_window(kind):
    """Spikes and membranes bit for bit: the arithmetic is the same, in the same order."""
    torch.manual_seed(0)
    before = Tutorial(**LEAKY[kind])
    after = copy.deepcopy(before)
    report = swap(after)
    assert report.swapped == {"lif1": "Leaky on our kernel", "lif2": "Leaky on our kernel"}
    expected = learn(before, inputs())
    assert 0.02 < expected[0].mean() < 0.9
    for net in (after, Window(before)):
        spikes, mem, gradients = learn(net, inputs())
        assert torch.equal(spikes, expected[0])
        assert torch.equal(mem, expected[1])
        assert gradients.keys() == expected[2].keys()
        for name, right in expected[2].items():
            torch.testing.assert_close(gradients[name], right, rtol=1e-4, atol=1e-4, msg=name)
    assert ("lif1.beta" in gradients) == ("learning" in kind)  # the same parameter, of both


def test_hidden_states_are_reset_by_utils_reset():
    def make():
        return torch_nn.Sequential(
            torch_nn.Linear(N, 6), snntorch.Leaky(beta=0.9, init_hidden=True, output=True)
        )

    before, after = make(), make()  # not copies, which utils.reset does not know
    after.load_state_dict(before.state_dict())
    swap(after)
    for net in (before, after):
        net.outs = []
        for window in range(2):
            utils.reset(net)
            net.outs += [net(x) for x in inputs(window)]
    for found, expected in zip(after.outs, before.outs, strict=True):
        assert all(map(torch.equal, found, expected))
    with pytest.raises(TypeError, match="init_hidden=True"):
        after[1](torch.zeros(B, 6), torch.zeros(B, 6))


def test_the_object_its_keys_its_hooks_and_its_class_stay():
    net, seen = Tutorial(learn_beta=True), []
    lif, keys = net.lif1, list(net.state_dict())
    lif.register_forward_hook(lambda *_: seen.append(1))
    swap(net)
    assert net.lif1 is lif
    assert isinstance(lif, snntorch.Leaky)
    assert list(net.state_dict()) == keys
    net(inputs())
    assert len(seen) == T
    assert swap(net).swapped == {}
    with torch.no_grad():
        expected = net(inputs())
    twin = copy.deepcopy(net)
    assert type(twin.lif1) is type(net.lif1)
    assert torch.equal(twin(inputs())[1], expected[1])


def test_a_decay_of_each_neuron():
    beta = torch.linspace(0.5, 0.99, 6)
    before = torch_nn.Sequential(snntorch.Leaky(beta=beta, init_hidden=True, learn_beta=True))
    after = copy.deepcopy(before)
    swap(after)
    x = normal((T, B, 6), mean=0.5)
    for net in (before, after):
        torch.stack([net(step) for step in x]).sum().backward()
    torch.testing.assert_close(after[0].beta.grad, before[0].beta.grad, rtol=1e-4, atol=1e-5)
    window = Leaky.from_snntorch(before[0], return_mem=False)
    utils.reset(before)
    assert torch.equal(window(x), torch.stack([before(step) for step in x]))
    with pytest.raises(ValueError, match=r"\(6,\) with an input of shape \(4, 6, 2\)"):
        after(torch.zeros(B, 6, 2))


def test_other_neurons_of_snntorch_and_norse_are_named():
    net = torch_nn.ModuleDict(
        {
            "synaptic": snntorch.Synaptic(alpha=0.9, beta=0.8),
            "adex": norse.LIFAdExCell(),
            "recurrent": norse.LIFRecurrentCell(3, 4),
            "container": norse.SequentialState(torch_nn.Linear(2, 2), norse.LICell()),
        }
    )
    report = swap(net)
    assert report.swapped == {}
    assert list(report.left) == ["synaptic", "adex", "recurrent", "container.1"]
    assert "swapped are Leaky" in report.left["synaptic"]
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
    "LIFCell": lambda: norse.LIFCell(LIFParameters(v_th=tensor(0.3))),
    "IAF": lambda: norse.IAF(),
    "LIF": lambda: norse.LIF(LIFParameters(v_th=tensor(0.3))),
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
    torch.manual_seed(0)
    before = Cells(CELLS[kind]())
    after = copy.deepcopy(before)
    report = swap(after)
    assert report.swapped == {"cell": f"{kind.partition(',')[0]} on our kernel"}
    x = 2 * inputs()
    runs = []
    for net in (before, after):
        given = x.clone().requires_grad_()
        spikes, v = net(given)
        (
            (spikes * normal(spikes.shape, seed=1)).sum() + (v * normal(v.shape, seed=2)).sum()
        ).backward()
        runs.append([spikes, v, given.grad, *(p.grad for p in net.parameters())])
    assert 0.02 < runs[0][0].mean() < 0.98
    for found, expected in zip(*reversed(runs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    state = after.cell.state_fallback(x[0])
    assert torch.equal(copy.deepcopy(after)(x)[0], runs[1][0])
    if kind.startswith("IAF"):  # norse's other parameters have no pickle
        file = io.BytesIO()
        torch.save(after, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(x)[0], runs[1][0])
    assert type(after.cell(before.fc(x if "Cell" not in kind else x[0]), None)[1]) is type(state)
    if kind.startswith(("LIFBox", "IAF")):
        for cell in (before.cell, after.cell):
            window = Leaky.from_norse(cell)
            if "rest" not in kind:
                torch.testing.assert_close(window(before.fc(x)), runs[0][0])


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
        (lambda: norse.LIF(record_states=True), "record_states=True"),
    ],
)
@pytest.mark.filterwarnings("ignore:Inhibition")
def test_what_has_no_equal_is_left_and_named(make, reason):
    net = torch_nn.Sequential(make())
    kind = type(net[0])
    assert reason in swap(net).left["0"]
    assert type(net[0]) is kind
    read = Leaky.from_snntorch if kind is snntorch.Leaky else Leaky.from_norse
    with pytest.raises(ValueError, match=f"{re.escape(reason)}|by a synapse"):
        read(net[0])


def test_a_sequence_of_norse_with_states_is_checked():
    net = norse.SequentialState(torch_nn.Linear(N, 8), box(), torch_nn.Linear(8, 3), box())
    x = normal((B, N), std=3.0)
    report = swap(net, check=x)
    assert list(report.swapped) == ["1", "3"]
    assert report.check["outputs"] < 1e-6
    _, state = net(x)
    spikes, _ = net(x, state)
    assert spikes.shape == (B, 3)


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
