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

QUINTIC = (3.4445, -4.7750, 2.0315)  # of Jordan et al.: brings singular values near 1, not to it
ROUNDS = 3  # they take five, which trained no better here
SIZE = 0.2  # of AdamW's usual step, in units of its rate (Liu et al.)

Groups = list[dict[str, Any]]


def apart(groups: Groups, model: nn.Module) -> tuple[Groups, Groups]:
    """Groups of the weights of hidden layers, and of all else.

    Hidden are convolutions and linear layers but the first and the last, in the order of the model's modules.
    """
    layers = [m for m in model.modules() if isinstance(m, _ConvNd | nn.Linear)]
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
        for group in self._groups(orthogonal=True):
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p]["momentum_buffer"]
                moved = momentum.lerp(p.grad, 1 - group["momentum"])
                direction = orthogonal(p.grad.lerp(moved, group["momentum"]), self.dtype)
                rate = group["lr"] * SIZE * max(p.shape[0], p[0].numel()) ** 0.5
                weight = p * (1 - group["lr"] * group["weight_decay"]) - rate * direction
                for old, new in ((momentum, moved), (p, weight)):
                    old.copy_(new if found is None else torch.where(found > 0, old, new))


def orthogonal(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` [rows, ...] with singular values of about 1, by Newton and Schulz's iteration, which runs in `dtype`.

    bfloat16 is enough, as in Jordan et al. Of zeros: zeros.
    """
    a, b, c = QUINTIC
    y = x.flatten(1).to(dtype)
    tall = y.shape[0] > y.shape[1]
    y = y.T if tall else y
    y = y / (y.norm() + 1e-7)
    for _ in range(ROUNDS):
        square = y @ y.T
        y = a * y + (b * square + c * square @ square) @ y
    return (y.T if tall else y).reshape(x.shape).to(x.dtype)
