"""Batch norm on the input currents of spiking neurons."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from spiketriton.system.errors import UserError
from spiketriton_kernels.neuron import Norm as NormRecord
from spiketriton_kernels.normalise import normalised, serves


class Norm(nn.modules.batchnorm._BatchNorm):
    """Batch norm of currents [T, B, C, ...] with statistics per channel over T, B and space.

    The same as `torch.nn.BatchNorm2d` on the folded [T*B, C, H, W], with its parameters and buffers. Variants:

        current[t] = step_gain[t] * (weight * scale * xhat[t] + bias)

    Args:
        scale: tdBN's alpha * v_threshold (Zheng et al. 2021, arXiv 2011.05280).
        steps: number of TEBN's learnable step gains, T (Duan et al. 2022, "Temporal Effective Batch Normalization in
            Spiking Neural Networks"); 0 for none. UserError: a call for more steps than have a gain.
        fused: whether the spiking neuron behind it runs in the same kernel (`models.layers.norm_neuron`).
        each_step: whether each step of a training batch has its own statistics, which the running ones take in one
            after the other. Not fused.
    """

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        channels: int,
        *,
        scale: float = 1.0,
        steps: int = 0,
        fused: bool = True,
        each_step: bool = False,
    ) -> None:
        super().__init__(channels)
        self.scale = scale
        self.each_step = each_step
        self.fused = fused and not each_step
        self.first_step = 0  # of the next call, when a window is streamed in chunks
        self.tracks = True  # false while a batch that was already counted is recomputed
        # over which ranks training statistics are taken: a group, all (True), or this rank alone
        self.synchronised: bool | dist.ProcessGroup = False
        # bool [T, B], of padded sequences: which steps are valid, where training statistics are taken of them alone
        self.valid: Tensor | None = None
        self.constant_statistics = False  # whether no gradient goes through these
        self.step_gain = nn.Parameter(torch.ones(steps)) if steps else None

    def forward(self, y: Tensor) -> Tensor:
        """Currents [T, B, C, ...] -> normalised currents of the same shape, dtype and layout."""
        if self.each_step and self.training:
            current = torch.cat([self._normalise(step[None], self.momentum) for step in y])
        else:
            current = self._normalise(y, self.momentum)
        return self._apply_gains(current, y.shape[0])

    def constant(self, y: Tensor, steps: int) -> Tensor:
        """A current [B, C, ...] that is the same at each of `steps` steps, normalised once.

        Returns [steps, B, C, ...], or [1, B, C, ...] where all steps are equal. Only the running variance differs
        from that of `steps` copies, by its unbiased factor n / (n - 1).
        """
        momentum = self.momentum
        if self.each_step:
            momentum = 1 - (1 - momentum) ** steps  # of as many equal batches
        return self._apply_gains(self._normalise(y.unsqueeze(0), momentum, steps), steps)

    @property
    def masked(self) -> bool:
        """Whether statistics are those of the valid steps alone."""
        return self.valid is not None and self.training

    def _normalise(self, y: Tensor, momentum: float, steps: int = 1) -> Tensor:
        """`steps`: where y is one step, at how many of them it may be returned."""
        self.count_batch(y)
        if self.masked:
            return self._over_valid(y, momentum)
        weight = self.weight if self.scale == 1 else self.weight * self.scale
        folded = y.flatten(0, 1)
        if self.training and self.process_group is None and self.constant_statistics:
            made = as_constants(folded, weight, self.bias, self.eps)
            return made.unflatten(0, y.shape[:2])
        if self.training and self.process_group is None and serves(folded, weight, self.bias):
            running = (*self.statistics(), momentum)
            out = normalised(folded, weight, self.bias, running, self.eps, steps)
            return out if len(y) == 1 else out.unflatten(1, y.shape[:2]).squeeze(0)
        tensors = (folded, *self.statistics(), weight, self.bias)
        group, rest = self.process_group, (self.training, momentum, self.eps)
        if group is None:
            return F.batch_norm(*tensors, *rest).unflatten(0, y.shape[:2])
        return _batch_norm_over_ranks(group, *tensors, *rest).unflatten(0, y.shape[:2])

    def _over_valid(self, y: Tensor, momentum: float) -> Tensor:
        """Batch norm of currents [T, B, C, ...] by the mean and variance of the valid steps of their sequences.

        The same as `F.batch_norm` of these rows alone, in fp32 or wider, and of fixed shapes. UserError: statistics of
        each step, or of all ranks.
        """
        assert self.valid is not None
        if self.each_step or self.process_group is not None:
            key = 'model.norm = "step_bn"' if self.each_step else "train.sync_bn = true"
            raise UserError(
                f'{key} on sequences of different lengths; accepted with them: model.norm = "bn", "tdbn", "tebn" or '
                '"none", and train.sync_bn = false'
            )
        x = y if y.dtype == torch.float64 else y.float()
        dims = [0, 1, *range(3, x.ndim)]
        channels = [1, 1, -1, *[1] * (x.ndim - 3)]
        valid = self.valid.reshape(*self.valid.shape, *[1] * (x.ndim - 2))
        count = valid.sum().to(x.dtype) * (x.numel() // (self.valid.numel() * x.shape[2]))
        mean = torch.where(valid, x, 0).sum(dims) / count
        away = x - mean.view(channels)
        var = torch.where(valid, away, 0).square().sum(dims) / count
        if self.constant_statistics:
            var, away = var.detach(), x - mean.detach().view(channels)
        running_mean, running_var = self.statistics()
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            unbiased = var * (count / (count - 1).clamp_min(1))
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        gain = self.weight * self.scale * (var + self.eps).rsqrt()
        return (away * gain.view(channels) + self.bias.view(channels)).to(y.dtype)

    def _apply_gains(self, current: Tensor, steps: int) -> Tensor:
        gains = self.gains(steps)
        if gains is None:
            return current
        return (current * gains.view(-1, *[1] * (current.ndim - 1))).to(current.dtype)

    def gains(self, steps: int) -> Tensor | None:
        """The gains [steps] of the steps from `first_step` on; None when there are none."""
        if self.step_gain is None:
            return None
        end = self.first_step + steps
        if end > len(self.step_gain):
            raise UserError(
                f"tebn has gains for {len(self.step_gain)} time steps, but {end} are needed; "
                "with model.norm = 'bn' or 'tdbn' a network runs for any number"
            )
        return self.step_gain[self.first_step : end]

    def count_batch(self, y: Tensor) -> None:
        """Counts a training batch y [T, B, C, ...]. UserError: it has one value per channel."""
        if self.training and y.numel() == y.shape[2] and self.process_group is None:
            raise UserError(
                "batch norm needs more than one value per channel, and a micro-batch of one image "
                "has only one here; accepted: two or more images (train.batch_size, "
                'train.accumulate, train.micro_batch), or model.norm = "none"'
            )
        if self.training and self.tracks:
            self.num_batches_tracked.add_(1)

    def record(self, y: Tensor) -> NormRecord:
        """What the kernels need of this norm for a call on y [T, B, C, ...], which it counts."""
        self.count_batch(y)
        return NormRecord(
            self.weight,
            self.bias,
            *self.statistics(),
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
            scale=self.scale,
            step_gain=self.gains(y.shape[0]),
            process_group=self.process_group,
        )

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Running mean and variance [C] for a kernel to update; copies when it must not."""
        if self.training and not self.tracks:
            return self.running_mean.clone(), self.running_var.clone()
        return self.running_mean, self.running_var

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """The ranks over which this call takes its statistics; None: this rank alone."""
        if not (self.synchronised and self.training):
            return None
        return dist.group.WORLD if self.synchronised is True else self.synchronised

    def extra_repr(self) -> str:
        steps = 0 if self.step_gain is None else len(self.step_gain)
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"scale={self.scale:g}, steps={steps}, fused={self.fused}, each_step={self.each_step}"
        )


@torch.compiler.disable  # its backward holds a process group, which a compiled graph cannot
def _batch_norm_over_ranks(*arguments: Any) -> Tensor:
    return _OverRanks.apply(*arguments)


class _OverRanks(torch.autograd.Function):
    """`F.batch_norm` in training, with statistics of x [N, C, ...] over a group; torch has this for GPUs only.

    As in DistributedDataParallel: by x the gradient is that of the sum of the losses, by weight and bias this rank's
    share.
    """

    @staticmethod
    def forward(ctx, group, x, running_mean, running_var, weight, bias, training, momentum, eps):
        assert training
        count = dist.get_world_size(group) * x.numel() // x.shape[1]
        dims = [0, *range(2, x.ndim)]
        own_var, own_mean = torch.var_mean(x.to(running_mean.dtype), dims, correction=0)
        mean = _mean_over_ranks(own_mean, group)
        var = _mean_over_ranks(own_var + (own_mean - mean).square(), group)  # Chan et al. 1979
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * (count / (count - 1)), momentum)
        ctx.save_for_backward(x, mean, var, weight)
        ctx.eps, ctx.group = eps, group
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx, grad):
        x, mean, var, weight = ctx.saved_tensors
        dims, by_channel = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
        rstd = (var + ctx.eps).rsqrt()
        wide = grad.to(mean.dtype)
        xhat = (x.to(mean.dtype) - mean.view(by_channel)) * rstd.view(by_channel)
        sums = torch.stack([wide.sum(dims), (wide * xhat).sum(dims)])
        grad_bias, grad_weight = sums.unbind()
        means = _mean_over_ranks(sums, ctx.group).div(x.numel() // x.shape[1])
        shift, slope = means.view(2, *by_channel)
        grad_x = (wide - shift - xhat * slope) * (weight * rstd).view(by_channel)
        return None, grad_x.to(x.dtype), None, None, grad_weight, grad_bias, None, None, None


def as_constants(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Batch norm of x [N, C, ...] by its own statistics, through which no gradient goes."""
    known, dims = x.detach(), [0, *range(2, x.ndim)]
    mean = known.mean(dims, keepdim=True)  # `torch.var_mean` takes ten times as long
    var = (known - mean).square().mean(dims)
    return F.batch_norm(x, mean.flatten(), var, weight, bias, False, 0.0, eps)


def _mean_over_ranks(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    x = x.clone()
    dist.all_reduce(x, group=group)
    return x / dist.get_world_size(group)


@contextlib.contextmanager
def one_by_one(model: nn.Module) -> Iterator[None]:
    """Within the block norms and neurons are called one by one, so that forward hooks see them."""
    norms = [module for module in model.modules() if isinstance(module, Norm)]
    were = [norm.fused for norm in norms]
    for norm in norms:
        norm.fused = False
    try:
        yield
    finally:
        for norm, fused in zip(norms, were, strict=True):
            norm.fused = fused


@contextlib.contextmanager
def constant_statistics(model: nn.Module) -> Iterator[None]:
    """Within the block no gradient goes through the statistics of a batch, and running ones do not move."""
    norms = [module for module in model.modules() if isinstance(module, Norm)]
    for norm in norms:
        norm.constant_statistics = True
    try:
        yield
    finally:
        for norm in norms:
            norm.constant_statistics = False
