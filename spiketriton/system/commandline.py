"""The commands by name, and their parser, which reports the user's mistakes in one line."""

import argparse
import contextlib
import re
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from spiketriton.system import consent
from spiketriton.system.errors import UserError

_PACKAGE = Path(__file__).parents[1]
_FILES = sorted([*_PACKAGE.glob("*.py"), *_PACKAGE.glob("*/__main__.py")])
_OPENING = re.compile(r'"""spiketriton (\w+).*\n\n(.+)\n"""')
_OPENINGS = (_OPENING.match(path.read_text("utf-8")) for path in _FILES)
COMMANDS = {found[1]: found[2] for found in _OPENINGS if found}
"""Name and line of each, read from the top of its file: nothing is imported for a list."""

ROOMS = tuple(name for name in COMMANDS if (_PACKAGE / name).is_dir())
"""Those that are a folder, with what only they need."""

started = ""
"""The command that `spiketriton NAME` runs in this process; `python -m spiketriton.NAME` leaves it empty."""

KEYS_PAGE = "docs/recipes.md explains every key, python -m spiketriton.config prints that page"
RECIPE_HELP = "recipe file (TOML), or the name of a shipped one"
CHECKPOINTS = ("last", "best", "ema")

EXIT_CODES = {
    0: "done",
    2: "a mistake in the command, the recipe, code that it names or a file, or a file that cannot be written",
    130: "interrupted",
    1: "anything else",
}


def home_of(command: str) -> str:
    """The module of a command, which has its `parse` and its `main`."""
    return f"spiketriton.{command}{'.__main__' if command in ROOMS else ''}"


def spelled(command: str, launcher: Sequence[str] = ()) -> list[str]:
    """A command in the words of every page and hint; of many ranks, in those of their launcher."""
    return [*launcher, "-m", f"spiketriton.{command}"] if launcher else ["spiketriton", command]


def reflowed(text: str, width: int = 0) -> str:
    """Prose broken anew to at most 100 columns (the terminal's); lines that begin with a blank stay.

    A line that ends in a colon, as "examples:", ends its paragraph.
    """
    width = width or min(shutil.get_terminal_size().columns, 100)
    lines: list[str] = []
    prose: list[str] = []
    for line in [*text.split("\n"), ""]:
        kept = not line or line[0] == " "
        prose += [] if kept else [line]
        if prose and (kept or line.endswith(":")):
            lines += textwrap.wrap(" ".join(prose), width, break_on_hyphens=False)
            prose = []
        lines += [line] if kept else []
    return "\n".join(lines).rstrip()


def number(low: float, high: float, kind: type = int) -> Callable[[str], Any]:
    """The type of an argument that is a number from `low` to `high`."""

    def read(text: str) -> Any:
        with contextlib.suppress(ValueError):
            if low <= (value := kind(text)) <= high:
                return value
        kinds = "integers" if kind is int else "numbers"
        raise argparse.ArgumentTypeError(f"{text}: accepted: {kinds} from {low:.7g} to {high:.7g}")

    return read


class _Trust(argparse.Action):
    def __call__(self, *_: object) -> None:
        consent.give()


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError instead of printing its usage and exiting.

    codes: exit codes that mean more than `EXIT_CODES` has, in words.
    description: of a command that is not in COMMANDS.
    """

    def __init__(
        self,
        command: str,
        epilog: str,
        codes: Mapping[int, str] | None = None,
        *,
        description: str = "",
    ) -> None:
        means = EXIT_CODES | dict(codes or {})
        listed = ", ".join(f"{code} {words}" for code, words in sorted(means.items()))
        super().__init__(
            prog=f"spiketriton {command}",
            description=description or COMMANDS[command],
            epilog=reflowed(f"{epilog}\n\nExit codes: {listed}."),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def add_trust(self) -> None:
        """The option by which the user consents to the code that a run's recipe names."""
        self.add_argument(
            "--trust-plugins",
            action=_Trust,
            nargs=0,
            help="run the code that the recipe of a run names in plugins.modules",
        )

    def add_checkpoint(self) -> None:
        """The option that says which of a run's weights are used."""
        words = (
            "weights: at the end (last), by validation accuracy (best: with data.validation), or averaged "
            "(ema: with train.ema)"
        )
        self.add_argument("--checkpoint", choices=CHECKPOINTS, default="last", help=words)

    def add_overrides(self, words: str = f"changes to the recipe; {KEYS_PAGE}") -> None:
        """`key=value`, as many as there are."""
        self.add_argument("overrides", nargs="*", metavar="key=value", help=words)

    def add_run(self, words: str = "run folder, or a file of weights (safetensors)") -> None:
        """The arguments of a command that takes a trained run: its folder and overrides."""
        self.add_trust()
        self.add_argument("run", metavar="RUN", help=words)
        self.add_overrides("keys that change no weight, such as data.root=/data")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._refuse_empty(args)
        return super().parse_known_args(args, namespace)

    def parse_known_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._refuse_empty(args)  # Python 3.13's does not call parse_known_args
        return super().parse_known_intermixed_args(args, namespace)

    def _refuse_empty(self, args: Any) -> None:
        if args and "" in args:
            self.error('an argument is empty (""), as an unset variable of the shell is')

    def error(self, message: str) -> NoReturn:
        message = message.removesuffix(", key=value")  # which is required of nobody
        for given, known in (("--out", "--run-dir"), ("--run-dir", "--out")):
            if (
                f"unrecognized arguments: {given}" in message
                and known in self._option_string_actions
            ):
                message += f"; did you mean {known}?"
        raise UserError(f"{message}; {self.prog} --help shows what is accepted")
