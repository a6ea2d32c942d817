"""Networks in the manner of public code, trained as they are: the numbers of a loop of one's own, or refused."""

import pytest
import torch
from torch import Tensor, nn

from spiketriton.config.parts import find
from spiketriton.system.errors import UserError
from spiketriton_kernels.adopt.draws import seeded
from tests.models.test_foreign import CLASSES, T, build, by_hand

for library in ("spikingjelly", "snntorch", "norse"):
    pytest.importorskip(library)

HERE = "tests.models.public_nets"
# the name: how many neurons are ours then, and how many of them with the norm in front
NETS = {
    "sew": (6, 6),
    "bottlenecks": (9, 9),
    "ms": (7, 3),
    "attention": (7, 3),
    "multi_attention": (4, 0),
    "max_former": (17, 4),
    "spike_driven": (12, 4),
    "FullyConnected": (1, 0),
    "VotingGesture": (4, 2),
    "SequentialRows": (3, 0),
    "ParallelNeurons": (3, 0),
    "SpikingLSTM": (0, 0),
    "ThresholdNorm": (2, 0),
    "Tutorial5Spikes": (0, 0),
    "Tutorial6": (0, 0),
    "Regression": (0, 0),
    "Synapses": (0, 0),
    "NorseConv": (0, 0),
    "NorseEncoded": (0, 0),
    "NorsePoisson": (0, 0),
    "NorseMemory": (0, 0),
    "NorseLifted": (0, 0),
    "NorseZoo": (0, 0),
    "TetMean": (0, 0),
    "MembraneShortcut": (0, 0),
    "TimeLast": (0, 0),
    "Gated": (0, 0),
    "Sltt": (0, 0),
    "EffectiveNorm": (1, 0),
    "Attended": (2, 1),
    "Parametrised": (2, 2),
    "NoisyCurrents": (2, 1),
    "RoundedInTests": (2, 1),
    "OtherThreshold": (2, 2),
    "StochasticDepth": (2, 0),
    "FakeQuantised": (2, 1),
    "FrozenStem": (2, 2),
    "Reparametrised": (2, 2),
    "IntegersInTraining": (1, 1),
    "EarlyExit": (2, 0),
}
MORE = {"SequentialRows": ["time_steps=8"]}


def original(name: str) -> nn.Module:
    torch.manual_seed(0)
    known = {"num_classes": CLASSES, "in_channels": 1, "T": T, "num_steps": T}
    make = find("models", f"{HERE}:{name}").make
    code = getattr(make, "__code__", None) or make.__init__.__code__
    return make(**{n: v for n, v in known.items() if n in code.co_varnames})


def awake(net: nn.Module) -> nn.Module:
    """Norms that let signals of three batches through in a test, too."""
    for norm in net.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.momentum = 0.5
            nn.init.constant_(norm.weight, 1.5)
            nn.init.constant_(norm.bias, 0.4)
    return net


def trained(net: nn.Module, answer, batches: Tensor) -> list[Tensor]:
    """Answers in eval and in training mode over steps of SGD, and in eval mode after them."""
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    labels, found = torch.arange(len(batches[0])), []

    def test():
        with torch.no_grad(), seeded():
            found.append(answer(net.eval(), batches[0]))

    test()
    for images in batches:
        optimizer.zero_grad()
        with seeded():
            found.append(answer(net.train(), images))
        nn.functional.cross_entropy(found[-1].mean(0), labels).backward()
        optimizer.step()
    test()
    return [f.detach() for f in found]


@pytest.mark.parametrize("name", NETS)
def test_it_trains_as_in_a_loop_of_its_own(name):
    ours, theirs = build(f"{HERE}:{name}", *MORE.get(name, [])), awake(original(name))
    awake(ours.net)
    batches = 6 * torch.randn(3, 4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    found = trained(ours, lambda net, images: net(images), batches)
    expected = trained(theirs, lambda net, images: by_hand(net, ours.takes, images), batches)
    assert (expected[1] != expected[1][:, :1]).any()  # in training mode the images count
    assert (expected[-1] != expected[-1][:, :1]).any()
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-3, atol=1e-4)
    state = ours.net.state_dict()
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=1e-3, atol=1e-4, msg=key)
    moved = [k for k, v in original(name).named_parameters() if not torch.equal(v, state[k])]
    assert 2 * len(moved) >= sum(1 for _ in theirs.parameters())
    assert (len(ours.swapped.swapped), len(ours.swapped.fused)) == NETS[name]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Tutorial5", "returned a tuple of 2; accepted: one tensor, [T, B, K]"),
        ("Tet", "returned [B, T, K] = [2, 3, 10]; accepted: one tensor"),
        ("SequentialRows", "shows fc.1 8 time steps, and time_steps = 3; accepted: time_steps = 8"),
        ("Auxiliary", "answers with another thing in training mode, dict; accepted: one tensor"),
        ("Features", "returned a dict of 2; accepted: one tensor"),
        (
            "FoundByClass",
            "answers otherwise with the kernels' neurons than with its own: outputs differ by",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(name, words):
    with pytest.raises(UserError) as refused:
        build(f"{HERE}:{name}")
    assert words in str(refused.value)
    assert name in str(refused.value)
