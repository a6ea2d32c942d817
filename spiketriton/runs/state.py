"""The state of a finished or stopped run, by the name of its checkpoint: the last, the best, or averaged weights."""

from spiketriton.runs.checkpoint import Checkpoints, State, read_checkpoint
from spiketriton.runs.folder import RunFolder
from spiketriton.system.commandline import CHECKPOINTS
from spiketriton.system.errors import UserError, warn


def read_state(folder: RunFolder, checkpoint: str = "last") -> tuple[State, str]:
    """One of the `CHECKPOINTS` of a run, and which it is: a damaged last one is replaced.

    UserError: there is none of this name, or none that is whole.
    """
    if checkpoint not in CHECKPOINTS:
        raise UserError(f"checkpoint {checkpoint!r}; accepted: {', '.join(CHECKPOINTS)}")
    if checkpoint == "best":
        path = folder.checkpoints / "best.pt"
        if not path.exists():
            raise UserError(
                f"{folder.path} has no best checkpoint: it had no validation images "
                "(data.validation); accepted: the last one"
            )
        return read_checkpoint(path), "best"
    if checkpoint == "ema":
        last, _ = read_state(folder)
        if "ema" not in last:
            raise UserError(f"{folder.path} has no average of its weights: its train.ema is 0")
        return {**last, "model": {**last["model"], **last["ema"]["average"]}}, "ema"
    checkpoints = Checkpoints(folder.checkpoints, warn)
    state = checkpoints.load()
    if state is None:
        raise UserError(
            f"{folder.path} holds no checkpoint: the run was stopped before its first one, or they were removed"
        )
    best = checkpoints.loaded is not None and checkpoints.loaded.name == "best.pt"
    return state, "best" if best else "last"
