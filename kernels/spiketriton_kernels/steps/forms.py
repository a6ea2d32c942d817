"""The forms of our own neurons: which of its choices a step was traced with, and which step serves in its place.

A choice is compiled in (a reset, the surrogate's shape, what learns); a constant is not. What a call compiles is one
form; ``python -m spiketriton_kernels`` compiles all of a kind into one library, in which a form whose surrogate has its
number as a constant serves for those of every shape.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from .printed import ANY
from .step import Hoisted, Step, by_word


class Form(NamedTuple):
    """``options``: what its step reads besides constants, in the order of the class's ``options``."""

    kind: str
    options: tuple[Any, ...]
    shape: str
    learns: tuple[str, ...]
    own: Any = None  # a surrogate of one's own: registered again, it is another

    def traced(self) -> tuple[Step, Hoisted]:
        return _traced(self)

    @property
    def word(self) -> str:
        """All of it, without a space: from it another process makes the same step. "" with a surrogate of one's own."""
        return "" if self.own else json.dumps(self[:4], separators=(",", ":"))

    @property
    def whole(self) -> int:
        """The number of the form that serves in its place, in the library of the whole kind."""
        one = self._replace(shape=ANY, learns=_families[self.kind].learns if self.learns else ())
        return forms(self.kind).index(one)


class Family(NamedTuple):
    """A kind of neuron: how a form of it is traced, its choices, all that may learn, the file of its equations, and
    what is often learnt together, so that one library serves both with and without."""

    trace: Callable[[Form], tuple[Step, Hoisted]]
    options: Callable[[], list[tuple[Any, ...]]]
    learns: tuple[str, ...]
    file: str
    companion: tuple[str, ...] = ()


_families: dict[str, Family] = {}


def register(kind: str, family: Family) -> None:
    _families[kind] = family


def file_of(kind: str) -> str:
    return _families[kind].file


def kinds() -> tuple[str, ...]:
    """Those that are compiled whole."""
    return tuple(_families)


@functools.cache
def _traced(form: Form) -> tuple[Step, Hoisted]:
    return _families[form.kind].trace(form)


@functools.cache
def forms(kind: str) -> list[Form]:
    """Those that together serve every neuron of a kind."""
    family = _families[kind]
    learns = ((), family.learns)
    return [Form(kind, options, ANY, some) for options in family.options() for some in learns]


def steps(kind: str) -> list[Step]:
    """Their steps, in that order."""
    return [form.traced()[0] for form in forms(kind)]


@functools.cache
def together(step: Step) -> tuple[Step, ...]:
    """What a first call compiles into one library: a step alone, or what learns its companions and what does not."""
    form = step.form
    companion = form and form.own is None and _families[form.kind].companion
    if not companion or form.learns not in ((), companion):
        return (step,)
    pair = tuple(form._replace(learns=some).traced()[0] for some in ((), companion))
    return pair if pair[0].constants == pair[1].constants else (step,)


def named(word: str) -> Step:
    """The step of a record, traced if this process has not yet, as where an exported network is loaded.

    Raises:
        ValueError: it, or its surrogate, is one of somebody's own, and this process has not made it.
    """
    if word not in by_word:
        if not word.startswith("["):
            raise ValueError(
                f"no neuron of this process has the step {word}; accepted: those of this library, with its surrogates, "
                "and one of your own that has been called before"
            )
        kind, options, shape, learns = json.loads(word)
        by_word[word] = Form(kind, tuple(options), shape, tuple(learns)).traced()[0]
    return by_word[word]
