"""Consent to the code that a run's recipe names: by an option, by an argument in Python, or in a terminal."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar


def _ask(new: Sequence[str]) -> bool:
    """Asks in a terminal; elsewhere the answer is no."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print("The recipe of this run names code, which would run now:", file=sys.stderr)
    print(*(f"  {words}" for words in new), sep="\n", file=sys.stderr)
    print("Do you trust it? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


_consents: ContextVar[Callable[[Sequence[str]], bool]] = ContextVar("consents", default=_ask)


def give() -> None:
    """Consents to the plugins of all runs that this process loads: the option --trust-plugins."""
    _consents.set(lambda new: True)


@contextlib.contextmanager
def decided(consents: bool) -> Iterator[None]:
    """Within the block the caller's word decides, and nobody is asked."""
    token = _consents.set(lambda new: consents)
    try:
        yield
    finally:
        _consents.reset(token)


def given(new: Sequence[str]) -> bool:
    """Whether these plugins, in words, may run."""
    return _consents.get()(new)
