"""The PyTorch operators behind the functions: opcheck, compile, determinism, what backward keeps."""

from typing import Any

import pytest
import torch

from spiketriton_kernels import (
    PROBE_FIELDS,
    Surrogate,
    fire,
    multistep_bn_lif,
    multistep_lif,
    operators,
    passes,
    use_backend,
)
from spiketriton_kernels.backends import native
from tests.conftest import need_native
from tests.covering import each, pairwise
from tests.kernels.support import as_layout, dyadic, normal


def norm(C: int, device: torch.device | str = "cpu") -> list[torch.Tensor]:
    """weight, bias, running_mean, running_var."""
    values = [torch.full((C,), value, device=device) for value in (1.1, 0.4, 0.1, 1.2)]
    return [value.requires_grad_(i < 2) for i, value in enumerate(values)]


def everything(x: torch.Tensor) -> dict[str, Any]:
    """Every tensor argument of a neuron, each wanting a gradient."""
    C, device = x.shape[2], x.device
    return dict(
        decay=torch.full((C,), 0.7, device=device, requires_grad=True),
        threshold=torch.tensor(0.9, device=device, requires_grad=True),
        surrogate=Surrogate("atan", width=torch.full((C,), 0.8, device=device, requires_grad=True)),
        v_init=normal(x.shape[1:], device=device, seed=3, std=0.1).requires_grad_(),
        probe=torch.zeros(x.shape[0], len(PROBE_FIELDS), device=device, requires_grad=True),
        detach_reset=False,
        return_v=True,
    )


def extras(y: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(
        residual=normal(y.shape, y.dtype, y.device, seed=1, std=0.3).requires_grad_(),
        spike_add=dyadic(y.shape, y.dtype, y.device, seed=2).requires_grad_(),
        step_gain=torch.linspace(0.8, 1.2, y.shape[0], device=y.device).requires_grad_(),
    )


# ---- opcheck


class Spy:
    """Stands before an operator and keeps what it is called with."""

    def __init__(self, operator: Any) -> None:
        self.operator, self.calls = operator, []
        self.__name__ = getattr(operator, "__name__", "operator")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((args, kwargs))
        return self.operator(*args, **kwargs)


OPERATORS = ("neuron_forward", "neuron_backward", "norm_backward", "channel_statistics")


@pytest.fixture
def as_operators(monkeypatch):
    """Calls take the way of a traced graph: by the operators."""
    monkeypatch.setattr(fire, "traced", lambda tensors: True)


def leaf(value: Any, learns: bool) -> Any:
    """A leaf of the same layout in place of a tensor."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().clone().requires_grad_(learns and value.requires_grad)


@pytest.fixture
def spies(monkeypatch, as_operators):
    found = {name: Spy(getattr(operators, name)) for name in OPERATORS}
    for name, spy in found.items():
        monkeypatch.setattr(operators, name, spy)
    return found


def check(spies: dict[str, Spy], expected: set[str]) -> None:
    """opcheck of every operator that was called, with what it was called with."""
    last = {name: spy.calls[-1] for name, spy in spies.items() if spy.calls}
    assert last.keys() == expected
    for name, (args, kwargs) in last.items():
        learns = name == "neuron_forward"  # the others have no double backward, and say so
        args = tuple(leaf(value, learns) for value in args)
        kwargs = {key: leaf(value, learns) for key, value in kwargs.items()}
        torch.library.opcheck(spies[name].operator, args, kwargs)


@pytest.mark.parametrize(
    ("size", "backend"),
    each([(2, 3), (2, 3, 5), (2, 3, 4, 2), (1, 2, 2, 2, 2)], ["native", "torch"]),
    indirect=["backend"],
    ids=str,
)
def test_opcheck_of_the_neuron(backend, device, spies, size):
    """Schema, fake tensors, autograd registration and dynamic compilation, at every rank."""
    x = normal((3, *size), device=device).requires_grad_()
    spikes, v_last = multistep_lif(x, **everything(x))
    (spikes.sum() + v_last.sum()).backward()
    check(spies, {"neuron_forward", "neuron_backward"})


@pytest.mark.parametrize(
    ("backend", "layout", "given"),
    pairwise(
        ["native", "torch"], ["contiguous", "channels_last"], ["nothing", "residual and more"]
    ),
    indirect=["backend"],
)
def test_opcheck_of_the_neuron_behind_batch_norm(backend, device, spies, layout, given):
    y = as_layout(normal((3, 2, 3, 4, 2), device=device), layout).requires_grad_()
    options = everything(y) | extras(y) if given != "nothing" else dict(return_v=True)
    options["return_current"] = given != "nothing"
    outs = multistep_bn_lif(y, *norm(3, device), **options)
    sum(out.sum() for out in outs).backward()
    check(spies, {"neuron_forward", "neuron_backward", "channel_statistics"})


@pytest.mark.parametrize("backend", ["native", "torch"], indirect=True)
def test_opcheck_of_the_second_pass_over_ranks(backend, device):
    """Alone: it runs where ranks share the statistics."""
    x, sums = normal((3, 2, 3, 4), device=device), normal((2, 3), device=device)
    mean, var = operators.channel_statistics(x)
    args = (x, x + 1, mean, var, None, None, sums, 1e-5, 1.0, 24.0)
    torch.library.opcheck(operators.norm_backward, args)


def test_opcheck_of_one_interpreted_call(triton_backend, spies):
    """T beyond one chunk: the fake outputs count the membrane checkpoints too."""
    with use_backend("triton"):
        x = normal((17, 1, 1, 3)).requires_grad_()
        multistep_lif(x).sum().backward()
        check(spies, {"neuron_forward", "neuron_backward"})


# ---- two ways: passes called directly, and as operators where something looks at operators


@pytest.mark.parametrize(
    ("dtype", "layout"), [(torch.float32, "contiguous"), (torch.bfloat16, "channels_last")], ids=str
)
def test_both_ways_give_the_same_bits(backend, device, dtype, layout, monkeypatch):
    x = as_layout(normal((3, 2, 3, 4, 2), dtype, device, mean=0.3), layout)
    direct = results(x)
    calls = Spy(operators.neuron_forward)
    monkeypatch.setattr(operators, "neuron_forward", calls)
    monkeypatch.setattr(fire, "traced", lambda tensors: True)
    traced = results(x)
    assert len(calls.calls) == 2
    *values, mean, var = zip(direct, traced, strict=True)
    for one, two in values:
        assert torch.equal(one, two)
    for one, two in (mean, var):  # torch's lerp contracts, the kernels do not
        torch.testing.assert_close(one, two)


def seen(run) -> set[str]:
    """The package's operators that a dispatch mode sees."""
    from torch.utils._python_dispatch import TorchDispatchMode

    found = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            if operator.namespace == "spiketriton":
                found.add(operator._opname)
            return operator(*args, **(kwargs or {}))

    with Watch():
        run()
    return found


def test_a_dispatch_mode_sees_operators(backend, device):
    y = normal((3, 2, 3, 4), device=device).requires_grad_()
    run = lambda: multistep_bn_lif(y, *norm(3, device)).sum().backward()  # noqa: E731
    assert seen(run) == {"neuron_forward", "neuron_backward", "channel_statistics"}


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


def test_exported_programs_hold_operators():
    class Module(torch.nn.Module):
        def forward(self, x):
            return multistep_lif(x * 2)

    program = torch.export.export(Module(), (torch.zeros(3, 2, 4),))
    assert "spiketriton.neuron_forward" in program.graph_module.code
    x = normal((3, 2, 4))
    assert torch.equal(program.module()(x), multistep_lif(x * 2))


@pytest.mark.parametrize("road", ["directly", "as operators"])
def test_autocast_changes_nothing(backend, device, road, request):
    if road == "as operators":
        request.getfixturevalue("as_operators")
    x = normal((3, 2, 3, 4), device=device, mean=0.3)
    expected = results(x)
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        given = results(x)
    for one, two in zip(given, expected, strict=True):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)


def test_a_profiler_sees_the_passes_by_their_operators_names(backend, device):
    y = normal((3, 2, 3, 4), device=device).requires_grad_()
    with torch.profiler.profile() as profile:
        multistep_bn_lif(y, *norm(3, device)).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {"spiketriton::neuron_forward", "spiketriton::neuron_backward"} <= names


def test_running_statistics_that_change_are_noticed_by_autograd(backend, device):
    """Frozen statistics that a forward has kept must not change before its backward."""
    y = normal((3, 2, 3, 4), device=device).requires_grad_()
    weight, bias, mean, var = norm(3, device)
    frozen = multistep_bn_lif(y, weight, bias, mean, var, training=False)
    before = mean.clone(), var.clone()
    multistep_bn_lif(y.detach(), weight, bias, mean, var)
    assert not torch.equal(mean, before[0])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        frozen.sum().backward()


def test_what_is_kept_passes_through_hooks(backend, device):
    y = normal((3, 2, 3, 4), device=device).requires_grad_()
    multistep_bn_lif(y, *norm(3, device)).square().sum().backward()
    expected, y.grad = y.grad, None
    stored = []

    def pack(tensor):
        stored.append(tensor.double() if tensor.is_floating_point() else tensor)
        return len(stored) - 1, tensor.dtype

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda at: stored[at[0]].to(at[1])):
        spikes = multistep_bn_lif(y, *norm(3, device))
        spikes.square().sum().backward()
    assert torch.equal(y.grad, expected)


# ---- torch.compile


def compiled(backend: str):
    """multistep_bn_lif after a multiplication, compiled whole."""

    def network(y, scale, weight, bias, mean, var):
        spikes, v_last = multistep_bn_lif(
            y * scale, weight, bias, mean, var, reset="soft", return_v=True
        )
        return multistep_lif(spikes * 0.7, decay=0.9, surrogate=Surrogate("sigmoid")), v_last

    torch._dynamo.reset()
    return network, torch.compile(network, backend=backend, fullgraph=True)


def gradients(function, y: torch.Tensor) -> list[torch.Tensor]:
    leaf, scale = y.clone().requires_grad_(), torch.tensor(1.3, requires_grad=True)
    buffers = norm(y.shape[2])
    spikes, v_last = function(leaf, scale, *buffers)
    (spikes.sum() + v_last.square().sum()).backward()
    grads = [leaf.grad, scale.grad, buffers[0].grad, buffers[1].grad]
    return [spikes.detach(), v_last.detach(), *grads, *buffers[2:]]


@pytest.mark.parametrize("backend", ["native", "torch"], indirect=True)
def test_compiled_without_graph_breaks(backend):
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


# ---- derivatives of derivatives


@pytest.mark.parametrize(
    ("function", "road"),
    [("lif", "directly"), ("bn_lif", "as operators"), ("bn_lif and residual", "directly")],
)
def test_double_backward_is_refused_in_words(backend, device, function, road, request):
    if road == "as operators":
        request.getfixturevalue("as_operators")
    x = normal((3, 2, 3, 4), device=device).requires_grad_()
    if function == "lif":
        out = multistep_lif(x)
    else:
        residual = extras(x)["residual"] if "residual" in function else None
        out = multistep_bn_lif(x, *norm(3, device), residual=residual)
    (grad,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no double backward; use multistep_lif_reference"):
        grad.sum().backward()


@pytest.mark.parametrize("given", ["x", "decay", "residual"])
def test_forward_mode_is_refused_in_words(backend, device, given):
    """PyTorch gives a custom operator tangents of 0 without a word."""
    x = normal((3, 2, 3, 4), device=device)
    affine = norm(3, device)[:2]
    functions = {
        "x": (multistep_lif, x),
        "decay": (lambda decay: multistep_lif(x, decay), torch.tensor(0.5, device=device)),
        "residual": (
            lambda r: multistep_bn_lif(x, *affine, None, None, residual=r),
            x,
        ),
    }
    function, at = functions[given]
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(function, (at,), (torch.ones_like(at),))
    with torch.autograd.forward_ad.dual_level():
        assert multistep_lif(x).shape == x.shape  # nothing is differentiated here


# ---- the same bits every time


def results(x: torch.Tensor) -> list[torch.Tensor]:
    """Every output and gradient of both functions, with all that is reduced over many elements."""
    found = []
    for function in ("lif", "bn_lif"):
        leaf = x.clone().requires_grad_()
        options = everything(leaf)
        if function == "lif":
            outs = multistep_lif(leaf, **options)
            given = {}
        else:
            given = extras(leaf) | dict(zip(("w", "b", "m", "v"), norm(x.shape[2]), strict=True))
            affine = [given[name] for name in ("w", "b", "m", "v")]
            more = {name: given[name] for name in ("residual", "spike_add", "step_gain")}
            outs = multistep_bn_lif(leaf, *affine, **more, **options)
        torch.autograd.backward(outs, [normal(out.shape, out.dtype, seed=8) for out in outs])
        tensors = [v for v in {**given, **options}.values() if isinstance(v, torch.Tensor)]
        tensors += [leaf, options["surrogate"].width]
        found += [*outs, *(t.grad for t in tensors if t.grad is not None)]
        found += [given[name] for name in ("m", "v") if name in given]
    return [value.detach() for value in found]


@pytest.mark.parametrize(
    ("layout", "dtype"), [("contiguous", torch.float32), ("channels_last", torch.bfloat16)], ids=str
)
def test_runs_on_any_number_of_threads_are_equal_in_every_bit(dtype, layout):
    need_native()
    x = as_layout(normal((5, 4, 16, 33, 13), dtype, mean=0.3), layout)
    assert x.numel() > 4 * native.GRAIN  # enough for four
    threads = torch.get_num_threads()
    try:
        with use_backend("native"):
            torch.set_num_threads(1)
            first = results(x)
            assert len(first) == 23
            for number in (2, 3, 4, 4):
                torch.set_num_threads(number)
                for one, two in zip(first, results(x), strict=True):
                    assert torch.equal(one, two)
    finally:
        torch.set_num_threads(threads)


# ---- what is kept for backward


def kept(function, *inputs: torch.Tensor) -> list[tuple[torch.Size, torch.dtype]]:
    """(shape, dtype) of every tensor that is saved for backward, a storage once."""
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor):
        if tensor.numel():
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outs = function(*inputs)
    assert any(out.requires_grad for out in (outs if isinstance(outs, tuple) else (outs,)))
    return sorted((tuple(t.shape), t.dtype) for t in saved.values())


def bytes_of(saved: list[tuple[torch.Size, torch.dtype]]) -> int:
    return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in saved)


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
def test_checkpoints_of_long_windows(triton_backend, T, rows):
    """Triton keeps a float32 membrane between chunks of at most 16 steps; others none."""
    need_native()
    x = normal((T, 1, 2, 5), torch.bfloat16).requires_grad_()
    for name in ("triton", "native", "torch"):
        with use_backend(name):
            saved = kept(multistep_lif, x)
        large = (tuple(x.shape), torch.bfloat16)
        checkpoints = [((rows, 1, 10), torch.float32)] if rows and name == "triton" else []
        assert saved == sorted([large, *checkpoints]), name
    assert bytes_of([large]) == 2 * x.numel()


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


def test_without_gradients_nothing_is_kept(triton_backend):
    """Inference writes spikes only, whatever the length of the window."""
    with use_backend("triton"):
        x = normal((33, 1, 2, 3)).requires_grad_()
        with torch.no_grad():
            found = Spy(passes.neuron_forward)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(passes, "neuron_forward", found)
                spikes = multistep_lif(x)
            args, kwargs = found.calls[0]
            assert passes.neuron_forward(*args, **kwargs).saved is None
        assert spikes.grad_fn is None
