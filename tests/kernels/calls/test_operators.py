"""The PyTorch operators behind the functions: opcheck, compile, determinism, what backward keeps."""

import contextlib
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from spiketriton_kernels import (
    Surrogate,
    multistep_bn_lif,
    multistep_lif,
    use_backend,
)
from spiketriton_kernels.backends import native
from spiketriton_kernels.window import fire, operators, passes
from tests.conftest import need_native
from tests.covering import each
from tests.kernels.cases import KINDS, PLAIN, answered, by_kernels, drawn
from tests.kernels.support import dyadic, normal

EVERYTHING = PLAIN | dict(
    equation="lif hard", norm="batch", running=True, residual=True, spike_add=True, step_gain=True, states="wide",
    decay="channel", threshold="scalar", width="channel", current=True, size=(2, 3, 4, 2), T=3,
)  # fmt: skip


def norm(C: int, device: torch.device | str = "cpu") -> list[torch.Tensor]:
    """weight, bias, running_mean, running_var."""
    values = [torch.full((C,), value, device=device) for value in (1.1, 0.4, 0.1, 1.2)]
    return [value.requires_grad_(i < 2) for i, value in enumerate(values)]


def all_of(case: dict[str, Any], device: torch.device | str) -> dict[str, torch.Tensor]:
    """Results and gradients, a probe's among them."""
    probe = torch.zeros(case["T"], 8, device=device, requires_grad=True)
    found = answered(by_kernels, case, drawn(case, device), probe=probe)
    return found | {"probe": probe.grad}


@pytest.fixture
def as_operators(monkeypatch):
    """Calls take the way of a traced graph: by the operators."""
    monkeypatch.setattr(fire, "traced", lambda tensors: True)


# ---- opcheck


OPERATORS = ("neuron_forward", "neuron_backward", "channel_statistics")
LOOKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)
# with all options and with none, dynamically compiled too; of each kind what its outputs are, as
# test_every_kind.py compiles each
OPCHECKED = [
    ("native", EVERYTHING | dict(layout="channels_last"), LOOKS),
    ("torch", PLAIN | dict(norm="batch", size=(2, 3, 5), T=2), LOOKS),
    *((backend, PLAIN | dict(equation=e, size=size, states="wide", T=2), LOOKS[:3])
      for backend, e, size in each(
          ["native", "torch"], [*KINDS.values()], [(1, 2, 2, 2), (2, 3), (2, 3, 4), (1, 2, 2, 2, 2)])),
    ("triton", PLAIN | dict(T=17, size=(1, 1, 3)), LOOKS[:3]),  # the fake outputs count the checkpoints too
]  # fmt: skip


@pytest.mark.parametrize(("backend", "case", "looks"), OPCHECKED, indirect=["backend"])
def test_opcheck(backend, device, case, looks, monkeypatch, as_operators):
    """Schema, fake tensors, autograd registration and dynamic compilation of every operator that is called."""
    real, called = {name: getattr(operators, name) for name in OPERATORS}, {}

    def spy(name):
        def call(*args):
            called[name] = args
            return real[name](*args)

        return call

    for name in OPERATORS:
        monkeypatch.setattr(operators, name, spy(name))
    all_of(case, device)
    assert called.keys() >= {"neuron_forward", "neuron_backward"}
    assert ("channel_statistics" in called) == (case["norm"] == "batch")
    for name, args in list(called.items()):
        learns = name == "neuron_forward"  # the others have no double backward, and say so
        args = [
            a.detach().clone().requires_grad_(learns and a.requires_grad)
            if isinstance(a, torch.Tensor)
            else a
            for a in args
        ]
        torch.library.opcheck(real[name], args, test_utils=looks)


# ---- two ways: passes called directly, and as operators where something looks at operators


@pytest.mark.parametrize(
    "ways",
    [("as operators",), ("autocast",), ("autocast", "as operators")],
    ids=str,
)
def test_both_ways_give_the_same_bits(backend, device, ways, monkeypatch):
    expected = all_of(EVERYTHING, device)
    if "as operators" in ways:
        monkeypatch.setattr(fire, "traced", lambda tensors: True)
    cast = torch.autocast(torch.device(device).type, torch.bfloat16)
    with cast if "autocast" in ways else contextlib.nullcontext():
        found = all_of(EVERYTHING, device)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        if name.startswith("running"):  # torch's lerp contracts, the kernels do not
            torch.testing.assert_close(found[name], value)
        else:
            assert torch.equal(found[name], value), name


class Seen(TorchDispatchMode):
    """The package's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.namespace == "spiketriton":
            self.names.add(operator._opname)
        return operator(*args, **(kwargs or {}))


def test_a_dispatch_mode_and_a_profiler_see_operators():
    y = normal((3, 2, 3, 4)).requires_grad_()
    with Seen() as seen:
        multistep_bn_lif(y, *norm(3)).sum().backward()
    assert seen.names == {"neuron_forward", "neuron_backward", "channel_statistics"}
    with torch.profiler.profile() as profile:
        multistep_bn_lif(y, *norm(3)).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {"spiketriton::neuron_forward", "spiketriton::neuron_backward"} <= names


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_who_looks_at_operators_gets_them(monkeypatch):
    """Without one of these a call is not traced."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    x = torch.zeros(2, 3)
    plain = [x, torch.nn.Parameter(x)]
    assert not fire.traced(plain)
    assert fire.traced([torch.zeros(2, 3, device="meta")])
    with FakeTensorMode() as mode:
        assert fire.traced(plain)
    assert fire.traced([mode.from_tensor(x)])

    class Own(torch.Tensor):
        pass

    assert fire.traced([x, x.as_subclass(Own)])
    found = []
    torch.vmap(lambda one: found.append(fire.traced(plain)) or one)(x)
    torch.jit.trace(lambda one: found.append(fire.traced(plain)) or one * 2, x, check_trace=False)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert [*found, fire.traced(plain)] == [True] * 3


class Function(torch.nn.Module):
    def forward(self, x):
        return multistep_lif(x * 2)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_exported_programs_hold_plain_operators():
    """But for a strict export, whose compiler follows no definition."""
    x = normal((3, 2, 4))
    for strict in (False, True):
        program = torch.export.export(Function(), (torch.zeros(3, 2, 4),), strict=strict)
        assert ("spiketriton.neuron_forward" in program.graph_module.code) == strict
        assert torch.equal(program.module()(x), multistep_lif(x * 2))
    traced = torch.jit.trace(Function(), torch.zeros(3, 2, 4))
    assert "spiketriton::" not in str(traced.inlined_graph)
    assert torch.equal(traced(x), multistep_lif(x * 2))


# ---- torch.compile


def compiled(backend: str):
    """multistep_bn_lif after a multiplication, compiled whole."""

    def network(y, scale, weight, bias, mean, var):
        spikes, v_last, trace = multistep_bn_lif(
            y * scale, weight, bias, mean, var, reset="soft", return_v=True, return_trace=True
        )
        spikes = multistep_lif(spikes * 0.7, decay=0.9, surrogate=Surrogate("sigmoid"))
        return spikes, v_last, trace

    torch._dynamo.reset()
    return network, torch.compile(network, backend=backend, fullgraph=True)


def gradients(function, y: torch.Tensor) -> list[torch.Tensor]:
    leaf, scale = y.clone().requires_grad_(), torch.tensor(1.3, requires_grad=True)
    buffers = norm(y.shape[2])
    outs = function(leaf, scale, *buffers)
    sum(out.square().sum() for out in outs).backward()
    grads = [leaf.grad, scale.grad, buffers[0].grad, buffers[1].grad]
    return [*(out.detach() for out in outs), *grads, *buffers[2:]]


def test_compiled_without_graph_breaks():
    """fullgraph=True, forward and backward equal to eager; another batch size compiles on."""
    eager, fast = compiled("aot_eager")
    for B in (2, 3, 5):
        y = normal((4, B, 3, 2, 2), seed=B, mean=0.3)
        for one, two in zip(gradients(eager, y), gradients(fast, y), strict=True):
            torch.testing.assert_close(one, two)


@pytest.mark.slow  # test_compiled_without_graph_breaks goes all the way but for the code that inductor writes
def test_compiled_by_inductor():
    need_native()
    eager, fast = compiled("inductor")
    y = normal((3, 2, 3, 2, 2), mean=0.3)
    for one, two in zip(gradients(eager, y), gradients(fast, y), strict=True):
        torch.testing.assert_close(one, two)


# ---- derivatives that there are not


@pytest.mark.parametrize("behind", ["nothing", "norm", "norm and residual"])
@pytest.mark.parametrize("road", ["directly", "as operators"])
def test_double_backward_is_refused_in_words(behind, road, request):
    if road == "as operators":
        request.getfixturevalue("as_operators")
    x = normal((3, 2, 3, 4)).requires_grad_()
    residual = dyadic(x.shape) if "residual" in behind else None
    out = (
        multistep_lif(x)
        if behind == "nothing"
        else multistep_bn_lif(x, *norm(3), residual=residual)
    )
    (grad,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no double backward; use multistep_lif_reference"):
        grad.sum().backward()


X = normal((3, 2, 3, 4))


@pytest.mark.parametrize(
    ("function", "at"),
    [
        (multistep_lif, X),
        (lambda decay: multistep_lif(X, decay), torch.tensor(0.5)),
        (lambda r: multistep_bn_lif(X, None, None, None, None, residual=r), X),
    ],
    ids=["x", "decay", "residual"],
)
def test_forward_mode_is_refused_in_words(function, at):
    """PyTorch gives a custom operator tangents of 0 without a word."""
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(function, (at,), (torch.ones_like(at),))
    with torch.autograd.forward_ad.dual_level():
        assert multistep_lif(X).shape == X.shape  # nothing is differentiated here


# ---- the same bits every time


@pytest.mark.parametrize(
    ("layout", "dtype"), [("contiguous", torch.float32), ("channels_last", torch.bfloat16)], ids=str
)
def test_runs_on_any_number_of_threads_are_equal_in_every_bit(layout, dtype):
    need_native()
    case = EVERYTHING | dict(layout=layout, dtype=dtype, T=5, size=(4, 16, 33, 13))
    assert 4 * native.GRAIN < 5 * 4 * 16 * 33 * 13  # enough for four
    threads, found = torch.get_num_threads(), []
    try:
        with use_backend("native"):
            for number in (1, 2, 3, 4, 4):
                torch.set_num_threads(number)
                found.append(all_of(case, "cpu"))
    finally:
        torch.set_num_threads(threads)
    for one in found[1:]:
        assert all(torch.equal(value, found[0][name]) for name, value in one.items())


# ---- what is kept for backward


def test_running_statistics_that_change_are_noticed_by_autograd(backend, device):
    """Frozen statistics that a forward has kept must not change before its backward."""
    y = normal((3, 2, 3, 4), device=device).requires_grad_()
    buffers = norm(3, device)
    frozen = multistep_bn_lif(y, *buffers, training=False)
    multistep_bn_lif(y.detach(), *buffers)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        frozen.sum().backward()


def test_what_is_kept_passes_through_hooks(backend, device):
    found = []

    def pack(tensor):
        found.append(tensor.double() if tensor.is_floating_point() else tensor)
        return len(found) - 1, tensor.dtype

    expected = all_of(EVERYTHING, device)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda at: found[at[0]].to(at[1])):
        hooked = all_of(EVERYTHING, device)
    assert found
    assert all(torch.equal(value, expected[name]) for name, value in hooked.items())


def kept(function, x: torch.Tensor) -> list[tuple[torch.Size, torch.dtype]]:
    """(shape, dtype) of every tensor that is saved for backward, a storage once."""
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor):
        if tensor.numel():
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        assert function(x).requires_grad
    return sorted((tuple(t.shape), t.dtype) for t in saved.values())


@pytest.mark.parametrize(
    ("dtype", "residual"), [(torch.float32, False), (torch.bfloat16, True)], ids=str
)
def test_behind_batch_norm_only_its_input_is_kept(backend, device, dtype, residual):
    """y, the residual where there is one, and weight and bias, [C]; mean and variance are in the call's record."""
    y = normal((4, 2, 3, 2, 2), dtype, device).requires_grad_()
    extra = normal(y.shape, dtype, device, seed=1).requires_grad_() if residual else None
    saved = kept(lambda y: multistep_bn_lif(y, *norm(3, device), residual=extra), y)
    large = [(tuple(y.shape), dtype)] * (2 if residual else 1)
    assert saved == [((3,), torch.float32)] * 2 + large


@pytest.mark.parametrize(("T", "rows"), [(16, 0), (17, 1), (64, 3)])
@pytest.mark.parametrize("backend", ["triton", "native", "torch"], indirect=True)
def test_checkpoints_of_long_windows(backend, device, T, rows):
    """Triton keeps a float32 membrane between chunks of at most 16 steps; others none."""
    x = normal((T, 1, 2, 5), torch.bfloat16, device).requires_grad_()
    checkpoints = [((rows, 1, 10), torch.float32)] if rows and backend == "triton" else []
    assert kept(multistep_lif, x) == sorted([(tuple(x.shape), torch.bfloat16), *checkpoints])


@pytest.mark.parametrize("forward", ["torch", "native"])
def test_backward_after_a_forward_that_kept_no_checkpoints(triton_backend, forward):
    """A window beyond one chunk, begun on another backend: nothing is read where nothing was saved."""
    if forward == "native":
        need_native()
    x = normal((33, 1, 2, 3))
    for function in (multistep_lif, lambda x: multistep_bn_lif(x, None, None, None, None)):
        found = []
        for backends in ((forward, "triton"), ("torch", "torch")):
            leaf = x.clone().requires_grad_()
            with use_backend(backends[0]):
                out = function(leaf)
            with use_backend(backends[1]):
                out.sum().backward()
            found.append(leaf.grad)
        torch.testing.assert_close(*found)


def test_gradients_of_a_long_window_under_vmap(triton_backend):
    """vmap hides from the forward that gradients are wanted, so it keeps no checkpoints."""
    x = normal((2, 17, 1, 2, 3))
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    with use_backend("triton"):
        torch.vmap(multistep_lif)(one).square().sum().backward()
        torch.stack([multistep_lif(each) for each in two]).square().sum().backward()
    torch.testing.assert_close(one.grad, two.grad)


def test_without_gradients_nothing_is_kept(triton_backend, monkeypatch):
    """Inference writes spikes only, whatever the length of the window."""
    allocate, found = passes.allocate_forward, []
    monkeypatch.setattr(
        passes, "allocate_forward", lambda *args: found.append(allocate(*args)) or found[-1]
    )
    with use_backend("triton"), torch.no_grad():
        multistep_lif(normal((33, 1, 2, 3)).requires_grad_())
    assert [value is not None for value in found[0]] == [True, *[False] * 4]
