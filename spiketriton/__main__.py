"""python -m spiketriton COMMAND ...: the same as python -m spiketriton.COMMAND ..."""

import difflib
import shutil
import sys
import textwrap
from functools import partial
from importlib import import_module

from spiketriton.system import commandline
from spiketriton.system.commandline import COMMANDS, KEYS_PAGE, home_of
from spiketriton.system.errors import UserError, run_command
from spiketriton.system.version import __version__

NOTES = (
    "spiketriton COMMAND --help explains a command, and spiketriton --version says which version "
    "this is. spiketriton COMMAND is the same as python -m spiketriton.COMMAND.",
    f"{KEYS_PAGE}.",
)


def usage() -> str:
    """The list of commands, as wide as the terminal."""
    wrap = partial(textwrap.wrap, width=min(shutil.get_terminal_size().columns, 100))
    said = "Train deep spiking neural networks, and measure, convert, export and report them."
    lines = ["usage: spiketriton COMMAND ...", "", *wrap(said), "", "commands:"]
    for name, line in COMMANDS.items():
        lines += wrap(line, initial_indent=f"  {name:<10} ", subsequent_indent=" " * 13)
    for note in NOTES:
        lines += ["", *wrap(note)]
    return "\n".join(lines)


def dispatch(arguments: list[str]) -> int | None:
    """Runs a command, and returns its exit code. UserError: there is no such command."""
    name, *rest = arguments or ["--help"]
    if name == "help" and rest:
        return dispatch([rest[0], "--help"])
    elif name in ("-h", "--help", "help"):
        print(usage())
    elif name == "--version":
        print(f"spiketriton {__version__}")
    elif name in COMMANDS:
        sys.argv[1:], commandline.started = rest, name
        try:
            code: int | None = import_module(home_of(name)).main(rest)
        finally:
            commandline.started = ""
        return code
    else:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"accepted: {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {name!r}; {hint}")
    return None


def main() -> None:
    """The console command `spiketriton`."""
    run_command(dispatch)


if __name__ == "__main__":
    main()
