"""Memory safety: every buffer lies between poisoned borders that are checked after each launch.

Inputs sit in larger tensors full of NaN, so a read across an edge poisons the result; whatever the
package allocates (outputs, partial sums, copies) is cut out of buffers whose borders hold a
sentinel, so a write across an edge is found.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from spiketriton_kernels import (
    PROBE_FIELDS,
    Surrogate,
    multistep_bn_lif,
    multistep_lif,
    pack_spikes,
    unpack_spikes,
)
from tests.kernels.support import as_layout, case_id, normal, pairwise

BORDER = 8192
"""Elements on either side: more than a tile or block of any backend."""

SENTINEL = {torch.uint8: 171}


class Guard:
    """Hands out tensors with borders, and looks at the borders afterwards."""

    def __init__(self) -> None:
        self.buffers: list[tuple[torch.Tensor, int]] = []

    def cut(self, size: Any, stride: Any, dtype: torch.dtype, device: Any) -> torch.Tensor:
        """An uninitialised (NaN) tensor of the given dense strides inside a bordered buffer."""
        n = math.prod(size)
        buffer = torch.full(
            (n + 2 * BORDER,), SENTINEL.get(dtype, -77.0), dtype=dtype, device=device
        )
        buffer[BORDER : BORDER + n] = math.nan if dtype.is_floating_point else 0
        self.buffers.append((buffer, n))
        return buffer[BORDER:].as_strided(tuple(size), tuple(stride))

    def check(self) -> None:
        for buffer, n in self.buffers:
            sentinel = SENTINEL.get(buffer.dtype, -77.0)
            assert buffer[:BORDER].eq(sentinel).all(), "written before a buffer"
            assert buffer[BORDER + n :].eq(sentinel).all(), "written behind a buffer"


_empty_like = torch.empty_like


def dense_strides(x: torch.Tensor) -> tuple[int, ...]:
    """The strides of ``empty_like``: those of x where x has no gaps."""
    return _empty_like(x, device="meta").stride()


@pytest.fixture
def guard(monkeypatch) -> Guard:
    """All of the package's allocations go through a Guard."""
    guard = Guard()
    contiguous = lambda size: torch.empty(size, device="meta").stride()  # noqa: E731

    def empty_like(x, dtype=None, **_):
        return guard.cut(x.shape, dense_strides(x), dtype or x.dtype, x.device)

    def new_empty(x, *size, dtype=None, **_):
        size = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        return guard.cut(size, contiguous(size), dtype or x.dtype, x.device)

    def new_zeros(x, *size, dtype=None, **_):
        return new_empty(x, *size, dtype=dtype).zero_()

    def empty_strided(size, stride, dtype=None, device=None):
        return guard.cut(size, stride, dtype, device)

    monkeypatch.setattr(torch, "empty_like", empty_like)
    monkeypatch.setattr(torch, "empty_strided", empty_strided)
    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    monkeypatch.setattr(torch.Tensor, "new_zeros", new_zeros)
    return guard


def poisoned(x: torch.Tensor) -> torch.Tensor:
    """x inside a larger tensor of NaN, in its own layout."""
    buffer = torch.full((x.numel() + 2 * BORDER,), math.nan, dtype=x.dtype, device=x.device)
    view = buffer[BORDER:].as_strided(x.shape, dense_strides(x))
    return view.copy_(x).detach()


def run(function: Callable[..., Any], tensors: dict[str, torch.Tensor], options: dict) -> list:
    """Outputs and gradients, in order."""
    given = {name: value.detach().requires_grad_() for name, value in tensors.items()}
    buffers = {name: given.pop(name).detach().clone() for name in list(given) if "running" in name}
    width = given.pop("width")
    arguments = given | buffers | options
    outs = function(**arguments, surrogate=Surrogate("atan", width=width), return_v=True)
    ends = [normal(out.shape, out.dtype, out.device, seed=9) for out in outs]
    torch.autograd.backward(outs, [poisoned(end) for end in ends])
    gradients = [value.grad for value in (*given.values(), width)]
    return [value.detach().clone() for value in (*outs, *gradients, *buffers.values())]


def neuron_tensors(size: tuple[int, ...], T: int, device: torch.device) -> dict[str, torch.Tensor]:
    C = size[1]
    return {
        "v_init": normal(size, device=device, seed=1, std=0.1),
        "decay": torch.full((C,), 0.7, device=device),
        "threshold": torch.full((C,), 0.9, device=device),
        "width": torch.full((C,), 0.8, device=device),
        "probe": torch.zeros(T, len(PROBE_FIELDS), device=device),
    }


CASES = pairwise(
    dict(
        size=[(1, 1, 1), (3, 5, 7), (2, 4, 3, 3), (2, 3, 16, 8), (1, 2, 129), (1, 130, 1)],
        T=[1, 2, 3, 17],
        layout=["contiguous", "channels_last", "permuted"],
        dtype=[torch.float32, torch.bfloat16],
        reset=["soft", "hard"],
    )
)


@pytest.mark.parametrize("case", CASES, ids=case_id)
@pytest.mark.parametrize("function", ["lif", "bn_lif"])
def test_no_byte_outside_is_read_or_written(backend, device, guard, function, case):
    size, T, dtype = case["size"], case["T"], case["dtype"]
    if function == "bn_lif" and T * math.prod(size) // size[1] < 2:
        T = 2  # one value a channel has no variance
    if backend == "triton" and size[1] > 100:
        T = min(T, 2)
    tensors = neuron_tensors(size, T, device)
    x = as_layout(normal((T, *size), dtype, device), case["layout"])
    options: dict[str, Any] = dict(reset=case["reset"], detach_reset=False)
    if function == "lif":
        tensors = {"x": x} | tensors
    else:
        tensors = {"y": x} | tensors
        for i, name in enumerate(("residual", "spike_add")):
            value = normal((T, *size), dtype, device, seed=2 + i)
            tensors[name] = as_layout(value, case["layout"])
        small = normal((4, size[1]), device=device, seed=4, mean=1.0, std=0.1)
        for name, value in zip(
            ("bn_weight", "bn_bias", "running_mean", "running_var"), small, strict=True
        ):
            tensors[name] = value
        tensors["step_gain"] = torch.linspace(0.8, 1.2, T, device=device)
    call = {"lif": multistep_lif, "bn_lif": multistep_bn_lif}[function]
    expected = run(call, tensors, options)
    guard.check()
    allocations = len(guard.buffers)
    given = run(call, {name: poisoned(value) for name, value in tensors.items()}, options)
    guard.check()
    assert len(guard.buffers) > allocations > 3, "the package's allocations are not guarded"
    for one, two in zip(given, expected, strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, two)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 4095, 4096, 4097])
def test_packing_stays_inside(backend, device, guard, n):
    spikes = (normal((n,), device=device) > 0).float()
    bits = pack_spikes(poisoned(spikes))
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
