"""What a batch norm hands to the spiking neuron that normalises for it, in place of a normalised current."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(eq=False, repr=False)
class Handed:
    """y, which is not normalised yet, its norm, and what was added behind it.

    It has only what may lie between a norm and its neuron: folds of time, and one addition. Everything else raises, so
    that nothing can read a y that is not normalised; a neuron takes it once.
    """

    y: Tensor
    norm: Any
    channels: tuple[int, ...]
    """The shape of what was normalised, from its channels on; a neuron has to see the same."""
    versions: tuple[int, ...]
    with_grad: bool
    residual: Tensor | None = None
    taken: bool = False

    @property
    def shape(self) -> torch.Size:
        return self.y.shape

    @property
    def ndim(self) -> int:
        return self.y.ndim

    @property
    def dtype(self) -> torch.dtype:
        return self.y.dtype

    @property
    def device(self) -> torch.device:
        return self.y.device

    def take(self) -> tuple[Tensor, Tensor | None]:
        """y [T, B, C, ...] and what was added, for the one call that normalises them."""
        if self.taken:
            raise _refusal("a second call of a neuron with")
        if _versions(self.y, self.residual) != self.versions:
            raise _refusal("a change in place of the tensors of")
        if torch.is_grad_enabled() != self.with_grad:
            raise _refusal("another grad mode of the neuron than of the norm with")
        if tuple(self.y.shape[2:]) != self.channels:
            raise ValueError(
                f"a fused neuron got {tuple(self.y.shape)} of a batch norm of [T*B, "
                f"{', '.join(map(str, self.channels))}]; accepted: the same, unfolded"
            )
        self.taken = True
        return self.y, self.residual

    def plus(self, other: Any) -> Handed:
        if self.residual is not None or not isinstance(other, Tensor):
            what = "a second tensor" if isinstance(other, Tensor) else f"a {type(other).__name__}"
            raise _refusal(f"the addition of {what} to")
        if other.dtype != self.y.dtype:
            raise TypeError(
                f"{other.dtype} is added to a batch norm's {self.y.dtype} in front of a fused neuron; accepted: the "
                "same dtype, or swap without fuse"
            )
        return self._with(self.y, other.expand_as(self.y))

    __add__ = __radd__ = __iadd__ = add = add_ = plus

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Handed:
        changes = function in _IN_PLACE and not isinstance(args[0], Handed)
        if function not in _PLUS or kwargs or changes:
            raise _refusal(f"{getattr(function, '__name__', function)} of")
        ours, other = args if isinstance(args[0], Handed) else args[::-1]
        return ours.plus(other)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(str(_refusal(f"{name} of")))

    def __repr__(self) -> str:
        return f"Handed({tuple(self.y.shape)}, normalised by a neuron)"

    def _refused(self, name: str, *args: Any) -> Any:
        raise _refusal(f"{name} of")

    def _folded(self, method: str, *args: Any, **options: Any) -> Handed:
        y = getattr(self.y, method)(*args, **options)
        return self._with(y, None if self.residual is None else self.residual.reshape(y.shape))

    reshape = functools.partialmethod(_folded, "reshape")
    view = functools.partialmethod(_folded, "view")
    unflatten = functools.partialmethod(_folded, "unflatten")
    contiguous = functools.partialmethod(_folded, "contiguous")

    def _with(self, y: Tensor, residual: Tensor | None) -> Handed:
        if _versions(self.y, self.residual) != self.versions:
            raise _refusal("a change in place of the tensors of")
        versions = _versions(y, residual)
        return Handed(y, self.norm, self.channels, versions, self.with_grad, residual)


_IN_PLACE = (Tensor.add_, Tensor.__iadd__)
_PLUS = (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, *_IN_PLACE)
_BOTH_SIDES = ("mul", "sub", "truediv", "pow", "matmul", "mod", "floordiv", "and", "or", "xor")
_ONE_SIDE = (
    "lt", "le", "gt", "ge", "eq", "ne", "neg", "abs", "invert",
    "getitem", "setitem", "len", "iter", "bool", "float", "int", "array",
)  # fmt: skip
for _name in (*_BOTH_SIDES, *(f"r{n}" for n in _BOTH_SIDES), *_ONE_SIDE):
    setattr(Handed, f"__{_name}__", functools.partialmethod(Handed._refused, _name))
Handed.__hash__ = object.__hash__  # type: ignore[method-assign]


def _refusal(what: str) -> TypeError:
    return TypeError(
        f"{what} the current of a batch norm that the neuron behind it normalises (swap with fuse=True); accepted: "
        "one addition of a tensor, then the neuron, once; or swap without fuse"
    )


def _versions(*tensors: Tensor | None) -> tuple[int, ...]:
    """How often each was changed in place, where that is counted; a compiled graph is joined by what torch.fx saw."""
    if torch.compiler.is_compiling():
        return ()
    return tuple(t._version for t in tensors if t is not None and not t.is_inference())


class NormHandedOn:
    """A batch norm whose neuron normalises for it. It stays the object and the kind of norm that it was.

    Its class is a subclass of its former one, made by ``hand_on``. So what finds norms by their class finds it:
    ``update_bn``, freezing by ``eval()``, initialisation. Where ``convert_sync_batchnorm`` puts another norm in its
    place, that one normalises, and the neuron fires as it is.
    """

    peer: type[nn.Module]
    folded: bool  # whether it sees [T*B, C, ...]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles make the class again, which has no name in a module."""
        return _bare, (self.peer,), self.__dict__.copy()

    def forward(self: Any, y: Tensor) -> Handed:
        channels = tuple(y.shape[1 if self.folded else 2 :])
        return Handed(y, self, channels, _versions(y), torch.is_grad_enabled())

    def extra_repr(self: Any) -> str:
        return f"{self.peer.extra_repr(self)}, normalised by the neuron behind it"


_CLASSES: dict[type, type] = {}


def _handing_on(peer: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a norm's class, made once."""
    body = {"peer": peer, "__doc__": NormHandedOn.__doc__}
    return _CLASSES.setdefault(peer, type(peer.__name__, (NormHandedOn, peer), body))


def _bare(peer: type[nn.Module]) -> nn.Module:
    made = _handing_on(peer)
    return made.__new__(made)


def hand_on(norm: nn.Module, folded: bool) -> None:
    """Makes a batch norm one whose neuron normalises for it, in place."""
    norm.__class__ = _handing_on(type(norm))
    norm.folded = folded  # type: ignore[assignment]
