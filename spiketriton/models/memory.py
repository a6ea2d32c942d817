"""`model.memory = "packed"`: between forward and backward, each spike is kept in one bit.

A convolution keeps its input, and a fused neuron its residual. Packing loses nothing: gradients are the same.
`"recomputed"` also keeps no currents: backward multiplies the spikes by the weights again, which gives the same bits.
"""

import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from spiketriton_kernels import pack_spikes, unpack_spikes

_spikes: dict[int, tuple[weakref.ref, int]] = {}
"""Each living tensor that holds nothing but 0 and 1, and its version, by the address of its memory."""

Layer = Callable[[Tensor], Tensor]
_currents: dict[int, tuple[weakref.ref, int, Layer, Tensor]] = {}
"""Each living tensor that a layer has made, its version, the layer, and what it was made of, by the same address."""


def mark_spikes(spikes: Tensor) -> Tensor:
    """Records that a tensor holds nothing but 0 and 1, for as long as it lives and a `PackedSpikes` is open."""
    if not PackedSpikes.open:
        return spikes
    address = spikes.untyped_storage().data_ptr()
    reference = weakref.ref(spikes, lambda gone: _forget(address, gone))
    _spikes[address] = reference, _version(spikes)
    return spikes


def mark_currents(currents: Tensor, layer: Layer, x: Tensor) -> Tensor:
    """Records that a tensor is `layer(x)`, for as long as it lives and a `PackedSpikes` that recomputes is open."""
    if not PackedSpikes.recomputing:
        return currents
    address = currents.untyped_storage().data_ptr()
    reference = weakref.ref(currents, lambda gone: _forget(address, gone))
    _currents[address] = reference, _version(currents), layer, x
    return currents


def mark_alike(copy: Tensor, of: Tensor) -> None:
    """Marks a copy of a marked tensor."""
    if PackedSpikes.open and _source(of) is not None:
        mark_spikes(copy)


def _version(tensor: Tensor) -> int:
    """How often it was changed in place: a network of others may add to spikes."""
    return 0 if tensor.is_inference() else tensor._version


def _forget(address: int, gone: weakref.ref) -> None:
    marked: dict[int, Any]
    for marked in (_spikes, _currents):
        if address in marked and marked[address][0] is gone:
            del marked[address]


def _source(saved: Tensor, marked: Mapping[int, Any] | None = None) -> Tensor | None:
    """The marked tensor of which `saved` is a view with all elements; else None."""
    marked = _spikes if marked is None else marked
    reference, version, *_ = marked.get(saved.untyped_storage().data_ptr(), (None, 0))
    source = None if reference is None else reference()
    if source is None or _version(source) != version:
        return None
    whole = source.numel() == saved.numel() and source.dtype == saved.dtype
    return source if whole else None


class _Packed(NamedTuple):
    bits: Tensor
    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


class _Recomputed(NamedTuple):
    layer: Layer
    of: "Tensor | _Packed | _Recomputed"
    size: torch.Size
    stride: tuple[int, ...]
    autocast: torch.dtype | None

    def again(self, x: Tensor) -> Tensor:
        cast = torch.autocast(x.device.type, self.autocast, enabled=self.autocast is not None)
        with torch.no_grad(), cast:
            return self.layer(x).as_strided(self.size, self.stride)


class PackedSpikes(AbstractContextManager):
    """While open, autograd saves marked spikes as bits, once per tensor, and of marked currents what they are made of.

    `on_save` is called with each tensor as it is kept: torch shows them to the innermost hook only. `recompute`:
    whether currents are not kept.
    """

    open: ClassVar[int] = 0
    recomputing: ClassVar[int] = 0

    def __init__(
        self, on_save: Callable[[Tensor], None] | None = None, *, recompute: bool = False
    ) -> None:
        self._on_save, self._recompute = on_save, recompute
        self._bits: dict[int, tuple[weakref.ref, Tensor]] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def __enter__(self) -> "PackedSpikes":
        self._hooks.__enter__()
        PackedSpikes.open += 1
        PackedSpikes.recomputing += self._recompute
        return self

    def __exit__(self, *error: object) -> None:
        PackedSpikes.open -= 1
        PackedSpikes.recomputing -= self._recompute
        self._hooks.__exit__(*error)
        self._bits.clear()

    def _pack(self, saved: Tensor) -> Tensor | _Packed | _Recomputed:
        if self._recompute and _source(saved, _currents) is not None:
            _, _, layer, x = _currents[saved.untyped_storage().data_ptr()]
            device = saved.device.type
            cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
            return _Recomputed(layer, self._pack(x), saved.size(), saved.stride(), cast)
        kept, source = saved, _source(saved)
        if source is not None:
            known, kept = self._bits.get(id(source), (None, saved))
            if known is None or known() is not source:
                kept = pack_spikes(source)
                self._bits[id(source)] = weakref.ref(source), kept
        if self._on_save is not None:
            self._on_save(kept)
        return saved if source is None else _Packed(kept, saved.size(), saved.stride(), saved.dtype)

    @staticmethod
    def _unpack(saved: Tensor | _Packed | _Recomputed) -> Tensor:
        if isinstance(saved, _Recomputed):
            return saved.again(PackedSpikes._unpack(saved.of))
        return unpack_spikes(*saved) if isinstance(saved, _Packed) else saved
