"""Launches by the compiled kernel: it is always the one that Triton's own launcher would choose."""

import itertools
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
    dtype=[torch.float32, torch.bfloat16],
    second=[False, True],
    n=[1, 16, 17, 2**31, 2**31 + 1],
    scale=[0.5, 2],
    rules=[("soft", 1), ("hard", 1)],
    maxnreg=[None, 255],
)
CASES = [dict(zip(VARIED, values, strict=True)) for values in itertools.product(*VARIED.values())]


def test_the_kernel_is_tritons_choice_whatever_the_arguments(kernel):
    """Of all 640 mixtures, forwards and backwards: no wrong one, whichever came before."""
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


def test_no_address_is_taken_for_aligned(kernel):
    """By what the kernel was compiled for, after any number of launches of aligned tensors."""
    x = torch.zeros(1)
    for offset in (0, 0, 0, 1, 4, 0, 3, 8):
        given, named = arguments(offset=offset)
        launch(kernel, (1,), x, *given, **named)
        (ran,) = [one for one in kernel.device_caches[0][0].values() if one.launched]
        ran.launched.clear()
        says = ["tt.divisibility", 16] in ran.source.attrs.get((0, 0), [])
        assert says == (given[0].x.data_ptr() % 16 == 0)


def test_later_launches_do_not_pass_by_tritons_launcher(kernel):
    given, named = arguments()
    for _ in range(5):
        launch(kernel, (1,), torch.zeros(1), *given, **named)
    assert kernel.through == 2  # what is known of it, and the first of its kind


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
