"""Errors of the user and exit codes, the same for every command.

0: done. 2: the user's mistake, also in code that a recipe names, or a file that the system refuses to read or write
(one line on stderr, no traceback). 3: a loss or gradient of a training was not finite. 129, 130, 143: interrupted by
SIGHUP, SIGINT, SIGTERM. 1: no room for the last checkpoint of a run, or for the output, in one line; anything else,
with its traceback, which is a bug of spiketriton.
"""

import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module
from typing import Any, NoReturn

from spiketriton.system import machine, streams
from spiketriton.system.version import other_kernels

EXIT_DONE = 0
EXIT_ERROR = 1
EXIT_USER = 2
EXIT_NONFINITE = 3
EXIT_SIGHUP = 129
EXIT_SIGINT = 130
EXIT_SIGTERM = 143

# what the system refuses, as a full disk or a read-only folder
_REFUSED = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.EROFS, errno.EACCES, errno.EPERM),
}


class UserError(Exception):
    """The user's mistake: one line that names the thing, what was given and what is accepted."""


class UnknownKey(UserError):
    """A recipe file has a key or a table that this version does not know."""


TRACEBACK = "SPIKETRITON_TRACEBACK"
"""In the environment: mistakes of others' code are not put in one line."""
named_code: dict[str, str] = {}
"""Packages and modules of others whose code a recipe names, and the key that names them."""


def in_code_of_others(error: Exception) -> str:
    """An error that came through `named_code` in one line, with the layer and the place; "" for any other."""
    layers: dict[int, str] = {}
    layer = key = place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        owner, module = frame.f_locals.get("self"), frame.f_globals.get("__name__", "")
        if owner is not None and hasattr(owner, "named_modules"):
            layers = layers or {id(one): name for name, one in owner.named_modules()}
            layer = layers.get(id(owner), "") or layer
        for name, words in named_code.items():
            if f"{module}.".startswith(f"{name}."):
                key, place = words, f"{frame.f_code.co_filename}:{line}"
    at = f" in {layer}" if layer else ""
    why = f"{type(error).__name__}: {one_line(error)}"
    return f"{key} failed{at}: {why} ({place})" if key else ""


def need(module: str, extra: str, what: str = "this") -> Any:
    """A module of a package that the extra brings. UserError: it is not installed, and `what` needs it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(
            f"{what} needs a package: {one_line(error)}; pip install 'spiketriton[{extra}]'"
        ) from None


def one_line(message: object) -> str:
    """`message` in one line: line breaks and the blanks around them become single spaces."""
    return " ".join(line.strip() for line in str(message).splitlines() if line.strip())


def warn(text: str) -> None:
    """Prints a warning as one line on stderr."""
    print(f"warning: {one_line(text)}", file=sys.stderr)


@cache
def warn_once(text: str) -> None:
    """A warning that a command, and of several ranks the first, prints once, however often it is due."""
    if os.environ.get("RANK", "0") == "0":
        warn(text)


def end_quietly_on_interrupt() -> None:
    """Ctrl-C ends the process in one line, without a traceback, until `run_command` takes over.

    For a command that is still importing: nothing has begun that would have to be tidied up, and
    an exception within the import of an extension module need not arrive.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """A command's imports, which come after its arguments were read: see `end_quietly_on_interrupt`."""
    before = signal.getsignal(signal.SIGINT)
    end_quietly_on_interrupt()
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is _end:
            signal.signal(signal.SIGINT, before)


def _end(*_: object) -> NoReturn:
    os.write(2, b"interrupted\n")
    os._exit(EXIT_SIGINT)


def run_command(
    main: Callable[[list[str]], int | None], argv: Sequence[str] | None = None
) -> NoReturn:
    """Runs `main(arguments)` and exits with the code that it returns (None counts as 0).

    `argv` are the arguments without the program's name; None takes them from `sys.argv`. What is no mistake of the
    program is one line on stderr and exits with 2, Ctrl-C with 130. Python prints the traceback of
    every other exception and exits with 1. Output that nobody reads is dropped.
    """
    machine.wait_without_spinning_if_busy()  # a command imports torch after this
    streams.survive_closed_output()
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if wrong := other_kernels():
            raise UserError(wrong)
        code = main(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = EXIT_SIGINT
    except Exception as error:
        mistake = _mistake_of_others(error)
        if not mistake:
            raise
        print(f"error: {mistake}", file=sys.stderr)
        code = EXIT_USER
    if lost := streams.lost_output():
        print(f"error: not all of the output could be written: {lost.strerror}", file=sys.stderr)
        code = code or EXIT_ERROR
    sys.exit(EXIT_DONE if code is None else code)


def _refused_by_kernels(error: Exception) -> bool:
    """Whether a neuron refused what it was given, as a window of another length."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_globals.get("__name__", "").startswith(_CHECKS)


_CHECKS = ("spiketriton_kernels.neurons.", "spiketriton_kernels.arguments")


def _mistake_of_others(error: Exception) -> str:
    """What the user, the system or somebody else's code did wrong, in one line; "" for our own mistakes."""
    if isinstance(error, UserError):
        return one_line(error)
    if isinstance(error, OSError) and error.errno in _REFUSED:
        return f"{error.filename}: {error.strerror}" if error.filename else f"{error.strerror}"
    if isinstance(error, TypeError | ValueError) and _refused_by_kernels(error):
        return one_line(error)
    mistake = "" if os.environ.get(TRACEBACK) else in_code_of_others(error)
    return mistake and f"{mistake}; {TRACEBACK}=1 shows its traceback"
