"""What only a GPU can show: graph capture, addresses beyond 2^31, no host synchronisation."""

import pytest
import torch
import torch.distributed as dist

from spiketriton_kernels import multistep_bn_lif, multistep_lif, multistep_lif_reference
from tests.kernels.support import as_layout, normal

pytestmark = pytest.mark.gpu


def test_a_step_is_captured_in_a_cuda_graph():
    """Forward and backward of both functions, replayed on new input, equal eager."""
    y = normal((4, 2, 8, 6, 6), torch.bfloat16, "cuda").requires_grad_()
    norm = [torch.full((8,), v, device="cuda") for v in (1.0, 0.3, 0.0, 1.0)]

    def step():
        y.grad = None
        multistep_lif(multistep_bn_lif(y, *norm) * 0.9, decay=0.8).sum().backward()
        return y.grad

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        y.copy_(normal(y.shape, torch.bfloat16, "cuda", seed=1))
    graph.replay()
    replayed = captured.clone()
    assert torch.equal(replayed, step())


def test_nothing_waits_for_the_gpu():
    y = normal((4, 2, 8, 6, 6), device="cuda").requires_grad_()
    norm = [torch.full((8,), v, device="cuda") for v in (1.0, 0.3, 0.0, 1.0)]
    multistep_bn_lif(y, *norm).sum().backward()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        multistep_bn_lif(y, *norm).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
def test_more_elements_than_32_bits_can_count():
    """5 x 2^29 elements: the last neurons of the last step are right."""
    x = torch.empty(5, 2**29, dtype=torch.bfloat16, device="cuda").normal_()
    spikes = multistep_lif(x, reset="soft")
    tail = multistep_lif_reference(x[:, -1000:], reset="soft")
    assert torch.equal(spikes[:, -1000:], tail)


def test_statistics_over_ranks_are_those_of_the_one_rank_that_there_is(tmp_path):
    """By NCCL: the walk for sums, and the one from sums that have travelled."""
    y, residual, upstream = (
        as_layout(normal((4, 8, 64, 6, 6), torch.bfloat16, "cuda", seed), "channels_last")
        for seed in range(3)
    )

    def found(group=None):
        leaves = [value.detach().clone().requires_grad_() for value in (y, residual)]
        norm = [torch.full((64,), v, device="cuda") for v in (1.2, 0.3, 0.0, 1.0)]
        leaves += [value.requires_grad_() for value in norm[:2]]
        out = multistep_bn_lif(leaves[0], *norm, residual=leaves[1], process_group=group)
        return out, *torch.autograd.grad(out, leaves, upstream), *norm[2:]

    expected = found()
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        over_ranks = found(dist.group.WORLD)
    finally:
        dist.destroy_process_group()
    for one, other in zip(over_ranks, expected, strict=True):
        assert (one.double() - other).norm() <= 2e-3 * other.double().norm()
