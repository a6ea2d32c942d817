"""Residual blocks: their equations, how they start, and one operation between two MS blocks."""

import pytest
import torch
from torch import Tensor

from spiketriton.config import NeuronConfig
from spiketriton.models import blocks
from spiketriton.models.blocks import BLOCKS as BLOCK_TYPES
from spiketriton.models.layers import folded, norm_neuron
from spiketriton.neurons import SpikingNeuron, build_neuron, one_by_one, told_of_spikes
from tests.models.support import BLOCKS, B, T, build, images, parts_of


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", [*BLOCKS, "preact", "ms of spikes"])
def test_blocks_compute_their_equations(kind, fused):
    kind, _, reads = kind.partition(" of ")
    options = {"block": kind, "shortcut": reads} if reads else {}
    parts = parts_of(neuron={"kind": "if"}, fused=fused, **options)
    block = BLOCK_TYPES[kind](parts, 3, 4, 2, False).double()
    x = images().double().repeat(4, 1, 1, 1).unflatten(0, (4, B)) + 1
    out, (first, last) = block(x), block.stages()
    if kind != "preact":
        conv, bn, *neuron = block.downsample
        shortcut = bn(folded(conv, first[2](x) if reads else x))
    if kind == "preact":  # the norm of each layer is that of its input
        shown = first[2](first[1](x))
        spikes = last[2](last[1](folded(first[0], shown)))
        expected = folded(last[0], spikes) + folded(block.downsample, shown)
    elif kind == "ms":
        spikes = last[2](first[1](folded(first[0], first[2](x))))
        expected = last[1](folded(last[0], spikes)) + shortcut
    else:
        spikes = first[2](first[1](folded(first[0], x)))
        current = last[1](folded(last[0], spikes))
        if kind == "plain":
            expected = last[2](current + shortcut)
        else:
            expected = last[2](current) + neuron[0](shortcut)
            assert set(out.unique().tolist()) == {0.0, 1.0, 2.0}
    assert 0.05 < (spikes > 0).double().mean() < 0.95
    torch.testing.assert_close(out, expected)


# ---- shortcuts that gradients go around


def test_a_straight_through_block_is_compiled_as_one_graph():
    torch._dynamo.reset()
    block = BLOCK_TYPES["plain"](parts_of(), 4, 4, 1, False)
    block.straight_through = True
    x = (torch.rand(T, B, 4, 8, 8) < 0.5).float().requires_grad_()
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), block(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_straight_through_shortcut_hands_its_gradient_on_as_it_is(dtype):
    """The same spikes; of the gradient, what comes through the branch and all of what goes around."""
    usual = BLOCK_TYPES["plain"](parts_of(), 4, 4, 1, False)
    x = (torch.rand(T, B, 4, 8, 8) < 0.5).to(dtype).requires_grad_()
    upstream = torch.randn(T, B, 4, 8, 8)

    def run(forward) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            out = forward(x)
        return out, torch.autograd.grad(out, x, upstream.to(out.dtype))[0]

    def around(x: Tensor) -> Tensor:
        norm, neuron = usual.stages()[-1][1:]
        spikes = norm_neuron(norm, neuron, usual.last_current(x)[0], residual=x.detach())
        return spikes + (x - x.detach())

    spikes, through_the_neuron = run(usual)
    _, expected = run(around)
    usual.straight_through = True
    out, grad = run(usual)
    assert torch.equal(out, spikes)
    assert out.dtype == spikes.dtype
    assert torch.equal(grad, expected)
    assert not torch.allclose(grad, through_the_neuron)
    assert not BLOCK_TYPES["plain"](
        parts_of(neuron={"kind": "relu"}), 4, 4, 1, False
    ).straight_through


def test_blocks_are_recomputed_only_where_backward_follows(monkeypatch):
    calls = []
    monkeypatch.setattr(
        blocks, "recomputed", lambda block, *given, on_save: calls.append(block) or block(*given)
    )
    model = build(checkpoint_blocks=True)
    model(images())
    assert len(calls) == 3
    with torch.no_grad():
        model(images())
    model.set_stateful()  # a membrane would be moved on twice
    model(images())
    model.set_stateful(False)
    model.eval()(images())
    assert len(calls) == 3


# ---- how blocks start


def starts(model) -> dict[str, tuple[float, float]]:
    """Weight and bias of the last norm of each block, which are the same for all its channels."""
    found = {}
    for name, block in model.blocks():
        norm = block.stages()[-1][1]
        assert norm.weight.unique().numel() == norm.bias.unique().numel() == 1
        found[name] = (norm.weight[0].item(), norm.bias[0].item())
    return found


@pytest.mark.parametrize("name", ["resnet8", "resnet50", "net7b"])
def test_blocks_start_at_the_gain_and_bias_of_the_recipe(name):
    assert set(starts(build(name, width=2)).values()) == {(1.0, 0.0)}
    assert set(starts(build(name, width=2, residual_gain=0.25)).values()) == {(0.25, 0.0)}
    both = build(name, width=2, residual_gain=0.0, residual_bias=0.5)
    assert set(starts(both).values()) == {(0.0, 0.5)}
    inner = [block.bn1 for _, block in both.blocks()]
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in inner)


@pytest.mark.parametrize(
    ("kind", "block", "weight"),
    [
        ("ilif", "ms", 3**-0.5),
        ("ilif", "plain", 3**-0.5),
        ("ilif", "sew", 3**-0.5),
        ("lif", "ms", 0),
        ("lif", "sew", 1),
    ],
)
def test_without_a_key_blocks_of_ilif_and_sew_start_open(kind, block, weight):
    net = build("resnet8", neuron={"kind": kind}, block=block, residual_gain="auto")
    (gain,) = {gain for gain, _ in starts(net).values()}
    assert gain == pytest.approx(weight)


@pytest.mark.parametrize("neuron", [{"decay_input": True}, {"v_threshold": 2.0}])
@pytest.mark.parametrize("bias", ["auto", 0.0])
def test_a_spike_of_the_shortcut_passes_a_closed_block_by_the_bias_alone(neuron, bias):
    """docs/gradient_flow.md: why plain blocks have it."""
    neuron = {"kind": "lif"} | neuron
    net = build("resnet8", neuron=neuron, residual_gain=0.0, residual_bias=bias)
    fired = {}
    with told_of_spikes(
        [*net.spiking_layers()], lambda name, out: fired.update({name: out.sum().item()})
    ):
        net(4 * torch.rand(4, 3, 16, 16))
    last = [count for name, count in fired.items() if name.endswith("neuron2")]
    assert len(last) == 3
    assert all(last) if bias == "auto" else not any(last)


@pytest.mark.parametrize(
    ("neuron", "steps", "expected"),
    [
        ({"kind": "lif"}, 4, 1 / 2.875),
        ({"kind": "if"}, 4, 0.2),
        ({"kind": "lif", "decay_input": True, "v_threshold": 0.5}, 3, 1 / 2.75),
        ({"kind": "relu"}, 4, 0.0),
    ],
)
def test_the_default_start_has_equal_margins(neuron, steps, expected):
    """A spike of the shortcut lifts h as far above the threshold as silence stays below it in the last step."""
    net = build("resnet8", time_steps=steps, neuron=neuron, residual_gain=0.0, residual_bias="auto")
    ((gain, bias),) = set(starts(net).values())
    assert (gain, bias) == (0.0, pytest.approx(expected))
    if neuron["kind"] == "relu":
        return
    made = build_neuron(NeuronConfig(**neuron, reset="none"))
    silent = 0.0
    for _ in range(steps):
        silent = made.decay * silent + made.gain * bias
    above = made.gain * (1 + bias) - made.v_threshold
    assert above == pytest.approx(made.v_threshold - silent)


@pytest.mark.parametrize(
    ("options", "off"),
    [
        *(({"block": block}, 0.0) for block in BLOCKS),
        # with room on either side: the same also where a current is a little off
        *(
            ({"block": "plain", "residual_bias": "auto", "neuron": neuron}, 0.01)
            for neuron in (
                {"kind": "psn"},
                {"kind": "masked_psn", "order": 3},
                {"kind": "sliding_psn", "order": 9, "v_threshold": 0.9},
            )
        ),
    ],
    ids=str,
)
def test_a_block_that_starts_at_0_passes_its_input_on(options, off):
    (_, block), *_ = build("resnet8", **{"residual_gain": 0.0} | options).blocks()
    x = (torch.rand(T, B, 16, 4, 4) < 0.4).float()
    norm = block.stages()[-1][1]
    bias = norm.bias[0].item()
    for more in {0.0, off, -off}:
        torch.nn.init.constant_(norm.bias, bias + more)
        assert torch.equal(block(x), x)


def test_blocks_of_masked_neurons_fire_at_a_gain_of_one():
    """Weights drawn at random read too little to fire: the later half of 18 layers was silent."""
    net, rates = build("resnet20", neuron={"kind": "masked_psn"}, residual_gain=1.0), []
    for _, block in net.blocks():
        block.stages()[-1][2].on_fire = lambda s: rates.append(float(s.detach().mean()))
    net.train()(torch.randn(B, 3, 8, 8))
    assert len(rates) == 9
    assert min(rates) > 0.01
    neuron = build("resnet8", neuron={"kind": "psn"}, residual_gain=1.0).layer1[0].neuron2
    assert not torch.equal(neuron.weight, torch.eye(T))  # which of its own fires often enough


# ---- between two MS blocks the last norm, the shortcut and the neuron that follows are one operation


@pytest.mark.parametrize("name", ["resnet8", "net7b"])
def test_every_pair_of_ms_blocks_is_joined(name, monkeypatch):
    """And the last block with the neuron behind it; where a pool lies between them, nothing is."""
    joins, options = [], {"name": name, "block": "ms", "width": 4}
    original = SpikingNeuron.fused_norm

    def spy(self, *args, return_current=False, **kwargs):
        joins.extend([self] if return_current else [])
        return original(self, *args, return_current=return_current, **kwargs)

    monkeypatch.setattr(SpikingNeuron, "fused_norm", spy)
    model = build(**options)
    readers = [*(block.neuron1 for _, block in model.blocks()[1:]), model.neuron_last]
    model(images())
    assert joins == readers[4 if name == "net7b" else 0 :]
    joins.clear()
    with one_by_one(model):
        model(images())
    build(**options, fused=False)(images())
    build(**options, norm="none")(images())
    assert joins == []
    build(**options, neuron={"kind": "plif"})(images())  # which learns its gain
    assert len(joins) == 3
