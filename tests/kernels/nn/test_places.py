"""swap(net, relu=...): every place at which a network calls a ReLU gets a neuron of its own, or is named."""

import copy
import pickle

import pytest
import torch
from torch import nn as torch_nn
from torch.nn import functional as F

from spiketriton_kernels import nn
from spiketriton_kernels.nn import swap
from tests.kernels.support import normal

T, B, C = 6, 3, 4


class Block(torch_nn.Module):
    """As torchvision's: one ReLU, called twice."""

    def __init__(self, relu=None):
        super().__init__()
        self.enter, self.leave = torch_nn.Linear(C, C), torch_nn.Linear(C, C)
        self.relu = relu or torch_nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.leave(self.relu(self.enter(x))) + x)


class Net(torch_nn.Module):
    def __init__(self, block=Block, **options):
        super().__init__()
        self.stem, self.act = torch_nn.Linear(2, C), torch_nn.ReLU()
        self.blocks = torch_nn.Sequential(block(**options), block(**options))
        self.head = torch_nn.Linear(C, 3)

    def forward(self, x):
        return self.head(self.blocks(self.act(self.stem(x))))


def lively(net):
    torch.manual_seed(0)
    for parameter in net.parameters():
        parameter.data = 1.5 * torch.randn_like(parameter)
    return net


class ByHand(torch_nn.Module):
    """The same with a neuron at each place."""

    def __init__(self, net, neuron):
        super().__init__()
        self.net, self.neurons = net, torch_nn.ModuleList(copy.deepcopy(neuron) for _ in range(5))

    def forward(self, x):
        stem, *rest = self.neurons
        x = stem(self.net.stem(x))
        for i, block in enumerate(self.net.blocks):
            one, two = rest[2 * i : 2 * i + 2]
            x = two(block.leave(one(block.enter(x))) + x)
        return self.net.head(x)


def steps(net, x):
    return torch.stack([net(step) for step in x])


@pytest.mark.parametrize("shared", [False, True], ids=["a ReLU a block", "one of both blocks"])
def test_each_place_has_a_membrane_of_its_own(shared):
    """Windows, steps and chunks answer alike, and as neurons that were put in place by hand."""
    net = lively(Net(relu=torch_nn.ReLU()) if shared else Net())
    if shared:
        net.blocks[1].relu = net.blocks[0].relu
    x = normal((T, B, 2), std=2.0)
    by_hand = ByHand(copy.deepcopy(net), nn.LIF())(x)
    keys = net.state_dict().keys()
    whole, chunks = copy.deepcopy(net), copy.deepcopy(net)
    names = set(swap(whole, relu=nn.LIF()).swapped)
    assert torch.equal(whole(x), by_hand)
    swap(chunks, relu=nn.LIF(stateful=True))
    assert torch.equal(torch.cat([chunks(x[:1]), chunks(x[1:4]), chunks(x[4:])]), by_hand)
    report = swap(net, relu=nn.LIF(step_mode="s"))
    for twin in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(steps(twin, x), by_hand)
        for neuron in (m for m in twin.modules() if isinstance(m, nn.SpikingNeuron)):
            neuron.reset()
        torch.testing.assert_close(steps(twin, x), by_hand)
    assert net.state_dict().keys() == keys
    assert set(report.swapped) == names
    assert len(report.swapped) == (9 if shared else 5)  # of the first block's name and the second's
    assert report.swapped["act"] == "ReLU -> LIF"
    total = 4 if shared else 2
    assert report.swapped["blocks.0.relu.1"] == f"ReLU, its call 2 of {total} -> LIF"
    assert not report.left


def test_neurons_that_share_a_membrane_answer_otherwise():
    """The control: why one neuron at both places is wrong."""
    net, x = lively(Net()), normal((T, B, 2), std=2.0)
    by_hand = ByHand(copy.deepcopy(net), nn.LIF())(x)
    net.act = nn.LIF(step_mode="s")
    for block in net.blocks:
        block.relu = nn.LIF(step_mode="s")
    assert (steps(net, x) - by_hand).abs().max() > 0.1


def test_gradients_learnt_constants_and_modes_are_those_of_each_place():
    net, x = lively(Net()).eval(), normal((T, B, 2), std=2.0)
    seen = []
    net.blocks[0].relu.register_forward_hook(lambda m, given, out: seen.append(out.shape))
    by_hand = ByHand(copy.deepcopy(net), nn.PLIF(init_tau=2.0))
    swap(net, relu=nn.PLIF(init_tau=2.0))
    assert not any(m.training for m in net.modules())
    for one in (net, by_hand):
        one(x).square().sum().backward()
    own = [n.w.grad for n in net.modules() if isinstance(n, nn.PLIF)]
    for found, expected in zip(own, [n.w.grad for n in by_hand.neurons], strict=True):
        assert torch.equal(found, expected)
        assert found != 0
    assert len(seen) == 2  # the ReLU's hooks see both calls


def test_a_forward_that_failed_and_one_that_calls_otherwise():
    net, x = lively(Net()), normal((T, B, 2), std=2.0)
    swap(net, relu=nn.LIF(step_mode="s"))
    before = steps(net, x)
    for neuron in (m for m in net.modules() if isinstance(m, nn.SpikingNeuron)):
        neuron.reset()
    handle = net.blocks[0].leave.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        net(x[0])
    handle.remove()
    for neuron in (m for m in net.modules() if isinstance(m, nn.SpikingNeuron)):
        neuron.reset()
    assert torch.equal(steps(net, x), before)
    with pytest.raises(
        RuntimeError,
        match=r"blocks.0.relu has 2 neurons.*once more; accepted: a forward of the net",
    ):
        net.blocks[0](torch.zeros(B, C))
    net.blocks[0] = torch_nn.Identity()
    with pytest.raises(
        RuntimeError, match=r"blocks.0.relu has 2 neurons.* is called 0 times; accepted: a forward"
    ):
        net(x[0])


def test_batch_norms_in_front_are_fused_at_each_place():
    class Normed(torch_nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = torch_nn.Linear(C, C), torch_nn.Linear(C, C)
            self.bn1, self.bn2, self.relu = (
                torch_nn.BatchNorm1d(C),
                torch_nn.BatchNorm1d(C),
                torch_nn.ReLU(),
            )

        def forward(self, x):
            y = self.relu(self.bn1(self.one(x.flatten(0, 1))).reshape(x.shape))
            return self.relu(self.bn2(self.two(y.flatten(0, 1))).reshape(x.shape))

    net, x = lively(Normed()), normal((T, B, C), std=2.0)
    plain = copy.deepcopy(net)
    swap(plain, relu=nn.LIF())
    report = swap(net, relu=nn.LIF(), fuse=True)
    assert report.fused == {"relu.0": "bn1", "relu.1": "bn2"}
    assert torch.equal(net(x), plain(x))


class Functional(Block):
    def forward(self, x):
        return F.relu(self.leave(torch.relu(self.enter(x))) + x.relu())


class Branching(Block):
    def forward(self, x):
        return self.relu(x) if x.sum() > 0 else x


class ByMode(Block):
    def forward(self, x):
        return self.relu(self.relu(x)) if self.training else self.relu(x)


class Auxiliary(Block):
    def forward(self, x):
        return self.relu(self.relu(x)) if self.training else x


class OnceInTraining(Block):
    def forward(self, x):
        return self.relu(x) if self.training else x


class Unused(Block):
    def forward(self, x):
        return self.enter(x)


def test_what_keeps_its_relu_is_named():
    report = swap(Net(Functional), relu=nn.LIF())
    assert set(report.swapped) == {"act"}
    assert report.left.keys() >= {"blocks.0.forward", "blocks.1.forward"}
    assert "calls relu as a function" in report.left["blocks.0.forward"]
    net = Net(Branching)
    report = swap(net, relu=nn.LIF())
    assert not report.swapped
    assert report.left["act"].startswith("torch.fx cannot trace Net.forward")
    assert type(net.act) is torch_nn.ReLU
    report = swap(Net(ByMode), relu=nn.LIF())
    assert (
        report.left["blocks.0.relu"]
        == "it is called 2 times in training mode and 1 times in eval mode"
    )
    report = swap(Net(Auxiliary), relu=nn.LIF())
    assert (
        report.left["blocks.1.relu"]
        == "it is called 2 times in training mode and 0 times in eval mode"
    )
    net = Net(OnceInTraining).eval()
    assert set(swap(net, relu=nn.LIF()).swapped) == {"act", "blocks.0.relu", "blocks.1.relu"}
    net(normal((T, B, 2)))
    assert swap(Net(Unused), relu=nn.LIF()).left["blocks.1.relu"].startswith("no forward calls it")
    layer = torch_nn.Sequential(torch_nn.TransformerEncoderLayer(4, 2, 8))
    assert "calls relu as a function" in swap(layer, relu=nn.LIF()).left["0"]


def test_what_is_no_neuron_or_is_to_be_compared_is_refused():
    net = Net()
    with pytest.raises(
        TypeError, match=r"relu is a type; accepted: a SpikingNeuron, such as LIF\(\)"
    ):
        swap(net, relu=nn.LIF)
    with pytest.raises(ValueError, match="check compares answers, and with relu they are others"):
        swap(net, relu=nn.LIF(), check=torch.zeros(T, B, 2))
    assert type(net.act) is torch_nn.ReLU
