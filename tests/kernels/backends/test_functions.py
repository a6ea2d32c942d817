"""Functions such as tanh in C++: the numbers of PyTorch's own, to the bit."""

import functools

import pytest
import torch
from torch.nn import functional as F

from spiketriton_kernels.backends import functions as theirs
from spiketriton_kernels.backends import native
from spiketriton_kernels.backends.choice import use_backend
from spiketriton_kernels.nn import SpikingNeuron
from spiketriton_kernels.surrogate import Surrogate
from tests.conftest import need_native
from tests.kernels.support import normal

STEPS = {
    "of arrays": lambda z: (
        torch.exp(-z * z)
        - torch.log(0.1 + z * z) * torch.tanh(z)
        + torch.sin(z) * torch.cos(3 * z) * torch.erf(z)
    ),
    "of vectors": lambda z: torch.expm1(z.clamp(max=1)) - torch.log1p(z.abs()),
    "of a sigmoid": lambda z: torch.sigmoid(3 * z) - F.softplus(z),
}
CHUNK = 32
"""Of a tensor's last elements, fewer than this, PyTorch computes sigmoid and softplus by other functions."""
SIZES = (1, 15, 31, 64, 65, 129, 4097)


class Applies(SpikingNeuron):
    """A function between the states."""

    states = ("v",)

    def __init__(self, name: str, **options) -> None:
        super().__init__(surrogate=Surrogate("sigmoid", height=1.0, width=2.0), **options)
        self.name = name

    def step(self, x: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = STEPS[self.name](0.5 * v + x)
        return self.fire(h + x - 0.5), h - 0.25 * h.abs()


@pytest.fixture(autouse=True)
def native_backend():
    need_native()
    with use_backend("native"):
        yield


@pytest.fixture(params=["this machine's vectors", "AVX2"])
def machine(request, monkeypatch):
    """Vectors of eight floats, too, where the processor has longer ones."""
    if request.param == "AVX2":
        if "avx2" not in native._machine() or torch.backends.cpu.get_cpu_capability() != "AVX512":
            pytest.skip("a processor with AVX-512 can do as one with AVX2")
        again(monkeypatch)
        monkeypatch.setattr(native, "_EXTRAS", (("-march=haswell", "-fopenmp"),))
    return request.param


def again(monkeypatch):
    """Libraries are looked for as in a new process."""
    monkeypatch.setattr(native, "load", functools.cache(native.load.__wrapped__))
    monkeypatch.setattr(native, "_loaded", {})
    monkeypatch.setattr(theirs, "_known", {})


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int64 if x.dtype == torch.float64 else torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", STEPS)
def test_states_are_the_loops_to_the_bit(name, dtype, machine):
    """After four steps, at sizes of whole and part vectors and groups."""
    if machine == "AVX2" and dtype != torch.float32:
        pytest.skip("each dtype takes seconds to compile")
    addresses = found(torch.float64 if dtype == torch.float64 else torch.float32)
    if not any(map(any, addresses)):
        pytest.skip("this PyTorch shows none of its functions")
    assert all(map(any, addresses))
    for size in SIZES:
        neuron = Applies(name, stateful=True)
        x = normal((4, size), std=1.5).to(dtype)
        neuron(x)
        v = torch.zeros(size, dtype=torch.promote_types(dtype, torch.float32))
        for current in x.to(v.dtype):
            _, v = neuron.step(current, v)
        sure = size // CHUNK * CHUNK if name == "of a sigmoid" else size
        assert torch.equal(bits(neuron.held[0][:sure]), bits(v[:sure]))
        torch.testing.assert_close(neuron.held[0], v)


def found(dtype: torch.dtype) -> list[theirs.Address]:
    """Where a library has its functions."""
    Applies("of arrays")(normal((1, 2)).to(dtype))
    return next(
        iter(theirs._known[key] for key in theirs._known if key[0] == (dtype == torch.float64))
    )


def test_without_pytorchs_functions_a_step_has_its_own(monkeypatch):
    monkeypatch.setattr(theirs, "_libraries", list)
    again(monkeypatch)
    for name in STEPS:
        neuron, x = Applies(name), normal((3, 65), std=1.5)
        assert (neuron(x) != neuron.define(x)).sum() <= 1
        torch.testing.assert_close(*states(neuron, x))
    assert not any(map(any, found(torch.float32)))


def states(neuron, x):
    neuron.stateful = True
    neuron(x)
    v = torch.zeros_like(x[0])
    for current in x:
        _, v = neuron.step(current, v)
    return neuron.held[0], v


def test_what_gives_other_numbers_is_not_called(monkeypatch):
    """As where PyTorch computes by another library than the one that is found."""
    wrong = theirs.FUNCTIONS[2]._replace(of_torch=lambda x: torch.tanh(x) + 1e-7)
    changed = [*theirs.FUNCTIONS]
    changed[2] = wrong
    monkeypatch.setattr(theirs, "FUNCTIONS", tuple(changed))
    again(monkeypatch)
    addresses = found(torch.float32)
    assert not any(addresses[2])
    assert any(map(any, addresses))
