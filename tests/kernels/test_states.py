"""I-LIF, CLIF, ALIF and CuBa-LIF: every backend gives what the definition gives, and the definition is the papers'."""

import itertools
import math
from types import SimpleNamespace

import pytest
import snntorch
import torch
from spikingjelly.activation_based import neuron, surrogate
from torch.utils._python_dispatch import TorchDispatchMode

from spiketriton_kernels import (
    PROBE_FIELDS,
    Surrogate,
    fire,
    multistep_alif,
    multistep_alif_reference,
    multistep_clif,
    multistep_clif_reference,
    multistep_cuba,
    multistep_cuba_reference,
    multistep_ilif,
    multistep_ilif_reference,
    operators,
    virtual_steps,
)
from spiketriton_kernels.backends import eager
from tests.covering import each
from tests.kernels.support import as_layout, dyadic, normal

FUNCTIONS = {
    "ilif": (multistep_ilif, multistep_ilif_reference),
    "clif": (multistep_clif, multistep_clif_reference),
    "alif": (multistep_alif, multistep_alif_reference),
    "cuba": (multistep_cuba, multistep_cuba_reference),
}
every_kind = pytest.mark.parametrize("kind", FUNCTIONS)
each_kind_and_backend = pytest.mark.parametrize(
    ("kind", "backend"), each([*FUNCTIONS], ["triton", "native", "torch"]), indirect=["backend"]
)
CASES = [
    ("ilif", dict(levels=4)),
    ("ilif", dict(levels=3, detach_reset=True, threshold=0.5, decay=0.5)),
    ("clif", dict()),
    ("clif", dict(detach_reset=True, surrogate=Surrogate.sigmoid(4.0), gain=0.75)),
    ("alif", dict()),
    ("alif", dict(detach_reset=False, surrogate=Surrogate.fast_sigmoid(2.0), beta=0.5)),
    ("alif", dict(reset="hard", detach_reset=False, surrogate=Surrogate.rectangle(1.5))),
    ("alif", dict(reset="hard", rho=0.5)),
    ("alif", dict(reset="none", gain=0.5)),
    ("cuba", dict(gain=0.75)),
    ("cuba", dict(reset="soft", detach_reset=False, rho=0.8, surrogate=Surrogate.sigmoid(3.0))),
    ("cuba", dict(reset="none", decay=0.875)),
]
every_case = pytest.mark.parametrize(
    ("kind", "options"),
    CASES,
    ids=["-".join([k, *(f"{n}={getattr(v, 'shape', v)}" for n, v in o.items())]) for k, o in CASES],
)


def run(function, x, seed=0, **options):
    """Spikes, last states, and the gradients of x and of all tensors among the options."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    given = {
        n: v.detach().clone().requires_grad_() if isinstance(v, torch.Tensor) else v
        for n, v in options.items()
    }
    spikes, (v, m) = function(x, **given, return_state=True)
    loss = (spikes.float() * normal(spikes.shape, device=x.device, seed=seed + 1)).sum()
    loss = loss + (v * normal(v.shape, device=x.device, seed=seed + 2)).sum()
    if m.requires_grad:
        loss = loss + (m * normal(m.shape, device=x.device, seed=seed + 3)).sum()
    loss.backward()
    grads = {"x": x.grad} | {n: v.grad for n, v in given.items() if isinstance(v, torch.Tensor)}
    return spikes.detach(), v.detach(), m.detach(), grads


def assert_equal_runs(found, expected, exact=True, rtol=1e-4, atol=1e-5):
    (spikes, *states, grads), (spikes_, *states_, grads_) = found, expected
    differing = (spikes != spikes_).float().mean()
    assert differing == 0 if exact else differing < 1e-3
    if differing:
        return
    for state, state_ in zip(states, states_, strict=True):
        if exact and state.device.type == "cpu":
            assert torch.equal(state, state_)
        torch.testing.assert_close(state, state_, rtol=1e-5, atol=1e-6)
    assert grads.keys() == grads_.keys()
    for name, grad in grads.items():
        expected_grad = grads_[name]
        size = float(expected_grad.abs().max())
        torch.testing.assert_close(grad, expected_grad, rtol=rtol, atol=atol * max(1.0, size))


SHAPES = [(1, 3, 5), (4, 2, 3, 5), (7, 2, 3, 4, 5), (19, 2, 3, 2)]


@pytest.mark.parametrize(
    ("kind", "options", "shape"),
    each([case[0] for case in CASES], [case[1] for case in CASES], SHAPES[::-1] + SHAPES[2:3]),
)
def test_every_backend_is_the_definition(kind, options, shape, backend, device):
    function, reference = FUNCTIONS[kind]
    x = normal(shape, device=device, mean=0.6, std=1.5)
    states = dict(v_init=normal(shape[1:], device=device, seed=5, std=0.5))
    if kind != "ilif":
        states["m_init"] = normal(shape[1:], device=device, seed=6, mean=0.5, std=0.3)
    expected = run(reference, x, **options, **states)
    assert 0.02 < (expected[0] > 0).float().mean() < 0.98
    assert_equal_runs(run(function, x, **options, **states), expected, exact=kind != "clif")


@pytest.mark.parametrize(("kind", "size"), each([*FUNCTIONS], [(3,), (), (3,)]), ids=str)
def test_parameters_learn(kind, size, backend, device):
    function, reference = FUNCTIONS[kind]
    names = {"decay": 0.5, "threshold": 0.75, "gain": 0.875}
    if kind == "alif":
        names |= {"rho": 0.8, "beta": 0.5}
    if kind == "cuba":
        names |= {"rho": 0.8}
    values = {
        n: torch.full(size, start, device=device)
        + (torch.linspace(0, 0.125, 3, device=device) if size else 0)
        for n, start in names.items()
    }
    x = normal((5, 2, 3, 4), device=device, mean=0.5, std=1.5)
    expected = run(reference, x, **values)
    assert all(float(expected[3][n].abs().min()) > 1e-3 for n in names)
    assert_equal_runs(run(function, x, **values), expected, exact=kind != "clif")
    mixed = values | {"decay": 0.5}  # a float beside a tensor, and one beside channels
    mixed["threshold"] = torch.tensor(0.75, device=device)
    assert_equal_runs(run(function, x, **mixed), run(reference, x, **mixed), exact=kind != "clif")


@pytest.mark.parametrize(("kind", "size"), [("clif", ()), ("alif", (3,))], ids=str)
def test_the_surrogates_width_learns(kind, size, backend, device):
    x = normal((5, 2, 3, 4), device=device, mean=0.5, std=1.5)
    found, expected = (
        run(
            lambda x, width, f=f, **o: f(x, surrogate=Surrogate("sigmoid", 0.8, width), **o),
            x, width=torch.full(size, 0.6, device=device),
        )
        for f in FUNCTIONS[kind]
    )  # fmt: skip
    assert float(expected[3]["width"].abs().min()) > 1e-3
    assert_equal_runs(found, expected, exact=kind != "clif")


# ---- what LIF has, in every kind


@every_case
def test_a_probe_measures_every_kind(kind, options, backend, device):
    """Against autograd, in the definition of one step at a time."""
    x = normal((4, 2, 3, 5), device=device, mean=0.6, std=1.5)
    upstream = normal(x.shape, device=device, seed=3)
    probe = torch.zeros(4, 8, device=device, requires_grad=True)
    function, reference = FUNCTIONS[kind]
    function(x.clone().requires_grad_(), probe=probe, **options).backward(upstream)
    currents, spikes, membranes, jumps, given = [], [], [], [], {}
    for t in range(4):
        current = x[t : t + 1].clone().requires_grad_()
        s, last = reference(current, return_state=True, **given, **options)
        (jump,) = torch.autograd.grad(last.v.sum(), current, retain_graph=True)
        v = last.v * 1.0  # with reset="none" the definition's v is h itself
        v.retain_grad()
        given = dict(v_init=v) | ({} if kind == "ilif" else dict(m_init=last.m))
        for one, of in zip(
            (current, s, v, jump), (currents, spikes, membranes, jumps), strict=True
        ):
            of.append(one)
    torch.autograd.backward(torch.cat(spikes), upstream)
    leak = options.get("decay", 0.25 if kind == "ilif" else 0.5) / options.get("gain", 1.0)
    for t, found in enumerate(probe.grad):
        own, carry = currents[t].grad, membranes[t].grad
        carry = torch.zeros_like(own) if carry is None else carry
        expected = [
            upstream[t].square().sum(), own.square().sum(), carry.square().sum(), (leak * jumps[t]).abs().sum(),
            found[4], spikes[t].sum(), own.abs().max(), torch.zeros_like(found[7]),
        ]  # fmt: skip
        torch.testing.assert_close(found, torch.stack(expected).float(), rtol=1e-4, atol=1e-4)


@every_kind
def test_outside_is_where_the_slope_is_small(kind, backend, device):
    """A rectangle passes within its width; an integer neuron up to its levels."""
    x = torch.tensor([[-3.0, -0.5, 0.2, 0.9, 1.4, 3.5, 9.0]], device=device, requires_grad=True)
    probe = torch.zeros(1, 8, device=device, requires_grad=True)
    options = {} if kind == "ilif" else dict(surrogate=Surrogate.rectangle(1.0))
    FUNCTIONS[kind][0](x, probe=probe, **options).sum().backward()
    inside = [0.2, 0.9, 1.4, 3.5] if kind == "ilif" else [0.9, 1.4]
    assert probe.grad[0, PROBE_FIELDS.index("outside")] == 7 - len(inside)
    assert x.grad.count_nonzero() == len(inside)


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ("cuba", "channels_last"),
        ("ilif", "permuted"),
        ("alif", "strided"),
        ("clif", "expanded"),
    ],
)
def test_layouts(kind, layout, backend, device):
    function, reference = FUNCTIONS[kind]
    x = as_layout(normal((4, 2, 3, 4, 5), device=device, mean=0.5, std=1.5), layout)
    threshold = torch.linspace(0.5, 1.0, 3, device=device)
    assert_equal_runs(
        run(function, x, threshold=threshold), run(reference, x, threshold=threshold), exact=kind != "clif"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, torch.float64) for kind in FUNCTIONS),
        *zip(FUNCTIONS, itertools.cycle((torch.bfloat16, torch.float16)), strict=False),
    ],
)
def test_dtypes(kind, dtype, backend, device):
    """Spikes are those of float32 (of float64): states are never rounded to 16 bits."""
    function, reference = FUNCTIONS[kind]
    x = dyadic((6, 2, 3, 5), dtype, device, low=-1.0, high=3.0)
    found = run(function, x)
    expected = run(reference, x if dtype == torch.float64 else x.float())
    assert found[0].dtype == dtype
    assert found[1].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (found[0].double() == expected[0].double()).float().mean() > (
        0.99 if kind == "clif" else 0.9999
    )
    tolerance = 1e-9 if dtype == torch.float64 else 2e-2
    torch.testing.assert_close(
        found[3]["x"].double(), expected[3]["x"].double(), rtol=tolerance, atol=tolerance
    )


@every_case
def test_the_definition_is_its_own_derivative(kind, options):
    """gradcheck of the smooth definition: surrogates are the derivatives of their primitives."""
    options = {n: v for n, v in options.items() if n != "detach_reset"}
    if options.get("surrogate", Surrogate("atan")).shape == "rectangle":
        options["surrogate"] = Surrogate("gaussian")
    _, reference = FUNCTIONS[kind]
    x = normal((4, 2, 3), torch.float64, mean=0.4).requires_grad_()
    decay = torch.full((3,), 0.6, dtype=torch.float64, requires_grad=True)

    def call(x, decay):
        return reference(
            x, **(options | {"decay": decay, "detach_reset": False}), smooth=True, return_state=False
        )  # fmt: skip

    assert torch.autograd.gradcheck(call, (x, decay))


# ---- the papers, written out, and SpikingJelly's modules


def test_ilif_is_spikingjellys(backend, device):
    count = surrogate.MultiLevelSpikeCount(4)
    for detach in (False, True):
        node = neuron.ILIFNode(
            v_threshold=0.5, surrogate_function=count, detach_reset=detach, step_mode="m"
        )
        x = dyadic((6, 2, 3, 5), device=device, low=-1.0, high=3.0).requires_grad_()
        expected = node(x)
        assert expected.max() == 4
        weight = normal(x.shape, device=device)
        (expected_grad,) = torch.autograd.grad((expected * weight).sum(), x)
        spikes = multistep_ilif(x, 1 - 1 / node.tau, threshold=0.5, detach_reset=detach)
        (grad,) = torch.autograd.grad((spikes * weight).sum(), x)
        assert torch.equal(spikes, expected)
        torch.testing.assert_close(grad, expected_grad, rtol=1e-5, atol=1e-6)


def test_clif_is_spikingjellys(backend, device):
    node = neuron.ComplementaryLIFNode(tau=2.0, surrogate_function=surrogate.ATan(), step_mode="m")
    x = normal((6, 2, 3, 50), device=device, mean=0.7, std=1.5).requires_grad_()
    expected = node(x)
    weight = normal(x.shape, device=device)
    (expected_grad,) = torch.autograd.grad((expected * weight).sum(), x)
    spikes = multistep_clif(x, surrogate=Surrogate.atan(2.0))
    (grad,) = torch.autograd.grad((spikes * weight).sum(), x)
    assert torch.equal(spikes, expected)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-5)


def test_alif_is_the_published_equation():
    """Bellec et al. 2018, one neuron by hand: the threshold rises with a spike and decays."""
    x, v, m, rho, beta = [2.0, 2.0, 2.0, 0.0, 2.0], 0.0, 0.0, 0.5, 2.0
    expected = []
    for current in x:
        h = 0.5 * v + current
        level = 1.0 + beta * m
        s = float(h >= level)
        v, m = h - level * s, rho * m + (1 - rho) * s
        expected.append(s)
    assert expected == [1.0, 1.0, 0.0, 0.0, 1.0]
    spikes, last = multistep_alif(
        torch.tensor(x).view(-1, 1), rho=rho, beta=beta, return_state=True
    )
    assert spikes.flatten().tolist() == expected
    assert (float(last.v), float(last.m)) == (v, m)


def test_integer_spikes_round_ties_to_even(backend, device):
    x = torch.tensor([-1.0, 0.5, 1.5, 2.5, 3.5, 9.0, math.nextafter(0.5, 1)], device=device)
    spikes = multistep_ilif(x.view(1, -1), levels=4)
    assert spikes.flatten().tolist() == [0, 0, 2, 2, 4, 4, 0]
    assert spikes.flatten()[-1] == torch.round(x[-1])


def test_virtual_steps_sum_to_the_integers():
    x = normal((3, 2, 5), mean=1.0, std=2.0)
    spikes = multistep_ilif(x, levels=4)
    binary = virtual_steps(spikes, 4)
    assert binary.shape == (12, 2, 5)
    assert set(binary.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(binary.unflatten(0, (3, 4)).sum(1), spikes)
    linear = torch.nn.Linear(5, 7, bias=False)
    torch.testing.assert_close(linear(binary).unflatten(0, (3, 4)).sum(1), linear(spikes))
    with pytest.raises(ValueError, match=r"\[T, B, \.\.\.\]"):
        virtual_steps(torch.tensor(1.0), 4)


# ---- the operator


@every_kind
def test_a_nan_current_gives_a_nan_state(kind, backend, device):
    x = normal((3, 2, 4), device=device)
    x[1, 0, 0] = math.nan
    _, (v, _) = FUNCTIONS[kind][0](x, return_state=True)
    assert v[0, 0].isnan()
    assert v[1].isfinite().all()


@every_kind
def test_no_neurons_is_fine(kind, backend, device):
    x = torch.zeros(3, 0, 4, device=device, requires_grad=True)
    decay = torch.full((4,), 0.5, device=device, requires_grad=True)
    FUNCTIONS[kind][0](x, decay=decay).sum().backward()
    assert x.grad.shape == x.shape
    assert torch.equal(decay.grad, torch.zeros(4, device=device))


@each_kind_and_backend
def test_the_operator_is_well_formed(kind, backend, device, monkeypatch):
    """opcheck: schema, fake tensors, autograd registration, with and without what is optional."""
    monkeypatch.setattr(fire, "traced", lambda tensors: True)
    calls = []
    operator = operators.neuron_forward
    monkeypatch.setattr(
        operators, "neuron_forward", lambda *args: calls.append(args) or operator(*args)
    )
    x = normal((3, 2, 4), device=device, mean=0.5).requires_grad_()
    decay = torch.full((4,), 0.5, device=device, requires_grad=True)
    FUNCTIONS[kind][0](x)
    FUNCTIONS[kind][0](x, decay=decay, v_init=torch.zeros_like(x[0]), return_state=True)
    for args in calls:
        torch.library.opcheck(operator, args)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda x: multistep_ilif(x, levels=0), ["levels 0", "1 to 255"]),
        (lambda x: multistep_ilif(x, levels=2.0), ["levels 2.0"]),
        (lambda x: multistep_ilif(x[0, 0]), ["(4,)", "[T, B, ...]"]),
        (lambda x: multistep_clif(x, m_init=x), ["m_init", "(3, 2, 4)", "(2, 4)"]),
        (lambda x: multistep_clif(x, decay=torch.ones(3)), ["decay", "(3,)", "dim 2"]),
        (
            lambda x: multistep_clif(x, surrogate=Surrogate("atan", width=torch.ones(3))),
            ["surrogate width", "(3,)", "dim 2"],
        ),
        (lambda x: multistep_alif(x, rho=torch.ones(3)), ["rho", "(3,)", "dim 2"]),
        (lambda x: multistep_alif(x, beta=math.inf), ["beta", "finite"]),
        (lambda x: multistep_alif(x, reset="firm"), ["reset 'firm'", "soft, hard, none"]),
    ],
)
def test_wrong_arguments_are_named(call, names):
    with pytest.raises((ValueError, TypeError)) as raised:
        call(torch.zeros(3, 2, 4))
    for name in names:
        assert name in str(raised.value)


def test_cuba_is_snntorchs_synaptic(backend, device):
    """Without a reset, which snnTorch applies a step later."""
    synaptic = snntorch.Synaptic(alpha=0.8, beta=0.75, reset_mechanism="none", threshold=1.5)
    x = normal((6, 2, 3, 50), device=device, mean=0.3, std=1.5)  # no ties, where snnTorch is silent
    current, membrane = synaptic.init_synaptic()
    expected = []
    for x_t in x:
        spikes, current, membrane = synaptic(x_t, current, membrane)
        expected.append(spikes)
    found, last = multistep_cuba(x, 0.75, threshold=1.5, rho=0.8, reset="none", return_state=True)
    assert 0.1 < found.mean() < 0.9
    assert torch.equal(found, torch.stack(expected))
    torch.testing.assert_close(last.v, membrane)
    torch.testing.assert_close(last.m, current)


def _eagerly(x, threshold):
    return eager._level_of(x, SimpleNamespace(threshold=threshold))


@pytest.mark.parametrize("function", [multistep_ilif_reference, _eagerly])
def test_ilif_divides_by_a_tensor_as_a_gpu_does_not_by_a_number(function):
    """It multiplies by a number's reciprocal, so that ties would fall otherwise than in the kernels."""
    by_tensors = []

    class Divisions(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            if operation is torch.ops.aten.div.Tensor:
                by_tensors.append(isinstance(args[1], torch.Tensor) and args[1].dim() > 0)
            return operation(*args, **(kwargs or {}))

    with Divisions():
        function(torch.ones(2, 3), threshold=0.7)
    assert by_tensors
    assert all(by_tensors)
