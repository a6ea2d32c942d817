"""Functions such as tanh, for C++, from the libraries that PyTorch itself calls on a CPU, so that they round alike.

PyTorch has them of Intel's VML (arrays) where it was built with it, else of SLEEF (vectors); inside its sigmoid and
softplus there is always SLEEF's exponential. Both lie in its own shared library. What is found there is compared with
PyTorch's numbers, once in a process, and called where all bits are equal; the C++ has functions of its own else.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor


class Function(NamedTuple):
    """A function of ``enum Function`` in steps.h: PyTorch's, and its names in VML (None: not called) and SLEEF."""

    of_torch: Callable[[Tensor], Tensor]
    vml: str | None
    sleef: str
    seen: Callable[[Tensor], Tensor] | None = (
        None  # what PyTorch shows of it, where it has no operator
    )


_EXP = "exp{}_u10"
FUNCTIONS = (
    Function(torch.exp, "Exp", _EXP),
    Function(torch.log, "Ln", "log{}_u10"),
    Function(torch.tanh, "Tanh", "tanh{}_u10"),
    Function(torch.sin, "Sin", "sin{}_u35"),
    Function(torch.cos, "Cos", "cos{}_u35"),
    Function(torch.erf, "Erf", "erf{}_u10"),
    Function(torch.expm1, None, "expm1{}_u10"),
    Function(torch.log1p, None, "log1p{}_u10"),
    Function(lambda x: torch.sigmoid(-x), None, _EXP, lambda e: 1 / (1 + e)),
)
"""In its order."""

_ACCURATE = ("sin{}_u35", "cos{}_u35")
"""Of float64 PyTorch takes these with an error of 1.0 ulp, too."""


class Address(NamedTuple):
    """Where a function is; 0: none."""

    of_arrays: int
    of_vectors: int


def give(library: ctypes.CDLL, dtype: torch.dtype) -> None:
    """Tells a compiled library where PyTorch's functions are."""
    library.spiketriton_find.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    library.spiketriton_find.restype = None
    double = dtype == torch.float64
    for number, address in enumerate(_found(double, library.spiketriton_lanes(), library)):
        library.spiketriton_find(number, *address)


_known: dict[tuple[bool, int], list[Address]] = {}


def _found(double: bool, lanes: int, library: ctypes.CDLL) -> list[Address]:
    """By function, the first of its addresses that gives PyTorch's bits, as this library calls it."""
    if (double, lanes) not in _known:
        x, found = _sample(torch.float64 if double else torch.float32), []
        for number, function in enumerate(FUNCTIONS):
            for address in _addresses(function, double, lanes):
                library.spiketriton_find(number, *address)
                y = applied(library, number, x)
                if _equal(function.seen(y) if function.seen else y, function.of_torch(x)):
                    found.append(address)
                    break
            else:
                found.append(Address(0, 0))
        _known[double, lanes] = found
    return _known[double, lanes]


def applied(library: ctypes.CDLL, number: int, x: Tensor) -> Tensor:
    """What a library makes of a function, by its number, of float32 or float64 x; its size a multiple of 64."""
    y = torch.empty_like(x)
    places = ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr())
    library.spiketriton_apply(number, *places, ctypes.c_int64(x.numel()))
    return y


def _equal(a: Tensor, b: Tensor) -> bool:
    """To the bit; any two NaNs are equal."""
    bits = torch.int64 if a.dtype == torch.float64 else torch.int32
    return bool(((a.view(bits) == b.view(bits)) | (a.isnan() & b.isnan())).all())


def _sample(dtype: torch.dtype) -> Tensor:
    """Numbers of all sizes, and what is none."""
    mantissas = torch.linspace(1, 2, 64, dtype=torch.float64)
    scales = 2.0 ** torch.arange(-32, 32, dtype=torch.float64)
    spread = (scales[:, None] * mantissas).flatten()
    near = torch.linspace(-20, 20, 4096 - 64, dtype=torch.float64)
    inf = float("inf")
    ends = [
        0.0,
        -0.0,
        inf,
        -inf,
        float("nan"),
        1e-40,
        -1e-40,
        88.7,
        88.8,
        -87.4,
        -103.9,
        -104.1,
        3e38,
    ]
    ends += [709.7, 709.8, -708.5, -745.2] + [1.0] * (64 - len(ends) - 4)
    x = torch.cat([spread, -spread, near, torch.tensor(ends, dtype=torch.float64)])
    return x.to(dtype)


@functools.cache
def _libraries() -> list[ctypes.CDLL]:
    """PyTorch's, which are loaded already."""
    folder = Path(torch.__file__).parent / "lib"
    found = []
    for path in sorted(folder.glob("*torch_cpu.*")):
        try:
            found.append(ctypes.CDLL(str(path)))
        except OSError:  # beside the library there may be what is none
            continue
    return found


def _address(name: str) -> int:
    for library in _libraries():
        try:
            return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
        except AttributeError:
            continue
    return 0


def _addresses(function: Function, double: bool, lanes: int) -> list[Address]:
    """Where it may be, in the order in which PyTorch looks."""
    found = []
    if function.vml and (place := _address(f"vm{'sd'[double]}{function.vml}")):
        found.append(Address(place, 0))
    sleef = function.sleef.format(f"{'fd'[double]}{lanes}")
    if double and function.sleef in _ACCURATE:
        sleef = sleef.replace("_u35", "_u10")
    if place := _address(f"Sleef_{sleef}"):
        found.append(Address(0, place))
    return found
