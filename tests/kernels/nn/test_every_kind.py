"""Every module of a neuron with everything that it can do: as its definition does it, or refused by name."""

import contextlib
from functools import partial

import pytest
import torch

from spiketriton_kernels import nn
from spiketriton_kernels.neuron import Norm
from tests.kernels.steps.neurons import Adaptive
from tests.kernels.support import normal

T, LONG, B, C, PIXELS = 4, 37, 2, 3, 5


def channels():
    return torch.nn.Parameter(torch.linspace(0.6, 1.2, C))


def leaky(**options):
    return nn.Leaky(**{"beta": 0.75} | options)


KINDS = {
    "IF": (nn.IF, ""),
    "LIF": (partial(nn.LIF, 2.0, v_reset=-0.25), ""),
    "PLIF": (nn.PLIF, "per_channel"),
    "Leaky": (leaky, "beta"),
    "delayed": (partial(leaky, reset_delay=True), "beta"),
    "with membranes": (partial(leaky, return_mem=True), "beta"),
    "ILIF": (nn.ILIF, "decay"),
    "CLIF": (nn.CLIF, "decay"),
    "ALIF": (nn.ALIF, "decay rho beta"),
    "CuBaLIF": (nn.CuBaLIF, "decay rho"),
    "PSN": (partial(nn.PSN, T), ""),
    "MaskedPSN": (partial(nn.MaskedPSN, 2, T, 0.5), ""),
    "SlidingPSN": (partial(nn.SlidingPSN, 2), ""),
    "a step of one's own": (partial(Adaptive, C), ""),
}
"""What makes each, and which of its constants, besides the threshold, can be given for each channel."""

PARALLEL = ("PSN", "MaskedPSN", "SlidingPSN")
REFUSED = (
    {(kind, feature): "accepted: a neuron" for kind in ("with membranes", *PARALLEL)
     for feature in ("norm and residual", "step gain", "spike_add", "current")}
    | {(kind, "states"): "no state" for kind in ("PSN", "MaskedPSN")}  # of which the mask is not whole
    | {(kind, "channels"): "accepted: a number" for kind in PARALLEL}
    | {(kind, "long window"): f"accepted: {T}" for kind in ("PSN", "MaskedPSN")}
)  # fmt: skip
"""What makes no sense, and a word of what is said."""


def learnt(module, call, *tensors):
    """What a call gives, and the gradients of tensors and parameters, from random gradients upstream."""
    torch.manual_seed(0)
    tensors = [t.detach().clone().requires_grad_() for t in tensors]
    out = call(module, *tensors)
    out = out if isinstance(out, tuple) else (out,)
    torch.autograd.backward(out, [normal(o.shape, seed=5 + i) for i, o in enumerate(out)])
    named = [(f"gradient of argument {i}", t.grad) for i, t in enumerate(tensors)]
    named += [(f"gradient of {n}", p.grad) for n, p in module.named_parameters()]
    return {str(i): o.detach() for i, o in enumerate(out)} | dict(named)


def behind_norm(**options):
    def call(module, y, weight, bias, *more):
        norm = Norm(weight, bias, None, None, step_gain=more[0] if options.get("gain") else None)
        given = {options["tensor"]: more[0]} if "tensor" in options else {}
        return module.fused_norm(y, norm, **given, return_current=options.get("current", False))

    return call


def spikes_of(out):
    return out[0] if isinstance(out, tuple) else out


def states(module, x):
    first, rest = (spikes_of(module(part)) for part in (x[:1], x[1:]))
    return torch.cat([first, rest]), module.v, *([] if module.m is None else [module.m])


def trace(module, x):
    return spikes_of(module(x)), module.v_seq


def x_of(steps=T):
    return normal((steps, B, C, PIXELS), mean=1.0, std=2.5)


def image(seed):
    return normal((T, B, C, PIXELS), seed=seed)


SMALL = torch.linspace(0.8, 1.2, C), torch.linspace(-0.2, 0.6, C)
CALLS = {
    "channels": (lambda module, x: module(x), x_of()),
    "long window": (lambda module, x: module(x), x_of(LONG)),
    "states": (states, x_of()),
    "trace": (trace, x_of()),
    "norm and residual": (behind_norm(tensor="residual"), x_of(), *SMALL, image(1)),
    "spike_add": (behind_norm(tensor="spike_add"), x_of(), *SMALL, image(1)),
    "step gain": (behind_norm(gain=True), x_of(), *SMALL, torch.linspace(0.8, 1.3, T)),
    "current": (behind_norm(tensor="residual", current=True), x_of(), *SMALL, image(1)),
}
"""Features that a definition has too, and what they are called with."""


def made(kind, feature=""):
    torch.manual_seed(0)
    make, own = KINDS[kind]
    options = {"trace": dict(store_v_seq=True)}.get(feature, {})
    if feature == "channels":
        options = {name: channels() for name in ("v_threshold", *own.split())}
        options |= {"per_channel": C} if "per_channel" in own else {}
    module = make(**options)
    module.stateful = feature == "states"
    return module


def as_the_definition(kind, feature):
    call, *tensors = CALLS[feature]
    found = learnt(made(kind, feature), call, *tensors)
    by_definition = made(kind, feature)
    by_definition.backend = "eager"
    expected = learnt(by_definition, call, *tensors)
    assert found.keys() == expected.keys()
    for name, right in expected.items():
        if right is None:  # of what nothing depends on
            assert found[name] is None or not found[name].any(), name
        else:
            torch.testing.assert_close(found[name], right, rtol=1e-3, atol=1e-3, msg=name)
    assert float(expected["0"].ne(0).float().mean()) > 0.02


def compiled(kind):
    module = made(kind)
    torch._dynamo.reset()
    graph = torch.compile(lambda x: module(x), fullgraph=True, backend="aot_eager", dynamic=False)
    torch.testing.assert_close(graph(x_of()), module(x_of()))


def mapped(kind):
    module, many = made(kind), torch.stack([x_of(), image(3), 2 * image(4)])
    apart, together = [module(x) for x in many], torch.vmap(module)(many)
    if isinstance(together, tuple):
        together = list(zip(*together, strict=True))
    for found, expected in zip(together, apart, strict=True):
        torch.testing.assert_close(found, expected)


OTHERS = {"compiled": compiled, "mapped": mapped}


ONE_OF_EACH = ("LIF", "ILIF", "ALIF", "with membranes", "PSN", "SlidingPSN", "a step of one's own")
"""One state, whole numbers, two states, membranes besides, all steps at once and some of them, a class of one's own.
What a call may ask for knows no kind: of the others what differs is looked at, constants, states and refusals."""
CASES = [
    (kind, feature)
    for kind in KINDS
    for feature in [*CALLS, *OTHERS]
    if kind in ONE_OF_EACH or feature in ("channels", "states") or (kind, feature) in REFUSED
]


@pytest.mark.parametrize(("kind", "feature"), CASES)
def test_every_kind_has_everything(kind, feature):
    said = REFUSED.get((kind, feature))
    with pytest.raises((TypeError, ValueError), match=said) if said else contextlib.nullcontext():
        if feature in CALLS:
            as_the_definition(kind, feature)
        else:
            OTHERS[feature](kind)
