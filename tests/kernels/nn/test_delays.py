"""Learnable delays: the definition, autograd's gradients, and what a neuron's window asks of every layer."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from spiketriton_kernels import Surrogate, nn
from tests.covering import each
from tests.kernels.support import normal

SHAPES = {  # T, B, inputs, outputs, longest
    "odd": (13, 3, 7, 5, 4),
    "one of each": (1, 1, 1, 1, 1),
    "longer than the window": (3, 2, 4, 3, 7),
    "many": (20, 3, 9, 11, 16),
}
every_shape = pytest.mark.parametrize("shape", SHAPES)


def made(shape, dtype=torch.float64, **options):
    """The module, narrowed half way, an input and an upstream gradient."""
    steps, batch, inputs, outputs, longest = SHAPES[shape]
    torch.manual_seed(0)
    delays = nn.Delays(inputs, outputs, longest, **options).to(dtype)
    delays.anneal(0.25)
    x = normal((steps, batch, inputs), dtype)
    return delays, x, normal((steps, batch, outputs), dtype, seed=1)


def written_out(delays, x):
    """One synapse, delay and step at a time, from the paper."""
    longest, sigma = delays.longest, float(delays.sigma)
    y = []
    for o in range(delays.out_features):
        current = torch.zeros(x.shape[:2], dtype=x.dtype)
        for i in range(delays.in_features):
            delay = longest * delays.position[o, i]
            gauss = [torch.exp(-(((d - delay) / sigma) ** 2) / 2) for d in range(longest + 1)]
            if not delays.training:
                nearest = min(range(longest + 1), key=lambda d: abs(d - delay.item()))
                gauss = [float(d == nearest) for d in range(longest + 1)]
            for d in range(min(longest + 1, len(x))):
                share = gauss[d] / sum(gauss)
                past = torch.cat([torch.zeros(d, x.shape[1], dtype=x.dtype), x[: len(x) - d, :, i]])
                current = current + delays.weight[o, i] * share * past
        y.append(current)
    y = torch.stack(y, 2)
    return y if delays.bias is None else y + delays.bias


def learnt(call, delays, x, upstream):
    x = x.clone().requires_grad_()
    y = call(x)
    wanted = [x, *delays.parameters()]
    return y.detach(), *torch.autograd.grad(y, wanted, upstream, materialize_grads=True)


@pytest.mark.parametrize(("shape", "mode"), each([*SHAPES], ["train", "eval"]))
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_answers_and_gradients_are_the_definitions(shape, mode, bias):
    delays, x, upstream = made(shape, bias=bias)
    if bias:
        torch.nn.init.normal_(delays.bias)
    delays.train(mode == "train")
    expected = learnt(lambda x: written_out(delays, x), delays, x, upstream)
    for call in (delays, delays.define):
        for ours, theirs in zip(learnt(call, delays, x, upstream), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@every_shape
def test_gradients_are_finite_differences(shape):
    """By input, weight and position."""
    delays, x, _ = made(shape)

    def answer(x, weight, position):
        return torch.func.functional_call(delays, {"weight": weight, "position": position}, x)

    if shape == "many":
        x = x[:6, :1].clone()
    tensors = (x.requires_grad_(), delays.weight, delays.position)
    assert torch.autograd.gradcheck(answer, tensors, fast_mode=shape == "many")


@every_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_no_more_than_that_of_a_convolution(shape, dtype):
    """Against float64 at the same numbers: at most twice PyTorch's own, of answer and gradients."""
    delays, x, upstream = made(shape, dtype)
    wide = copy.deepcopy(delays).double()
    wide.sigma.fill_(float(delays.sigma))

    def convolved(x):
        kernel = delays.kernel().to(x.dtype).permute(1, 2, 0).flip(2)
        return F.conv1d(F.pad(x.permute(1, 2, 0), (delays.longest, 0)), kernel).permute(2, 0, 1)

    exact = learnt(wide, wide, x.double(), upstream.double())
    ours, theirs = (learnt(call, delays, x, upstream) for call in (delays, convolved))
    for one, other, true in zip(ours, theirs, exact, strict=True):
        assert one.dtype == dtype
        small = torch.finfo(dtype).eps * true.abs().mean()
        bar = 2 * (other - true).square().mean().sqrt()
        assert (one - true).square().mean().sqrt() <= bar + small


def test_a_synapse_reads_one_step_in_evaluation():
    delays = nn.Delays(3, 2, 4).eval()
    with torch.no_grad():
        delays.weight.fill_(1.0)
        delays.position.copy_(torch.tensor([[0.0, 0.3, 1.0], [0.51, 0.9, 0.13]]))
    assert delays.delays().tolist() == [[0, 1, 4], [2, 4, 1]]
    assert torch.equal(delays.kernel().count_nonzero(0), torch.ones(2, 3, dtype=torch.int64))
    x = torch.zeros(6, 1, 3)
    x[0, 0] = torch.tensor([1.0, 2.0, 4.0])
    assert delays(x)[:, 0].T.tolist() == [[1, 2, 0, 0, 4, 0], [0, 4, 1, 0, 2, 0]]
    with torch.no_grad():
        delays.position.copy_(
            torch.tensor([[-0.4, 1.2, 0.5]] * 2)
        )  # an optimizer's step went too far
    assert delays.delays().tolist() == [[0, 4, 2]] * 2


def test_annealing_goes_from_half_the_longest_to_half_a_step():
    delays = nn.Delays(2, 2, 8)
    assert delays.sigma == 4
    delays.anneal(0.25)
    assert math.isclose(delays.sigma, math.sqrt(4 * 0.5), rel_tol=1e-6)
    for share in (0.5, 0.7, 1.0):
        delays.anneal(share)
        assert delays.sigma == 0.5
    with torch.no_grad():
        delays.position.copy_(torch.tensor([[-0.4, 1.2], [0.5, 0.0]]))
    delays.anneal(1.0)
    assert delays.position.tolist() == [[0, 1], [0.5, 0]]
    with pytest.raises(ValueError, match=r"share 1\.5: accepted: 0 to 1"):
        delays.anneal(1.5)


def test_a_delay_is_learnt():
    """An echo six steps later, from a synapse that begins without delay."""
    torch.manual_seed(0)
    delays = nn.Delays(1, 1, 8)
    with torch.no_grad():
        delays.weight.fill_(0.5)
        delays.position.zero_()
    x = torch.randn(64, 4, 1)
    echo = torch.cat([torch.zeros(6, 4, 1), x[:-6]])
    optimizer, steps = torch.optim.Adam(delays.parameters(), 0.03), 150
    for step in range(steps):
        delays.anneal(step / steps)
        loss = F.mse_loss(delays(x), echo)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert delays.delays().item() == 6
    assert F.mse_loss(delays.eval()(x), echo) < 0.05


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_chunks_give_what_the_window_gives(dtype):
    delays, x, _ = made("odd", dtype)
    for mode in (True, False):
        delays.train(mode)
        whole = delays(x)
        delays.stateful = True
        for lengths in ([1] * 13, [2, 1, 3, 1, 6], [6, 7]):
            delays.reset()
            chunks = torch.cat([delays(chunk) for chunk in x.split(lengths)])
            if dtype == torch.float64:
                torch.testing.assert_close(chunks, whole, rtol=1e-12, atol=1e-12)
            else:
                torch.testing.assert_close(chunks, whole)
        delays.stateful = False


def test_gradients_reach_through_chunks_until_they_are_cut():
    delays, x, upstream = made("odd")
    _, whole, *_ = learnt(delays, delays, x, upstream)
    delays.stateful = True
    _, parts, *_ = learnt(
        lambda x: torch.cat([delays(c) for c in x.split([5, 8])]), delays, x, upstream
    )
    torch.testing.assert_close(parts, whole)
    delays.reset()
    x.requires_grad_()
    delays(x[:5])
    delays.detach()
    (grad,) = torch.autograd.grad(delays(x[5:]).sum(), x)
    assert not grad[:5].any()
    assert copy.deepcopy(delays).held is not None
    with pytest.raises(ValueError, match=r"reset\(\) starts a new window"):
        delays(x[:, :2])


@every_shape
def test_without_gradients_from_step_to_step(shape):
    delays, x, upstream = made(shape)
    whole = delays(x)
    delays.cut_time = True
    y, grad, *_ = learnt(delays, delays, x, upstream)
    assert torch.equal(y, whole)
    torch.testing.assert_close(grad, upstream @ delays.kernel()[0])


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_whole(mode, dtype):
    delays, x, upstream = made("odd", dtype, bias=True)
    delays.train(mode == "train")
    expected = learnt(delays, delays, x, upstream)
    found = learnt(torch.compile(delays, fullgraph=True), delays, x, upstream)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_autocast_decides_the_dtype():
    delays, x, _ = made("odd", torch.float32, bias=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = delays(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), delays(x), rtol=0.05, atol=0.05)


class Own(nn.SpikingNeuron):
    states = ("v", "a")

    def __init__(self):
        super().__init__(surrogate=Surrogate("atan", height=1.0, width=0.3))

    def step(self, x, v, a):
        h = 0.5 * v + x
        s = self.fire(h - 0.4 - 0.2 * a)
        return s, torch.where(s > 0, 0.0, h), 0.9 * a + 0.1 * s


def test_a_neuron_of_ones_own_behind_it_with_a_norm():
    delays, x, _ = made("many", torch.float32)
    layer = nn.BatchNormLIF(11, Own())
    spikes = layer(delays(x))
    assert 0.02 < spikes.mean() < 0.9
    current = F.batch_norm(delays(x).flatten(0, 1), None, None, layer.weight, layer.bias, True)
    assert torch.equal(spikes, layer.neuron.define(current.view(spikes.shape)))
    spikes.sum().backward()
    assert delays.position.grad.any()
    assert delays.weight.grad.any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 2, 3), "inputs 0: accepted: an integer of at least 1"),
        ((2, True, 3), "outputs True"),
        ((2, 2, 2.5), r"longest 2\.5"),
    ],
)
def test_a_size_that_is_none(arguments, words):
    with pytest.raises(ValueError, match=words):
        nn.Delays(*arguments)


def test_an_input_that_is_none():
    delays = nn.Delays(3, 2, 4)
    for x in (
        torch.zeros(4, 3),
        torch.zeros(4, 2, 2),
        torch.zeros(0, 2, 3),
        torch.ones(4, 2, 3).long(),
    ):
        with pytest.raises(ValueError, match=r"accepted: floating point \[T, B, 3\]"):
            delays(x)
    x = torch.randn(4, 2, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(delays(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
