"""What a pass has found out about a tensor that it wrote, for the pass that reads it: spikes as bits, moments."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

_kept: dict[int, tuple[weakref.ref[Tensor], int, Tensor]] = {}
"""Each living tensor, its version, and what is known of it, by the address of its memory."""


def keep(tensor: Tensor, known: Tensor) -> None:
    """For as long as the tensor lives, and is not changed."""
    address = tensor.untyped_storage().data_ptr()
    reference = weakref.ref(tensor, lambda gone: _forget(address, gone))
    version = 0 if tensor.is_inference() else tensor._version
    _kept[address] = reference, version, known


def hand_on(tensor: Tensor, view: Tensor) -> Tensor:
    """The view, of which is known what is of the tensor, for as long as it lives."""
    if torch.compiler.is_compiling():  # a graph has no addresses
        return view
    found = _kept.get(tensor.untyped_storage().data_ptr())
    if found is not None and found[0]() is tensor:
        keep(view, found[2])
    return view


def _forget(address: int, gone: weakref.ref[Tensor]) -> None:
    if address in _kept and _kept[address][0] is gone:
        del _kept[address]


def of(x: Tensor) -> Tensor | None:
    """What is known of a tensor of which x is a view of all elements, in the same dtype; else None."""
    reference, version, known = _kept.get(x.untyped_storage().data_ptr(), (None, 0, None))
    tensor = None if reference is None else reference()
    if tensor is None or tensor.dtype != x.dtype or tensor.numel() != x.numel():
        return None
    now = 0 if tensor.is_inference() else tensor._version
    return known if now == version else None


def moments_of(x: Tensor) -> Tensor | None:
    """Mean and biased variance, float64 [2, C], of the channels (dim 2) of a dense x; None: nobody has left them."""
    known = of(x) if x.stride(2) == 1 else None
    fits = known is not None and known.dtype == torch.float64 and known.shape[1] == x.shape[2]
    return known if fits else None
