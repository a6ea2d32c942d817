"""What the commands share: a parser whose errors are the user's mistakes, in one line."""

import argparse
from typing import NoReturn

from spiketriton.errors import UserError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError instead of printing its usage and leaving."""

    def __init__(self, command: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=f"python -m spiketriton.{command}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help shows what is accepted")
