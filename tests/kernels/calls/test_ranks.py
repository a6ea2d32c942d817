"""process_group: statistics and gradients of two ranks equal those of the whole batch on one."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.nn.functional import all_reduce

from spiketriton_kernels import multistep_bn_lif, use_backend
from spiketriton_kernels.adopt.fuse import fuse
from spiketriton_kernels.nn import LIF
from tests.conftest import CUDA, START
from tests.kernels.support import normal

T, B, C = 4, 6, 3
BACKENDS = "auto", "torch", *["triton"] * (not CUDA)  # interpreted


def step(
    y: torch.Tensor, residual: torch.Tensor | None, upstream: torch.Tensor, group=None
) -> dict:
    leaf = y.clone().requires_grad_()
    extra = None if residual is None else residual.clone().requires_grad_()
    weight, bias = (torch.full((C,), v, requires_grad=True) for v in (1.2, 0.3))
    mean, var = torch.zeros(C), torch.ones(C)
    options = dict(residual=extra, reset="soft", detach_reset=False, process_group=group)
    spikes = multistep_bn_lif(leaf, weight, bias, mean, var, **options)
    spikes.backward(upstream)
    sums = {"weight": weight.grad, "bias": bias.grad}
    if group is not None:
        for value in sums.values():
            dist.all_reduce(value, group=group)
    shares = {"spikes": spikes.detach(), "y": leaf.grad}
    if extra is not None:
        shares["residual"] = extra.grad
    return shares | sums | {"mean": mean, "var": var}


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The two halves of the batch differ in mean and deviation."""
    y = normal((T, B, C, 2, 2), mean=1.0)
    y[:, B // 2 :] = 2 * y[:, B // 2 :] + 1.5
    return y, normal(y.shape, seed=1, std=0.3), normal(y.shape, seed=2)


def rank_main(rank: int, address: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    own = slice(rank * B // 2, (rank + 1) * B // 2)
    y, residual, upstream = (value[:, own].contiguous() for value in inputs())
    results = []
    for extra in (None, residual):
        for backend in BACKENDS:
            with use_backend(backend):
                results.append(step(y, extra, upstream, dist.group.WORLD))
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def on_two_ranks(main, folder):
    """What each of two processes saves that run `main`."""
    address = f"file://{folder}/meet"
    mp.start_processes(main, (address, str(folder)), nprocs=2, start_method=START)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_two_ranks_equal_one(tmp_path, request):
    if not CUDA:
        request.getfixturevalue("triton_backend")
    ranks = on_two_ranks(rank_main, tmp_path)
    y, residual, upstream = inputs()
    for i, extra in enumerate([None] * len(BACKENDS) + [residual] * len(BACKENDS)):
        whole = step(y, extra, upstream)
        first, second = (results[i] for results in ranks)
        for name, expected in whole.items():
            if name in ("spikes", "y", "residual"):
                given = torch.cat([first[name], second[name]], 1)
            else:
                given = first[name]
                assert torch.equal(given, second[name]), f"{name} differs between ranks"
            torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5, msg=name)


class Folded(nn.Module):
    """A batch norm of [T*B, C, ...] and a neuron, called as a network of torch's and SpikingJelly's modules is."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.neuron = nn.BatchNorm2d(C), LIF(reset="soft", detach_reset=False)
        self.norm.weight.data.fill_(1.2)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return self.neuron(self.norm(y.flatten(0, 1)).unflatten(0, y.shape[:2]))


def over_ranks(norm: nn.SyncBatchNorm, y: torch.Tensor) -> torch.Tensor:
    """What torch's SyncBatchNorm does on GPUs, the only place where it works."""
    norm.num_batches_tracked.add_(1)
    shares = torch.stack([y.mean((0, 2, 3)), y.square().mean((0, 2, 3))])
    mean, square = all_reduce(shares) / dist.get_world_size()
    var = square - mean.square()
    number = dist.get_world_size() * y.numel() / C
    for own, new in ((norm.running_mean, mean), (norm.running_var, var * number / (number - 1))):
        own.lerp_(new.detach(), norm.momentum)
    hat = (y - mean[:, None, None]) / (var[:, None, None] + norm.eps).sqrt()
    return hat * norm.weight[:, None, None] + norm.bias[:, None, None]


def trained(net: nn.Module, y: torch.Tensor, upstream: torch.Tensor) -> list[torch.Tensor]:
    """Spikes, and what there is of the norm after a step."""
    spikes = net(y)
    spikes.backward(upstream)
    norm = net.norm
    for gradient in (norm.weight.grad, norm.bias.grad):
        if dist.is_initialized():
            dist.all_reduce(gradient)
    return [spikes.detach(), norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]


def converted_main(rank: int, address: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    own = slice(rank * B // 2, (rank + 1) * B // 2)
    y, _, upstream = (value[:, own].contiguous() for value in inputs())
    net = Folded()
    assert len(fuse(net, {"neuron": net.neuron})[0]) == 1
    net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    with pytest.raises(ValueError, match="SyncBatchNorm expected input tensor to be on GPU"):
        net(y)
    nn.SyncBatchNorm.forward = over_ranks
    torch.save(trained(net, y, upstream), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_a_fused_norm_that_is_converted_is_synchronised_by_torch(tmp_path):
    """convert_sync_batchnorm after fuse: statistics of both ranks, and not of one in silence."""
    ranks = on_two_ranks(converted_main, tmp_path)
    y, _, upstream = inputs()
    spikes, *rest = trained(Folded(), y, upstream)
    assert torch.equal(torch.cat([r[0] for r in ranks], 1), spikes)
    for one, other, whole in zip(ranks[0][1:], ranks[1][1:], rest, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, whole, rtol=1e-4, atol=1e-5)
