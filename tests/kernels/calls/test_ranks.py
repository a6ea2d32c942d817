"""process_group: statistics and gradients of two ranks equal those of the whole batch on one."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from spiketriton_kernels import multistep_bn_lif, use_backend
from tests.conftest import START
from tests.kernels.support import normal

T, B, C = 4, 6, 3


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
        for backend in ("auto", "torch"):
            with use_backend(backend):
                results.append(step(y, extra, upstream, dist.group.WORLD))
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_one(tmp_path):
    address = f"file://{tmp_path}/meet"
    mp.start_processes(rank_main, (address, str(tmp_path)), nprocs=2, start_method=START)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    y, residual, upstream = inputs()
    for i, extra in enumerate((None, None, residual, residual)):
        whole = step(y, extra, upstream)
        first, second = (results[i] for results in ranks)
        for name, expected in whole.items():
            if name in ("spikes", "y", "residual"):
                given = torch.cat([first[name], second[name]], 1)
            else:
                given = first[name]
                assert torch.equal(given, second[name]), f"{name} differs between ranks"
            torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5, msg=name)
