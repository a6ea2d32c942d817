"""Images and sequences whose targets would not follow when they are moved, cropped or resized."""

from typing import Any

import numpy as np

from spiketriton.config import DataConfig
from spiketriton.config.words import shown
from spiketriton.data.sources import Source
from spiketriton.system.errors import UserError


def refuse_moves(config: DataConfig, source: Source, kind: str, side: int) -> None:
    """Refuses what would move an image, or a sequence in time, and not its target."""
    asked, what = config.augmentation, "sequences" if source.move == "sequence" else "images"
    for key, value, accepted in (
        ("data.augment", "none" if source.augment else config.augment, '"none"'),
        ("data.augmentation.policy", asked.policy, '"none"'),
        ("data.augmentation.flip", asked.flip, "false"),
        ("data.augmentation.roll", asked.roll, "0"),
        ("data.augmentation.shift", asked.shift, "0"),
        ("data.augmentation.stretch", asked.stretch, "0"),
    ):
        if value not in ("none", "auto", 0):
            raise UserError(
                f'{key} = {shown(value)} moves {what}, and the targets of loss.kind = "{kind}" do not follow; '
                f"accepted: {accepted}, or a task with moves = True"
            )
    if source.move == "photo":
        raise UserError(
            f'data.name = "{config.name}": photographs are cropped and resized, and the targets of loss.kind = '
            f'"{kind}" do not follow; accepted: images in memory (ArraySplit), or a task with moves = True'
        )
    if source.move in ("events", "sequence"):  # frames have the size that was asked for
        return
    for split in (source.train, source.test, source.validation):
        if split is None:
            continue
        first: Any = split.read(np.zeros(1, np.int64))
        high, wide = first.shape[-2:]
        if (high, wide) != (side, side):
            raise UserError(
                f'data.name = "{config.name}": images of {high}x{wide} would be resized to {side}x{side} and their '
                "targets would not; accepted: that size, or a task with moves = True"
            )
