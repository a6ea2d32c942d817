"""Whether this process is one of several, which torchrun started."""

import os

from spiketriton.system.errors import UserError
from spiketriton.system.ranks import Ranks


def ranks_of_torchrun() -> Ranks:
    """The ranks that this process belongs to, by torchrun's variables. UserError: some are missing or wrong."""
    given = {name: os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK", "MASTER_PORT")}
    if given["WORLD_SIZE"] in ("", "1"):
        return Ranks()
    if not (all(text.isdecimal() for text in given.values()) and "MASTER_ADDR" in os.environ):
        shown = ", ".join(f"{name}={text}" for name, text in given.items() if text)
        raise UserError(
            f"{shown} in the environment, but ranks need WORLD_SIZE, RANK, MASTER_PORT (numbers) and MASTER_ADDR; "
            "accepted: the command through torchrun, or no WORLD_SIZE"
        )
    from spiketriton.system.group import Group

    return Group()
