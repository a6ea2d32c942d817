"""Every kind of neuron with everything that a neuron can do: as its definition does it, or refused by name.

Each kind meets each feature once, on Triton and compiled C++ by turns.
"""

import contextlib

import pytest
import torch

from spiketriton_kernels import (
    nn,
    use_backend,
)
from spiketriton_kernels.definition import define
from spiketriton_kernels.neuron import Norm
from spiketriton_kernels.nn import neurons
from tests.conftest import need_native
from tests.kernels.support import normal

T, LONG, B, C, PIXELS = 4, 37, 2, 3, 5


def channels():
    return torch.nn.Parameter(torch.linspace(0.6, 1.2, C))


def constants(which, **own):
    """Numbers, or the threshold and what else a kind can learn for each channel."""
    return own | {"v_threshold": channels()} if which == "channels" else {}


KINDS = {
    "IF": lambda **o: nn.IF(**constants(o.pop("constants")), **o),
    "LIF": lambda **o: nn.LIF(2.0, v_reset=-0.25, **constants(o.pop("constants")), **o),
    "PLIF": lambda **o: nn.PLIF(**constants(o.pop("constants"), per_channel=C), **o),
    "Leaky": lambda **o: nn.Leaky(**{"beta": 0.75} | constants(o.pop("constants"), beta=channels()), **o),
    "delayed": lambda **o: nn.Leaky(
        **{"beta": 0.75} | constants(o.pop("constants"), beta=channels()), reset_delay=True, **o
    ),
    "with membranes": lambda **o: nn.Leaky(
        **{"beta": 0.75} | constants(o.pop("constants"), beta=channels()), return_mem=True, **o
    ),
    "ILIF": lambda **o: nn.ILIF(**constants(o.pop("constants"), decay=channels()), **o),
    "CLIF": lambda **o: nn.CLIF(**constants(o.pop("constants"), decay=channels()), **o),
    "ALIF": lambda **o: nn.ALIF(
        **constants(o.pop("constants"), decay=channels(), rho=channels(), beta=channels()), **o
    ),
    "CuBaLIF": lambda **o: nn.CuBaLIF(
        **constants(o.pop("constants"), decay=channels(), rho=channels()), **o
    ),
    "PSN": lambda **o: nn.PSN(T, **constants(o.pop("constants")), **o),
    "MaskedPSN": lambda **o: nn.MaskedPSN(2, T, 0.5, **constants(o.pop("constants")), **o),
    "SlidingPSN": lambda **o: nn.SlidingPSN(2, **constants(o.pop("constants")), **o),
}  # fmt: skip
PARALLEL = ("PSN", "MaskedPSN", "SlidingPSN")
REFUSED = (
    {(kind, feature): "accepted: a neuron" for kind in ("with membranes", *PARALLEL)
     for feature in ("norm and residual", "step gain", "spike_add", "current")}
    | {(kind, "states"): "no state" for kind in PARALLEL}
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


def made(kind, feature):
    torch.manual_seed(0)
    options = {"states": dict(stateful=True), "trace": dict(store_v_seq=True)}.get(feature, {})
    if feature == "states" and kind in PARALLEL:
        module = KINDS[kind](constants="numbers")
        module.stateful = True
        return module
    return KINDS[kind](constants=feature if feature == "channels" else "numbers", **options)


def as_the_definition(kind, feature, monkeypatch):
    call, *tensors = CALLS[feature]
    found = learnt(made(kind, feature), call, *tensors)
    monkeypatch.setattr(neurons, "fire", define)
    expected = learnt(made(kind, feature), call, *tensors)
    assert found.keys() == expected.keys()
    for name, right in expected.items():
        if right is None:  # of what nothing depends on
            assert found[name] is None or not found[name].any(), name
        else:
            torch.testing.assert_close(found[name], right, rtol=1e-3, atol=1e-3, msg=name)
    assert float(expected["0"].ne(0).float().mean()) > 0.02


def compiled(kind):
    module = made(kind, "compiled")
    torch._dynamo.reset()
    graph = torch.compile(lambda x: module(x), fullgraph=True, backend="aot_eager", dynamic=False)
    assert_equal(graph(x_of()), module(x_of()))


def mapped(kind):
    module, many = made(kind, "mapped"), torch.stack([x_of(), image(3), 2 * image(4)])
    apart = [module(x) for x in many]
    together = (
        [torch.stack(o) for o in zip(*apart, strict=True)]
        if isinstance(apart[0], tuple)
        else torch.stack(apart)
    )
    assert_equal(torch.vmap(module)(many), together)


def assert_equal(found, expected):
    found, expected = (o if isinstance(o, tuple | list) else [o] for o in (found, expected))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


OTHERS = {"compiled": compiled, "mapped": mapped}
SWEEP = [(kind, feature) for kind in KINDS for feature in (*CALLS, *OTHERS)]


@pytest.mark.parametrize(
    ("kind", "feature", "backend"),
    [(*case, ("triton", "native")[sum(divmod(i, len(CALLS) + len(OTHERS))) % 2]) for i, case in enumerate(SWEEP)],
)  # fmt: skip
def test_every_kind_has_everything(kind, feature, backend, request, monkeypatch):
    request.getfixturevalue("triton_backend") if backend == "triton" else need_native()
    said = REFUSED.get((kind, feature))
    refuses = (
        pytest.raises((TypeError, ValueError), match=said) if said else contextlib.nullcontext()
    )
    with use_backend(backend), refuses:
        if feature in CALLS:
            as_the_definition(kind, feature, monkeypatch)
        else:
            OTHERS[feature](kind)
