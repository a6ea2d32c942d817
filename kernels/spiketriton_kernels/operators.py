"""The PyTorch operators: one that fires, one that walks back, one that sums channels. Everything else is composition.

The forward saves its input, and membrane checkpoints where the window outgrows the registers; nothing else. Batch
norm's two backward passes both replay the membrane from the input instead of storing anything of its size.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.autograd import forward_ad

from .arguments import PROBE_FIELDS
from .backends import eager, native, triton_neuron, triton_norm
from .backends.choice import backend_for
from .layout import CHUNK, channel_axis, chunk_length, dense, like, step_like
from .neuron import Call, Emit, Gradients, Neuron, as_small, membrane_dtype


def checkpoints(x: torch.Tensor, norm: bool) -> int:
    """Membranes that the forward must save for x: one between each two chunks, on the Triton backend only."""
    if x.shape[0] <= CHUNK or backend_for(x) != "triton":
        return 0
    return -(-x.shape[0] // chunk_length(x.shape[0], norm)) - 1


_NEURON = {"triton": triton_neuron, "native": native, "torch": eager}
_NORM = {"triton": triton_norm, "native": native, "torch": eager}


@torch.library.custom_op("spiketriton::neuron_forward", mutates_args=())
def neuron_forward(
    x: torch.Tensor,
    v_init: torch.Tensor | None,
    residual: torch.Tensor | None,
    spike_add: torch.Tensor | None,
    decay: torch.Tensor | None,
    threshold: torch.Tensor | None,
    width: torch.Tensor | None,
    mean: torch.Tensor | None,
    var: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    step_gain: torch.Tensor | None,
    probe: torch.Tensor | None,
    words: str,
    floats: list[float],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(spikes, v_last or empty, membrane checkpoints or empty). Only the backward reads the probe."""
    tensors = (decay, threshold, width, mean, var, weight, bias, step_gain)
    neuron, call = Neuron.of(x, tensors, words, floats), Call.of(words)
    spikes, v_last, saved = _allocate_forward(x, neuron.has_norm, call)
    if x.numel() == 0:
        return spikes, v_last.fill_(neuron.v_start), saved
    v_init = None if v_init is None else step_like(v_init, x)
    residual = None if residual is None else like(residual, x)
    spike_add = None if spike_add is None else like(spike_add, x)
    _NEURON[backend_for(x)].forward(
        x, v_init, residual, spike_add, neuron, spikes, v_last if call.return_v else None, saved
    )
    return spikes, v_last, saved


def _allocate_forward(x: torch.Tensor, norm: bool, call: Call) -> tuple[torch.Tensor, ...]:
    wide = membrane_dtype(x.dtype)
    v_last = torch.empty_like(x[0], dtype=wide) if call.return_v else x.new_empty(0, dtype=wide)
    rows = checkpoints(x, norm) if call.save else 0
    return torch.empty_like(x), v_last, x.new_empty((rows, x[0].numel()), dtype=wide)


@neuron_forward.register_fake
def _(
    x, v_init, residual, spike_add, decay, threshold, width, mean, var, weight, bias, step_gain, probe, words, floats
):  # fmt: skip
    return _allocate_forward(x, mean is not None, Call.of(words))


@torch.library.custom_op("spiketriton::neuron_backward", mutates_args=())
def neuron_backward(
    grad_s: torch.Tensor,
    grad_v_last: torch.Tensor | None,
    x: torch.Tensor,
    saved: torch.Tensor,
    v_init: torch.Tensor | None,
    residual: torch.Tensor | None,
    decay: torch.Tensor | None,
    threshold: torch.Tensor | None,
    width: torch.Tensor | None,
    mean: torch.Tensor | None,
    var: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    step_gain: torch.Tensor | None,
    sums: torch.Tensor | None,
    count: float,
    emit: str,
    words: str,
    floats: list[float],
) -> tuple[
    torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor
]:
    """One walk back. ``emit`` names Emit's fields; what it does not ask for comes back empty."""
    tensors = (decay, threshold, width, mean, var, weight, bias, step_gain)
    neuron, wanted = Neuron.of(x, tensors, words, floats), Emit.decode(emit)
    out = _allocate(x, neuron, wanted)
    if x.numel() > 0:
        v_init = None if v_init is None else step_like(v_init, x)
        residual = None if residual is None else like(residual, x)
        grad_s = like(grad_s.to(x.dtype), x)
        grad_v_last = None if grad_v_last is None else step_like(grad_v_last, x)
        # Missing checkpoints: the forward ran on another backend, or vmap hid that a gradient is wanted.
        missing = saved.shape[0] < checkpoints(x, mean is not None)
        backend = eager if missing else _NEURON[backend_for(x)]
        backend.backward(
            grad_s, grad_v_last, x, saved, v_init, residual, neuron, wanted, sums, count, out
        )
    else:
        for total in (out.sums, out.parameters, out.step_gain, out.probe):
            if total is not None:
                total.zero_()
    fields = (out.dx, out.dy, out.sums, out.v_init, out.parameters, out.step_gain, out.probe)
    return tuple(x.new_empty(0) if f is None else f for f in fields)  # type: ignore[return-value]


def _allocate(x: torch.Tensor, neuron: Neuron, emit: Emit) -> Gradients:
    wide = membrane_dtype(x.dtype)
    channels = channel_axis(x)[0]
    new = lambda *shape, dtype=wide: x.new_empty(shape, dtype=dtype)  # noqa: E731
    return Gradients(
        dx=torch.empty_like(x) if emit.dx else None,
        dy=torch.empty_like(x) if emit.dy else None,
        sums=new(2, channels) if emit.sums else None,
        v_init=torch.empty_like(x[0], dtype=wide) if emit.v_init else None,
        parameters=new(3, neuron.parameter_size) if emit.parameters else None,
        step_gain=new(x.shape[0]) if emit.step_gain else None,
        probe=new(x.shape[0], len(PROBE_FIELDS), dtype=torch.float32) if emit.probe else None,
    )


@neuron_backward.register_fake
def _(
    grad_s, grad_v_last, x, saved, v_init, residual, decay, threshold, width, mean, var, weight, bias, step_gain,
    sums, count, emit, words, floats,
):  # fmt: skip
    tensors = (decay, threshold, width, mean, var, weight, bias, step_gain)
    out = _allocate(x, Neuron.of(x, tensors, words, floats), Emit.decode(emit))
    fields = (out.dx, out.dy, out.sums, out.v_init, out.parameters, out.step_gain, out.probe)
    return tuple(x.new_empty(0) if f is None else f for f in fields)


def _no_double_backward(ctx, *grads):
    raise RuntimeError(
        "spiketriton's fused neurons have no double backward; use multistep_lif_reference for second derivatives"
    )


neuron_backward.register_autograd(_no_double_backward)


def _norm_backward(dx, y, mean, var, weight, step_gain, sums, eps, bn_scale, count, dy) -> None:
    if y.numel() == 0:
        return
    small = [None if p is None else as_small(p, y) for p in (mean, var, weight, step_gain)]
    _NORM[backend_for(y)].norm_backward(dx, y, *small, sums, eps, bn_scale, count, dy)


@torch.library.custom_op("spiketriton::norm_backward", mutates_args=())
def norm_backward(
    dx: torch.Tensor,
    y: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    weight: torch.Tensor | None,
    step_gain: torch.Tensor | None,
    sums: torch.Tensor,
    eps: float,
    bn_scale: float,
    count: float,
) -> torch.Tensor:
    """dL/dy of batch norm from the stored dL/dx and the channel sums: the second pass when dL/dx is needed itself."""
    dy = torch.empty_like(y)
    _norm_backward(like(dx, y), y, mean, var, weight, step_gain, sums, eps, bn_scale, count, dy)
    return dy


@norm_backward.register_fake
def _(dx, y, mean, var, weight, step_gain, sums, eps, bn_scale, count):
    return torch.empty_like(y)


norm_backward.register_autograd(_no_double_backward)


@torch.library.custom_op("spiketriton::norm_backward_", mutates_args=("grad",))
def norm_backward_(
    grad: torch.Tensor,
    y: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    weight: torch.Tensor | None,
    step_gain: torch.Tensor | None,
    sums: torch.Tensor,
    eps: float,
    bn_scale: float,
    count: float,
) -> None:
    """The same in place: grad is dL/dx, in the memory order of y, and becomes dL/dy."""
    _norm_backward(grad, y, mean, var, weight, step_gain, sums, eps, bn_scale, count, grad)


@torch.library.custom_op("spiketriton::channel_statistics", mutates_args=())
def channel_statistics(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of each channel (dim 2) of y [T, B, C, ...] over everything else, [C] each.

    One pass over memory. Neither a mean far from zero nor a few elements far from the rest lose digits.
    """
    return _NORM[backend_for(y)].channel_statistics(y)


@channel_statistics.register_fake
def _(y):
    wide = membrane_dtype(y.dtype)
    return y.new_empty(y.shape[2], dtype=wide), y.new_empty(y.shape[2], dtype=wide)


_TENSORS = ("v_init", "residual", "spike_add", *Neuron.TENSORS)


def _setup_context(ctx, inputs, output):
    x, *tensors, _, words, floats = inputs
    named = dict(zip(_TENSORS, tensors, strict=True))
    del named["spike_add"]  # its gradient is that of the spikes
    ctx.names = [name for name, value in named.items() if value is not None]
    ctx.save_for_backward(x, output[2], *(named[name] for name in ctx.names))
    ctx.words, ctx.floats = words, floats
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_s, grad_v_last, _grad_saved):
    x, saved, *rest = ctx.saved_tensors
    named = dict.fromkeys(_TENSORS) | dict(zip(ctx.names, rest, strict=True))
    del named["spike_add"]
    call = Call.of(ctx.words)
    numbers = dict(zip(Neuron.FLOATS, ctx.floats, strict=True))
    needs = dict(
        zip(("x", *_TENSORS, "probe", "words", "floats"), ctx.needs_input_grad, strict=True)
    )
    grads: dict[str, torch.Tensor | None] = dict.fromkeys(needs)
    if not call.return_v:
        grad_v_last = None  # of the empty tensor that stands for it
    if grad_s is None and grad_v_last is None:
        return tuple(grads.values())
    if needs["spike_add"]:
        grads["spike_add"] = grad_s
    if grad_s is None:
        grad_s = torch.zeros_like(x)

    parameters = needs["decay"] or needs["threshold"] or needs["width"]
    observed = dict(v_init=needs["v_init"], parameters=parameters, probe=needs["probe"])

    def walk(emit: Emit, sums: torch.Tensor | None = None, count: float = 1.0) -> Gradients:
        fields = neuron_backward(
            grad_s,
            grad_v_last,
            x,
            saved,
            **named,
            sums=sums,
            count=count,
            emit=emit.encode(),
            words=ctx.words,
            floats=ctx.floats,
        )
        return Gradients(
            **{n: f for n, f in zip(Emit.FIELDS, fields, strict=True) if getattr(emit, n)}
        )

    if named["mean"] is None:
        out = walk(Emit(dx=True, **observed))
        grads["x"], grads["residual"] = out.dx, out.dx if needs["residual"] else None
    else:
        batch = needs["x"] and call.batch_statistics
        # Replaying the membrane again is free where bytes are what costs, on a GPU; elsewhere dL/dx is kept.
        kept = batch and backend_for(x) != "triton"
        out = walk(
            Emit(
                dx=needs["residual"] or kept,
                dy=needs["x"] and not batch,
                sums=True,
                step_gain=needs["step_gain"],
                **observed,
            )
        )
        grads["x"], grads["step_gain"] = out.dy, out.step_gain
        grads["residual"] = out.dx if needs["residual"] else None
        if batch:
            grads["x"] = _batch_norm_input_gradient(
                call.group, numbers, x, named, out, walk, needs["residual"]
            )
        assert out.sums is not None
        grads["weight"] = out.sums[1] * numbers["bn_scale"] if needs["weight"] else None
        grads["bias"] = out.sums[0] if needs["bias"] else None
    grads["v_init"], grads["probe"] = out.v_init, out.probe
    if out.parameters is not None:
        for name, row in zip(
            ("decay", "threshold", "width"), out.parameters.unbind(0), strict=True
        ):
            parameter = named[name]
            if parameter is not None and needs[name]:
                grads[name] = row if parameter.dim() else row.sum()
    for name, given in named.items():
        grad = grads[name]
        if grad is not None and given is not None and grad.dtype != given.dtype:
            grads[name] = grad.to(given.dtype)
    return tuple(grads.values())


def _batch_norm_input_gradient(
    group_name, numbers, x, named, out, walk, dx_is_wanted
) -> torch.Tensor:
    """The second pass: from dL/dx where the first has stored it, else by replaying once more."""
    count = float(x.numel() // x.shape[2])
    sums = out.sums
    if group_name:
        group = dist.distributed_c10d._resolve_process_group(group_name)
        sums = sums.clone()
        dist.all_reduce(sums, group=group)
        count *= dist.get_world_size(group)
    if out.dx is None:
        return walk(Emit(dy=True), sums=sums, count=count).dy
    rest = (
        x, named["mean"], named["var"], named["weight"], named["step_gain"], sums,
        numbers["eps"], numbers["bn_scale"], count,
    )  # fmt: skip
    if dx_is_wanted:
        return norm_backward(out.dx, *rest)
    norm_backward_(out.dx, *rest)
    return out.dx


neuron_forward.register_autograd(_backward, setup_context=_setup_context)


def _refuse_tangents(*tensors: torch.Tensor | None) -> None:
    """PyTorch would take the tangents of a custom operator's results for 0, and say nothing."""
    for tensor in tensors:
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise RuntimeError(
                "spiketriton's fused neurons have no forward-mode derivative (jvp); accepted: backward()"
            )


def fire(
    x: torch.Tensor,
    neuron: Neuron,
    call: Call,
    *,
    v_init: torch.Tensor | None = None,
    probe: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    spike_add: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run checked arguments through the operator; (spikes, last membrane or empty)."""
    x = dense(x)
    tensors = neuron.tensors()
    learning = (x, v_init, residual, spike_add, *tensors, probe)
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        _refuse_tangents(*learning)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in learning)
    words = neuron.words(call._replace(save=save))
    spikes, v_last, _ = neuron_forward(
        x, v_init, residual, spike_add, *tensors, probe, words, neuron.floats()
    )
    return spikes, v_last
