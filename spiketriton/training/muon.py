"""Muon: the step of a matrix is its momentum made orthogonal, so that all its directions move alike.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; the size of the step is that of Liu et al., arXiv
2502.16982. `torch.optim.Muon` takes matrices alone, no kernels of convolutions, and cannot leave out a step without
waiting for the device (`found_inf`, see guard.py).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import AdamW, Optimizer

from spiketriton.training.environment import choose_precision
from spiketriton_kernels.nn import Delays

QUINTIC = (3.4445, -4.7750, 2.0315)  # of Jordan et al.: brings singular values near 1, not to it
ROUNDS = 3  # they take five, which trained no better here
SIZE = 0.2  # of AdamW's usual step, in units of its rate (Liu et al.)

LOOKS = ("cpu",)  # devices that need not be waited for, so that a step is kept in place

Groups = list[dict[str, Any]]


def apart(groups: Groups, model: nn.Module) -> tuple[Groups, Groups]:
    """Groups of the weights of hidden layers, and of all else.

    Hidden are convolutions and linear layers, also with delays, but the first and the last, in the order of the model's
    modules.
    """
    layers = [m for m in model.modules() if isinstance(m, _ConvNd | nn.Linear | Delays)]
    hidden = {layer.weight for layer in layers[1:-1]}
    inner, others = (
        [
            {**group, "params": [p for p in group["params"] if (p in hidden) == inside]}
            for group in groups
        ]
        for inside in (True, False)
    )
    return inner, others


class Muon(Optimizer):
    """Muon for the groups `hidden`, the given AdamW for its own; both leave out a step by `found_inf`.

    Their rate is one, AdamW's, for an orthogonal step is made as large as its usual one; weight decay is decoupled.
    momentum: Nesterov's.
    """

    _step_supports_amp_scaling = True  # as torch's fused ones: told of `found_inf` by a loss scaler

    def __init__(self, hidden: Groups, adamw: AdamW, momentum: float) -> None:
        marked = [{**group, "orthogonal": True} for group in hidden]
        defaults = {"lr": adamw.defaults["lr"], "momentum": momentum, "orthogonal": False}
        super().__init__([*marked, *adamw.param_groups], defaults)
        self.adamw = adamw
        self.state.update(adamw.state)
        trained = [p for group in self._groups(orthogonal=True) for p in group["params"]]
        self.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for p in trained})
        device = next(iter(self.state)).device
        bf16 = choose_precision("auto", device).value == torch.bfloat16
        self.dtype = torch.bfloat16 if bf16 else torch.float32  # of the iteration

    def _groups(self, orthogonal: bool) -> Groups:
        return [group for group in self.param_groups if group["orthogonal"] == orthogonal]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        found: Tensor | None = getattr(self, "found_inf", None)
        # `load_state_dict` makes both anew
        self.adamw.param_groups, self.adamw.state = self._groups(orthogonal=False), self.state
        self.adamw.__dict__["found_inf"] = found
        self.adamw.step()
        if found is not None and found.device.type in LOOKS:
            if found > 0:
                return
            found = None
        for group in self._groups(orthogonal=True):
            trained = [p for p in group["params"] if p.grad is not None]
            if not trained:
                continue
            moments = [self.state[p]["momentum_buffer"] for p in trained]
            if found is not None:  # a GPU need not be waited for
                moments = [moment.clone() for moment in moments]
            grads = [p.grad for p in trained]
            torch._foreach_lerp_(moments, grads, 1 - group["momentum"])
            ahead = torch._foreach_lerp(grads, moments, group["momentum"])
            directions = all_orthogonal(list(ahead), self.dtype)
            for p, moment, direction in zip(trained, moments, directions, strict=True):
                rate = group["lr"] * SIZE * max(p.shape[0], p[0].numel()) ** 0.5
                decay = 1 - group["lr"] * group["weight_decay"]
                direction = direction * rate  # no alpha: a rate on the device would be waited for
                if found is None:
                    p.mul_(decay).sub_(direction)
                    continue
                weight = p * decay - direction
                momentum = self.state[p]["momentum_buffer"]
                for old, new in ((momentum, moment), (p, weight)):
                    old.copy_(torch.where(found > 0, old, new))


def all_orthogonal(kernels: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Each [rows, ...] made an orthogonal matrix (`orthogonal`); those of one shape together.

    Columns are taken as they lie in memory: their order changes nothing.
    """
    found: dict[int, Tensor] = {}
    orders = [sorted(range(1, x.ndim), key=x.stride, reverse=True) for x in kernels]
    laid = [x.permute(0, *order) for x, order in zip(kernels, orders, strict=True)]
    shapes = [x.shape for x in laid]
    for shape in dict.fromkeys(shapes):
        places = [i for i, other in enumerate(shapes) if other == shape]
        made = orthogonal(torch.stack([laid[i].flatten(1) for i in places]), dtype)
        found.update(zip(places, made.unflatten(2, shape[1:]).unbind(), strict=True))
    back = ([order.index(i) + 1 for i in range(1, len(order) + 1)] for order in orders)
    return [found[i].permute(0, *order) for i, order in enumerate(back)]


def orthogonal(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrices `x` [n, rows, columns] with singular values of about 1, by Newton and Schulz's iteration in `dtype`.

    bfloat16 is enough, as in Jordan et al. Of zeros: zeros.
    """
    a, b, c = QUINTIC
    y = x.to(dtype)
    tall = y.shape[1] > y.shape[2]
    y = y.mT if tall else y
    y = y * (y.norm(dim=(1, 2), keepdim=True) + 1e-7).reciprocal()
    for _ in range(ROUNDS):
        square = y @ y.mT
        square = torch.baddbmm(square, square, square, beta=b, alpha=c)
        y = torch.baddbmm(y, square, y, beta=a)
    return (y.mT if tall else y).to(x.dtype)
