"""Recordings that somebody hands over: frames, or files that are binned as those of the run were."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spiketriton.config import DataConfig
from spiketriton.data.facts import Facts
from spiketriton.data.splits import ArraySplit, as_tensor
from spiketriton.events.formats import read_events
from spiketriton.events.frames import to_bytes, to_frames
from spiketriton.events.recordings import sensor_of, spans_of
from spiketriton.system.errors import UserError


def given_frames(
    given: Any, facts: Facts, config: DataConfig
) -> tuple[ArraySplit, list[int] | None]:
    """Recordings with labels of 0: uint8 counts [B, T, 2, S, S], or paths; of these the number of parts of each.

    A file is cut into parts of `data.cut_ms`, as in training. UserError: others.
    """
    parts: list[int] | None = None
    if isinstance(given, str | Path):
        given = [given]
    if (
        isinstance(given, list | tuple)
        and given
        and all(isinstance(one, str | Path) for one in given)
    ):
        files = [_binned(Path(path), facts, config) for path in given]
        given, parts = np.concatenate(files), [len(one) for one in files]
    side = facts.image_size
    accepted = f"uint8 counts [B, T, {facts.channels}, {side}, {side}], or paths of recordings"
    if not isinstance(given, Tensor | np.ndarray):
        raise UserError(f"frames as a {type(given).__name__}; accepted: {accepted}")
    frames = as_tensor(given)
    dtype, shape = frames.dtype, tuple(frames.shape)
    fits = len(shape) == 5 and shape[2:] == (facts.channels, side, side)
    if dtype != torch.uint8 or not fits or 0 in shape:
        raise UserError(f"frames of {dtype} {list(shape)}; accepted: {accepted}")
    return ArraySplit(frames, np.zeros(shape[0], np.int64)), parts


def _binned(path: Path, facts: Facts, config: DataConfig) -> np.ndarray:
    """The frames of the parts of a recording, uint8 [parts, T, 2, S, S]; one that is shorter than a part is one.

    UserError: it cannot be read, or has events outside the sensor.
    """
    sensor = sensor_of(config)
    events = read_events(path, config.format, sensor=sensor, backward="sort")
    spans = spans_of(events, 1000 * config.cut_ms) if config.cut_ms else []
    inside = [slice(*np.searchsorted(events["t"], span)) for span in spans] or [slice(None)]
    how: Any = {"steps": facts.frames, "bins": config.bins, "size": facts.image_size}
    return np.stack([to_bytes(to_frames(events[one], sensor, **how))[0] for one in inside])
