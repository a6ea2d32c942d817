"""Image files that cannot be read, left out before training begins with `data.broken = "skip"`.

Otherwise such a file ends the run where it is read, and is named with its class (`splits.Photo`).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from spiketriton.config import DataConfig
from spiketriton.data.preparing import in_chunks, in_processes, workers_of
from spiketriton.data.sources import Source
from spiketriton.data.splits import FileSplit, check_file
from spiketriton.system.errors import UserError

NAMED = 3  # broken files in an error


def without_broken(config: DataConfig, source: Source) -> tuple[Source, tuple[str, ...]]:
    """The source without its broken image files, and those: "PATH (class NAME): why".

    UserError: a class to train on, or a split, would have none left.
    """
    splits = {"train": source.train, "test": source.test, "validation": source.validation}
    kept: dict[str, Any] = {}
    skipped: list[str] = []
    for name, split in splits.items():
        if isinstance(split, FileSplit):
            chunks = in_chunks(range(len(split)))
            processes = min(workers_of(config), len(chunks)) if len(chunks) > 2 else 0
            work, title = partial(_whys, split), f"images of {config.name}"
            whys = [why for some in in_processes(work, chunks, title, processes) for why in some]
            kept[name] = split.only([not why for why in whys])
            skipped += filter(None, whys)
            _refuse_empty(config, name, split, kept[name], skipped)
    return replace(source, **kept), tuple(skipped)


def _refuse_empty(
    config: DataConfig, name: str, split: FileSplit, kept: FileSplit, skipped: Sequence[str]
) -> None:
    """Training needs an image of each class that had some, a test any image."""
    if not split.classes:  # targets of a task without classes
        gone = [] if len(kept) else ["any kind"]
    else:
        had, has = (np.bincount(s.labels, minlength=len(s.classes)) for s in (split, kept))
        gone = [split.classes[at] for at in np.flatnonzero((had > 0) & (has == 0))]
    if gone and (name == "train" or not len(kept)):
        more = f"; and {len(skipped) - NAMED:,} more" if len(skipped) > NAMED else ""
        raise UserError(
            f"{config.name}: no {name} image of {gone[0]} can be read: {'; '.join(skipped[:NAMED])}{more}; accepted: "
            "one or more"
        )


def _whys(split: FileSplit, members: Sequence[int]) -> list[str]:
    return [why_broken(split, at) for at in members]


def why_broken(split: FileSplit, at: int) -> str:
    """ "PATH (class NAME): why", or "" if the file is whole."""
    try:
        check_file(split.path(at), split.class_of(at))
    except UserError as error:
        return str(error).removeprefix("cannot read image ")
    return ""
