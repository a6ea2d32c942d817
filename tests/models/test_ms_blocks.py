"""MS blocks: the last norm, the shortcut and the neuron that follows are one operation between two blocks."""

import pytest
import torch
from torch import nn

from spiketriton.neurons import Norm, SpikingNeuron, one_by_one
from tests.covering import pairwise
from tests.models.support import backward, build, images, lively

NETS = [
    {"name": "resnet8", "width": 4},
    {"name": "resnet18", "stem": "imagenet", "width": 4},
    {"name": "resnet50", "width": 2},
    {"name": "net7b", "width": 4},  # a pool behind four of its seven blocks
]
every_net = pytest.mark.parametrize("options", NETS, ids=lambda o: o["name"])
DTYPES = [torch.float32, torch.float64]


def pair(dtype=torch.float64, **options) -> tuple[nn.Module, nn.Module]:
    """A network and its like with norms and neurons called one by one, of the same weights."""
    fused = lively(build(block="ms", **options).to(dtype))
    apart = build(block="ms", **options, fused=False).to(dtype)
    apart.load_state_dict(fused.state_dict())
    return fused, apart


def assert_same(fused, apart, x, tolerance=1e-6) -> None:
    """Loss, currents, every gradient and every buffer of one training step; and then in eval mode."""
    results = [backward(model, x) for model in (fused, apart)]
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)
    scales = [q.grad.abs().max().item() for q in apart.parameters()]
    least = 1e-4 * max(
        scales
    )  # net7b's last blocks see one pixel, of which batch norm leaves little
    assert sum(scale > 0 for scale in scales) > 0.6 * len(scales)
    for (name, p), q, scale in zip(
        fused.named_parameters(), apart.parameters(), scales, strict=True
    ):
        torch.testing.assert_close(
            p.grad, q.grad, rtol=0, atol=tolerance * max(scale, least), msg=name
        )
    for (name, p), q in zip(fused.named_buffers(), apart.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance, msg=name)
    with torch.no_grad():
        together, one = fused.eval()(x), apart.eval()(x)
    torch.testing.assert_close(together, one, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("options", "time_steps", "reset"), pairwise(NETS, [3, 1], ["hard", "soft", "none"])
)
def test_one_operation_gives_what_norm_sum_and_neuron_give(options, time_steps, reset):
    if options["name"] == "resnet8" and time_steps == 3:
        time_steps = 18  # a window of more than one chunk
    neuron = {"reset": reset, "detach_reset": reset == "none"}
    fused, apart = pair(**options, time_steps=time_steps, neuron=neuron)
    assert_same(fused, apart, images(batch=2).double())


@pytest.mark.parametrize("norm", ["tdbn", "tebn"])
def test_other_norms_too(norm):
    assert_same(*pair(name="resnet18", width=4, norm=norm), images().double())


@every_net
def test_every_pair_of_blocks_is_joined(options, monkeypatch):
    """And the last block with the neuron behind it; where a pool lies between them, nothing is."""
    joins = []
    original = SpikingNeuron.fused_norm

    def spy(self, *args, return_current=False, **kwargs):
        joins.extend([self] if return_current else [])
        return original(self, *args, return_current=return_current, **kwargs)

    monkeypatch.setattr(SpikingNeuron, "fused_norm", spy)
    model = build(block="ms", **options)
    blocks = [block for _, block in model.blocks()]
    readers = [*(block.neuron1 for block in blocks[1:]), model.neuron_last]
    model(images())
    assert joins == readers[4 if options["name"] == "net7b" else 0 :]
    joins.clear()
    with one_by_one(model):
        model(images())
    build(block="ms", **options, fused=False)(images())
    build(block="ms", **options, norm="none")(images())
    assert joins == []
    build(block="ms", **options, neuron={"kind": "plif"})(images())  # which learns its gain
    assert len(joins) == (3 if options["name"] == "net7b" else len(readers))


def test_hooks_see_every_layer_in_order():
    """As evaluation, exports and the search for numbers that are not finite see them."""
    model, seen = build(block="ms"), []
    for name, module in model.named_modules():
        if isinstance(module, Norm | SpikingNeuron):
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
    with one_by_one(model):
        model(images())
    neurons = [name for name in seen if "neuron" in name]
    assert neurons == [name for name, _ in model.spiking_layers()]
    norms = 6 + 2  # of the blocks, of their shortcuts; the stem's takes another way
    assert len(seen) == len(set(seen)) == len(neurons) + norms


@pytest.mark.parametrize("memory", ["standard", "packed"])
def test_between_recomputed_blocks_currents_and_bits_are_kept(memory):
    """Of each pair of blocks one tensor of currents and one of spikes, an eighth of a byte each."""
    model = lively(build("resnet32", block="ms", checkpoint_blocks=True, memory=memory, width=8))
    kept, hooks = {}, torch.autograd.graph.saved_tensors_hooks
    model.on_save = lambda saved: kept.setdefault(saved.data_ptr(), saved)
    with hooks(model.on_save, lambda saved: saved):
        currents = model(images(batch=4))
    currents.sum().backward()
    blocks = len(model.blocks())
    bits = [saved for saved in kept.values() if saved.dtype == torch.uint8]
    assert len(bits) >= blocks - 1
    whole = [s for s in kept.values() if s.ndim == 5 and s.is_floating_point()]
    # one for each block; the last join keeps its own: packed, only norm and sum of it are whole
    assert len(whole) <= blocks + 2
