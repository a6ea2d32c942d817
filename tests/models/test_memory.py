"""Packed memory: the same gradients from fewer bytes."""

import pytest
import torch
from torch import nn

from spiketriton.models import memory as packing
from tests.models.support import build


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("block", ["plain", "sew", "ms"])
def test_packed_memory_gives_the_same_gradients_from_fewer_bytes(block, fused):
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    results = {}
    for memory in ("standard", "packed"):
        net = build(block=block, memory=memory, fused=fused)
        kept = {}

        def keep(saved, kept=kept):
            kept.setdefault(saved.data_ptr(), saved)
            return saved

        net.on_save = keep
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
            currents = net(images)
        nn.functional.cross_entropy(currents.mean(0), labels).backward()
        saved = sum(
            t.untyped_storage().nbytes() for t in kept.values() if not isinstance(t, nn.Parameter)
        )
        results[memory] = saved, currents.detach(), [p.grad for p in net.parameters()]
    (dense, currents, grads), (packed, packed_currents, packed_grads) = results.values()
    assert torch.equal(currents, packed_currents)
    assert all(torch.equal(a, b) for a, b in zip(grads, packed_grads, strict=True))
    # SEW's sums are whole numbers, kept as they are
    assert packed < (0.9 if block == "sew" else 0.75) * dense


def test_packed_memory_forgets_spikes_with_their_tensors():
    net = build(memory="packed")
    currents = net(torch.randn(2, 3, 16, 16))
    assert not packing._spikes
    assert packing.PackedSpikes.open == 0
    currents.sum().backward()
