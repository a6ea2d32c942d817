"""The norm in front of a neuron by plain PyTorch, which a definition reads."""

from __future__ import annotations

import torch
from torch import Tensor

from ..neuron import Norm, membrane_dtype


def normalised(y: Tensor, norm: Norm) -> Tensor:
    """y behind the norm, in the membrane's dtype: torch's batch_norm on the folded tensor."""
    wide = membrane_dtype(y.dtype)
    weight = None if norm.weight is None else norm.weight.to(wide) * norm.scale
    if weight is None and norm.scale != 1.0:
        weight = torch.full(y.shape[2:3], norm.scale, dtype=wide, device=y.device)
    bias = None if norm.bias is None else norm.bias.to(wide)
    z = torch.nn.functional.batch_norm(
        y.to(wide).flatten(0, 1), norm.running_mean, norm.running_var, weight, bias, norm.training,
        norm.momentum, norm.eps,
    ).unflatten(0, y.shape[:2])  # fmt: skip
    if norm.step_gain is not None:
        z = z * norm.step_gain.to(wide).view(-1, *[1] * (y.dim() - 1))
    return z
