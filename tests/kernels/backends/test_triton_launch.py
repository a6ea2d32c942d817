"""Launches by the compiled kernel: it is always the one that Triton's own launcher would choose."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import triton
from triton import language as tl

from profiling.harness.launcher import Driver, without_gpu
from spiketriton_kernels.backends import triton_launch
from spiketriton_kernels.backends.triton_launch import launch
from tests.conftest import CUDA
from tests.processes import said_by

pytestmark = pytest.mark.skipif(
    CUDA, reason="kernels that do not run: their driver stands in for a GPU's"
)


class Pair(NamedTuple):
    x: Any
    y: Any


def some_kernel(pair, out_ptr, n, scale, BLOCK: tl.constexpr, RULES: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + offs, tl.load(pair.x + offs) * scale, mask=offs < n)


class Compiled:
    """In place of Triton's: what it was compiled for, and a note of each launch."""

    def __init__(self, source: Any, target: Any, options: dict[str, Any]) -> None:
        self.source, self.options = source, options
        self.function, self.packed_metadata, self.launched = object(), object(), []

    def launch_metadata(self, *arguments: Any) -> None:
        return None

    def run(self, *arguments: Any) -> None:
        self.launched.append(arguments)


@pytest.fixture
def kernel(monkeypatch):
    """A kernel whose compiler only takes notes; `through` counts its launches through ``JITFunction.run``."""
    with pytest.MonkeyPatch.context() as patch:  # what Triton imports late, it finds interpreted
        patch.setenv("TRITON_INTERPRET", "1")
        import triton.experimental.gluon
    made = triton.JITFunction(some_kernel)
    made.through = 0
    run = made.run

    def counted(*arguments: Any, **named: Any) -> Any:
        made.through += 1
        return run(*arguments, **named)

    made.run = counted
    monkeypatch.setattr(triton_launch, "_known", {})
    monkeypatch.setattr(triton_launch, "_compiled", {})
    monkeypatch.setattr(triton_launch, "_plans", {})
    monkeypatch.setattr(triton_launch, "_met", set())
    with without_gpu(Driver()):
        assert len(made.device_caches[0]) == 5
        made.compile = Compiled
        yield made


def arguments(
    offset=0,
    dtype=torch.float32,
    second=False,
    n=32,
    scale=0.5,
    block=128,
    rules=("soft", 1),
    **options,
):
    memory = torch.zeros(64, dtype=dtype)
    assert memory.data_ptr() % 16 == 0
    pair = Pair(memory[offset:], memory if second else None)
    return (pair, memory, n, scale), dict(BLOCK=block, RULES=rules, **options)


VARIED = dict(
    offset=[0, 1, 4, 8],
    n=[1, 16, 17, 2**31, 2**31 + 1],
    dtype=[torch.float32, torch.bfloat16],
    second=[False, True],
    scale=[0.5, 2],
    rules=[("soft", 1), ("hard", 1)],
    maxnreg=[None, 255],
)
CASES = [
    {kind: values[i % len(values)] for kind, values in VARIED.items()} | {name: value}
    for i in range(3)
    for name, options in VARIED.items()
    for value in options
]
"""Around three of them, what differs in one argument alone."""


def test_the_kernel_is_tritons_choice_whatever_the_arguments(kernel):
    """Forwards and backwards: no wrong one, whichever came before."""
    x = torch.zeros(1)
    for case in CASES + CASES[::-1]:
        given, named = arguments(**case)
        options = dict(num_warps=4, enable_fp_fusion=False)
        options |= {name: value for name, value in named.items() if value is not None}
        expected = kernel[(3,)](*given, **options)
        expected.launched.clear()
        for _ in range(2):
            launch(kernel, (3, 2), x, *given, **named)
        assert len(expected.launched) == 2
        _, again = expected.launched
        assert again[:6] == (3, 2, 1, 0, expected.function, expected.packed_metadata)
        assert [id(a) for a in again[9:13]] == [id(a) for a in given]
        assert again[13:] == (named["BLOCK"], named["RULES"])
    kinds = len(kernel.device_caches[0][0])
    assert kernel.through == 2 * len(CASES) + kinds + 1  # what is expected, and the first of each
    assert triton_launch._known == {id(kernel): kernel}  # held, so that the id stays its own


def test_who_watches_launches_sees_them(kernel, monkeypatch):
    given, named = arguments()

    def run():
        before = kernel.through
        launch(kernel, (1,), torch.zeros(1), *given, **named)
        return kernel.through - before

    assert [run(), run(), run()] == [1, 1, 0]
    seen = []
    kernel.pre_run_hooks.append(lambda *_, **__: seen.append("run"))
    assert run() == 1
    assert seen == ["run"]
    kernel.pre_run_hooks.clear()
    hook = lambda metadata: seen.append("enter")  # noqa: E731
    chain = triton.knobs.runtime.launch_enter_hook
    if chain is None:
        monkeypatch.setattr(triton.knobs.runtime, "launch_enter_hook", hook)
    else:
        chain.add(hook)
    try:
        assert run() == 1
        (ran,) = kernel.device_caches[0][0].values()
        assert ran.launched[-1][7] is not None
    finally:
        if chain is not None:
            chain.remove(hook)
    monkeypatch.undo()


def test_who_is_told_of_launches_may_make_them_instead(kernel):
    """A launch that would be repeated, too."""
    given, named = arguments()
    x = given[1]

    def work(*_):
        launch(kernel, (5,), x, *given, **named)

    for _ in range(4):
        triton_launch.repeat(work, (), (), [x, given[0][0]])
    (ran,) = kernel.device_caches[0][0].values()
    assert len(triton_launch._plans) == 1
    told, before = [], len(ran.launched)
    for instead in (False, True):

        def tell(one, programs, args, by_name, instead=instead):
            told.append((one, programs, args, by_name["BLOCK"]))
            return instead

        with triton_launch.telling(tell):
            triton_launch.repeat(work, (), (), [x, given[0][0]])
    assert told == [(kernel, (5,), given, named["BLOCK"])] * 2
    assert len(ran.launched) == before + 1
    triton_launch.repeat(work, (), (), [x, given[0][0]])
    assert len(told) == 2


@pytest.mark.parametrize(
    "missing", ["run", "function", "packed_metadata", "device_caches", "pre_run_hooks", "knobs"]
)
def test_a_triton_of_another_make_is_asked_each_time(kernel, monkeypatch, missing):
    """One of the names that the short way takes is not there: ``JITFunction`` alone is used."""
    ran = SimpleNamespace(run=print, function=1, packed_metadata=1)
    calls = []
    other = SimpleNamespace(device_caches=kernel.device_caches, pre_run_hooks=[])
    if missing == "knobs":
        monkeypatch.delattr(triton, "knobs")
    else:
        delattr(ran if hasattr(ran, missing) else other, missing)

    class Other:
        def __getattr__(self, name):
            return getattr(other, name)

        def __getitem__(self, grid):
            return lambda *args, **named: calls.append(grid) or ran

    one = Other()
    for _ in range(3):
        launch(one, (7,), torch.zeros(1), 1, BLOCK=2)
    assert calls == [(7,)] * 3


CALLS = """
import json
from dataclasses import fields
import torch, triton
from profiling.harness.launcher import Driver, without_gpu
from spiketriton_kernels import multistep_bn_lif, multistep_lif
from spiketriton_kernels.backends import triton_launch, triton_neuron
from spiketriton_kernels.neuron import Gradients
from tests.child import Compiled, stub_compiler

launched, names = [], {}

class Noted(Compiled):
    def run(self, *arguments):
        x, y, z, *_ = arguments
        given = [role(one) for one in arguments[9:]]
        launched.append((self.source.fn.__name__, str((self.source.signature, self.source.attrs)), x, y, z, given))

def role(value):
    if isinstance(value, torch.Tensor):
        return names.get(id(value), f"room {list(value.shape)}")
    if isinstance(value, tuple):
        return [role(one) for one in value]
    return str(value)

def named(function):
    def call(*arguments):
        names.clear()
        for i, argument in enumerate(arguments):
            if isinstance(argument, torch.Tensor):
                names[id(argument)] = f"{i}"
            elif isinstance(argument, tuple):
                names.update({id(one): f"{i}.{n}" for n, one in enumerate(argument) if isinstance(one, torch.Tensor)})
            elif isinstance(argument, Gradients):
                for field in fields(argument):
                    names[id(getattr(argument, field.name))] = f"{i}.{field.name}"
        names.pop(id(None), None)
        function(*arguments)
    return call

def tensor(*shape, dtype=torch.float32, offset=0, last=False):
    flat = torch.zeros(torch.Size(shape).numel() + offset, dtype=dtype)[offset:]
    if last:
        T, B, C, H, W = shape
        return flat.view(T, B, H, W, C).permute(0, 1, 4, 2, 3)
    return flat.view(shape)

def call(T=4, B=4, dtype=torch.float32, offset=0, last=False, residual=None, learnt=None, momentum=0.1, probe=False):
    C = 8
    x = tensor(T, B, C, 4, 4, dtype=dtype, offset=offset, last=last).requires_grad_()
    weight, bias, mean, var = [tensor(C, offset=n % 2) for n in range(4)]
    weight.requires_grad_()
    extra = {}
    if residual:
        extra["residual"] = x if residual == "same" else torch.zeros_like(x)
    if learnt:
        extra["decay"] = torch.full((C,) if learnt == "channels" else (), 0.5, requires_grad=True)
    if probe:
        extra["probe"] = torch.zeros(T, 8, requires_grad=True)
    launched.clear()
    if momentum is None:
        s = multistep_lif(x, **extra)
    else:
        s = multistep_bn_lif(x, weight, bias, mean, var, momentum=momentum, **extra)
    s.backward(torch.zeros_like(s))
    return list(launched)

VARIED = [
    dict(), dict(last=True), dict(last=True, offset=1), dict(last=True, dtype=torch.bfloat16), dict(B=3), dict(T=5),
    dict(residual="other"), dict(residual="same"), dict(learnt="one"), dict(learnt="channels"), dict(momentum=0.2),
    dict(probe=True), dict(T=20), dict(momentum=None), dict(momentum=None, offset=1, learnt="one"),
    dict(momentum=None, T=20, learnt="channels"),
]
for name in ("forward", "backward"):
    setattr(triton_neuron, name, named(getattr(triton_neuron, name)))
differ = []
with without_gpu(Driver()):
    stub_compiler(Noted)
    repeat = triton_neuron.repeat
    triton_neuron.repeat = lambda work, arguments, *_: work(*arguments)
    expected = [(call(**case), call(**case))[1] for case in VARIED]
    triton_neuron.repeat = repeat
    for turn in range(4):
        for case, launches in [*zip(VARIED, expected)][:: 1 - 2 * (turn % 2)]:
            if call(**case) != launches:
                differ.append((turn, str(case), launches, list(launched)))
print(json.dumps([len(triton_launch._plans), [len(e) for e in expected], differ]))
"""


def test_passes_of_all_kinds_are_repeated_as_they_would_run():
    """In a process where nothing is interpreted, of real calls: which kernel, on what grid, with which tensor where."""
    plans, launches, differ = said_by(CALLS)
    assert not differ
    assert (min(launches), max(launches)) == (2, 7)
    assert (
        plans == 28
    )  # momentum and probe are known in one direction, x as its own residual in none
