"""Memory safety: every buffer lies between borders, and nobody goes there.

Whatever the package allocates (outputs, partial sums, copies) is cut out of buffers whose borders
hold a sentinel, so a write across an edge is found; inputs sit in larger tensors full of NaN, so a
read across an edge poisons the result. Interpreted Triton is watched address by address besides,
and the compiled pass runs once between pages of memory that nobody may touch.
"""

import ctypes
import faulthandler
import math
import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from spiketriton_kernels import (
    PROBE_FIELDS,
    pack_spikes,
    unpack_spikes,
    use_backend,
)
from tests.conftest import CUDA, START, need_native
from tests.kernels.cases import KINDS, PLAIN, answered, by_kernels, compiled, drawn
from tests.kernels.support import case_id, normal, pairwise

BORDER = 8192
"""Elements on either side: more than a tile or block of any backend."""

SENTINEL = {torch.uint8: 171}

_empty_like = torch.empty_like


def dense_strides(x: torch.Tensor) -> tuple[int, ...]:
    """The strides of ``empty_like``: those of x where x has no gaps."""
    return _empty_like(x, device="meta").stride()


class Guard:
    """Hands out tensors with borders, and looks at the borders afterwards."""

    def __init__(self) -> None:
        self.buffers: list[tuple[torch.Tensor, int]] = []
        self.inputs: list[tuple[torch.Tensor, int]] = []

    def cut(self, size: Any, stride: Any, dtype: torch.dtype, device: Any) -> torch.Tensor:
        """An uninitialised (NaN) tensor of the given dense strides inside a bordered buffer."""
        n, sentinel = math.prod(size), SENTINEL.get(dtype, -77.0)
        buffer = torch.full((n + 2 * BORDER,), sentinel, dtype=dtype, device=device)
        buffer[BORDER : BORDER + n] = math.nan if dtype.is_floating_point else 0
        self.buffers.append((buffer, n))
        return buffer[BORDER:].as_strided(tuple(size), tuple(stride))

    def poisoned(self, x: torch.Tensor) -> torch.Tensor:
        """x inside a larger tensor of NaN, in its own layout."""
        buffer = torch.full((x.numel() + 2 * BORDER,), math.nan, dtype=x.dtype, device=x.device)
        self.inputs.append((buffer, x.numel()))
        return buffer[BORDER:].as_strided(x.shape, dense_strides(x)).copy_(x).detach()

    def check(self) -> None:
        for buffer, n in self.buffers:
            sentinel = SENTINEL.get(buffer.dtype, -77.0)
            assert buffer[:BORDER].eq(sentinel).all(), "written before a buffer"
            assert buffer[BORDER + n :].eq(sentinel).all(), "written behind a buffer"

    def borders(self) -> np.ndarray:
        """[2, borders]: first address and end of each, in order."""
        found = []
        for buffer, n in (*self.buffers, *self.inputs):
            start, size = buffer.data_ptr(), buffer.element_size()
            found.append((start, start + BORDER * size))
            found.append((start + (BORDER + n) * size, start + (2 * BORDER + n) * size))
        return np.array(sorted(found), dtype=np.uint64).T

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Interpreted loads are checked address by address: even one whose value nobody uses."""
        from triton.runtime.interpreter import InterpreterBuilder

        load, known = InterpreterBuilder.create_masked_load, {}

        def watched(builder, pointers, mask, *rest):
            if self.inputs:
                count = len(self.buffers) + len(self.inputs)
                if count not in known:
                    known[count] = self.borders()
                first, end = known[count]
                touched = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)]
                place = np.searchsorted(first, touched, side="right") - 1
                outside = (place >= 0) & (touched < end[place])
                assert not outside.any(), "read outside a buffer"
            return load(builder, pointers, mask, *rest)

        monkeypatch.setattr(InterpreterBuilder, "create_masked_load", watched)


def take_allocations(monkeypatch: pytest.MonkeyPatch, cut: Callable[..., torch.Tensor]) -> None:
    """All of the package's allocations go through ``cut(size, stride, dtype, device)``."""
    contiguous = lambda size: torch.empty(size, device="meta").stride()  # noqa: E731

    def empty_like(x, dtype=None, **_):
        return cut(x.shape, dense_strides(x), dtype or x.dtype, x.device)

    def new_empty(x, *size, dtype=None, **_):
        size = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        return cut(size, contiguous(size), dtype or x.dtype, x.device)

    def new_zeros(x, *size, dtype=None, **_):
        return new_empty(x, *size, dtype=dtype).zero_()

    def empty_strided(size, stride, dtype=None, device=None):
        return cut(size, stride, dtype, device)

    monkeypatch.setattr(torch, "empty_like", empty_like)
    monkeypatch.setattr(torch, "empty_strided", empty_strided)
    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    monkeypatch.setattr(torch.Tensor, "new_zeros", new_zeros)


@pytest.fixture
def guard(monkeypatch) -> Guard:
    guard = Guard()
    take_allocations(monkeypatch, guard.cut)
    if not CUDA:
        guard.watch(monkeypatch)
    return guard


SIZES = [(1, 1, 1), (3, 5, 7), (2, 4, 3, 3), (1, 2, 16, 16), (1, 2, 129), (1, 130, 1)]
LAYOUTS = ["contiguous", "channels_last", "permuted"]
CASES = pairwise(
    dict(
        equation=KINDS.values(),
        size=SIZES,
        T=[3, 1, 17],
        layout=LAYOUTS,
        dtype=[torch.float32, torch.bfloat16],
        norm=["none", "batch", "given"],
        decay=["channel", "scalar"],
        trace=[True, False],
        current=[True, False],
    )
)


LAUNCHED = [
    CASES[i] | {"equation": [*KINDS.values()][i % len(KINDS)]} | case
    for i, case in enumerate(
        pairwise({"size": SIZES, "norm": ["none", "batch", "given"], "layout": LAYOUTS})
    )
]
"""Interpreted: what a tile depends on meets in pairs, and each kind comes four times."""
NATIVE = [*map(compiled, CASES)]
EVERYWHERE = [*(("native", case) for case in NATIVE), *(("torch", case) for case in CASES)]


def call(case: dict, device: torch.device | str, place: Callable = torch.Tensor.clone) -> list:
    """Results and gradients of a call with every tensor argument, its probe's too."""
    several = ("residual", "spike_add", "step_gain", "running")
    case = (
        PLAIN
        | dict(states="wide", width="channel", threshold="channel")
        | dict.fromkeys(several, True)
        | case
    )
    if case["norm"] == "batch" and case["T"] == 1:  # one value a channel has no variance
        case["norm"] = "given"
    probe = place(torch.zeros(case["T"], len(PROBE_FIELDS), device=device)).requires_grad_()
    found = answered(by_kernels, case, drawn(case, device), place=place, probe=probe)
    return [value.clone() for value in (*found.values(), probe.grad)]


@pytest.mark.parametrize(
    ("backend", "case"),
    [*(("triton", case) for case in LAUNCHED), *EVERYWHERE],
    indirect=["backend"],
    ids=lambda one: one if isinstance(one, str) else case_id(one),
)
def test_no_byte_outside_is_read_or_written(backend, device, guard, case):
    if backend == "triton" and math.prod(case["size"]) > 110:  # interpreted
        case = case | {"T": 3}
    expected = call(case, device)
    guard.check()
    allocations = len(guard.buffers)
    given = call(case, device, guard.poisoned)
    guard.check()
    assert len(guard.buffers) > allocations > 3, "the package's allocations are not guarded"
    for one, two in zip(given, expected, strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, two)


@pytest.mark.parametrize("n", [1, 8, 9, 4097])
def test_packing_stays_inside(backend, device, guard, n):
    spikes = (normal((n,), device=device) > 0).float()
    bits = pack_spikes(guard.poisoned(spikes))
    assert torch.equal(unpack_spikes(bits, spikes.shape, spikes.stride()), spikes)
    guard.check()
    assert guard.buffers


def test_the_guard_sees_a_stray_write(guard):
    """The net under the nets: one element before or behind a buffer is found."""
    for offset in (-1, 6):
        out = torch.empty_like(torch.zeros(6))
        guard.check()
        guard.buffers[-1][0][BORDER + offset] = 0.0
        with pytest.raises(AssertionError, match="written"):
            guard.check()
        guard.buffers.clear()
        assert out.isnan().all()


# ---- the compiled pass between forbidden pages


class Cage:
    """Tensors flush against a page of memory whose touch ends the process (SIGSEGV)."""

    def __init__(self, flush: str) -> None:
        self.flush, self.kept = flush, []
        self.libc = ctypes.CDLL(None, use_errno=True)

    def cut(self, size: Any, stride: Any, dtype: torch.dtype, device: Any) -> torch.Tensor:
        n, page = math.prod(size), mmap.PAGESIZE
        bytes_ = n * dtype.itemsize
        pages = -(-max(bytes_, 1) // page)
        memory = mmap.mmap(-1, (pages + 2) * page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for forbidden in (start, start + (pages + 1) * page):
            assert self.libc.mprotect(ctypes.c_void_p(forbidden), page, 0) == 0
        self.kept.append(memory)
        offset = page if self.flush == "left" else (pages + 1) * page - bytes_
        if n == 0:
            return torch.empty(tuple(size), dtype=dtype)
        flat = torch.frombuffer(memory, dtype=dtype, count=n, offset=offset)
        return flat.as_strided(tuple(size), tuple(stride))

    def place(self, x: torch.Tensor) -> torch.Tensor:
        return self.cut(x.shape, dense_strides(x), x.dtype, x.device).copy_(x)


def caged_main(rank: int, flush: str) -> None:
    """The cases on the native backend, in a process of their own."""
    cage = Cage(flush)
    with pytest.MonkeyPatch.context() as patch, use_backend("native"):
        take_allocations(patch, cage.cut)
        for case in NATIVE:
            assert all(value.isfinite().all() for value in call(case, "cpu", cage.place))
        spikes = cage.place((normal((4097,)) > 0).float())
        assert torch.equal(unpack_spikes(pack_spikes(spikes), (4097,), (1,)), spikes)


def trespass(rank: int, flush: str) -> None:
    """A read of one element behind or before a caged tensor."""
    faulthandler.disable()  # it ends as it should
    tensor = Cage(flush).cut((3,), (1,), torch.float32, "cpu")
    ctypes.c_float.from_address(tensor.data_ptr() + (12 if flush == "right" else -4)).value  # noqa: B018


@pytest.mark.parametrize("flush", ["left", "right"])
def test_the_compiled_pass_stays_between_forbidden_pages(flush):
    need_native()
    mp.start_processes(caged_main, (flush,), start_method=START)
    with pytest.raises(mp.ProcessExitedException, match="SIGSEGV"):
        mp.start_processes(trespass, (flush,), start_method=START)
