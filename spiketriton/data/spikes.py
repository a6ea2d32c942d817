"""`shd` and `ssc`: spoken words as spikes of 700 channels of a cochlea (Cramer et al. 2022).

Source: https://doi.org/10.1109/TNNLS.2020.3044364.

    shd   20 classes, 8,156 + 2,264 recordings: shd_train.h5, shd_test.h5
    ssc   35 classes, 75,466 + 9,981 + 20,382: ssc_train.h5, ssc_valid.h5, ssc_test.h5

The files lie in data.root, or in a folder of it with the data set's name. Their layout: `spikes/times` and
`spikes/units`, an array for each recording (seconds, channels), `labels`, and `extra/keys`, the names of the classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spiketriton import plugins
from spiketriton.config import DataConfig
from spiketriton.data.download import data_root
from spiketriton.data.sources import Recorded, Source
from spiketriton.system.errors import UserError, need, one_line

ADDRESS = "https://zenkelab.org/datasets/"
UNITS = 700
SECONDS = {"shd": 1.4, "ssc": 1.0}  # that the time steps divide; spikes behind them are left out


@plugins.data("shd", "ssc")
def spikes(config: DataConfig) -> "Spiked":
    need("h5py", "sequences", f'data.name = "{config.name}"')
    root = data_root(config)
    parts = ("train", "test") if config.name == "shd" else ("train", "test", "valid")
    return Spiked([_file(root, config.name, part) for part in parts])


def _file(root: Path, name: str, part: str) -> Path:
    file = f"{name}_{part}.h5"
    places = [root / name, root]
    for place in places:
        if (path := place / file).is_file():
            return path
        if (place / f"{file}.gz").is_file():
            raise UserError(
                f"{name}: {place / file}.gz is compressed; accepted: gunzip {place / file}.gz"
            )
    raise UserError(
        f"{name}: {places[0] / file} is missing; download {ADDRESS}{file}.gz, unpack it (gunzip), and put it "
        f"there, or set data.root to the folder that holds it"
    )


@dataclass(frozen=True)
class Spiked(Recorded):
    """The files of training, test and perhaps validation."""

    files: Sequence[Path]

    def source(self, config: DataConfig, steps: int) -> Source:
        """Spikes by channel in `steps` bins of time. UserError: a file is damaged, or of another layout."""
        splits = [SpikeSplit(path, steps, SECONDS[config.name]) for path in self.files]
        names = splits[0].names or tuple(str(n) for n in range(int(splits[0].labels.max()) + 1))
        return Source(
            train=splits[0],
            test=splits[1],
            validation=splits[2] if len(splits) > 2 else None,
            classes=names,
            channels=UNITS,
            statistics=((0.0,) * UNITS, (1.0,) * UNITS),  # counts are shown as they are
            move="sequence",
            place=self.files[0].parent,
        )


@dataclass
class SpikeSplit:
    """The recordings of a file, which is read when they are asked for.

    A sequence is float32 [steps, 700]: spikes in so many bins of `seconds`; behind its last spike there are none, so
    that each has all steps.
    """

    path: Path
    steps: int
    seconds: float
    labels: Tensor = field(init=False)
    lengths: Tensor = field(init=False)
    names: tuple[str, ...] = field(init=False)
    channels: int = field(init=False, default=UNITS)
    _opened: Any = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        try:
            with (
                self._file() as file
            ):  # opened again to read recordings: a refused file stays open nowhere
                counts = len(file["spikes/times"]), len(file["spikes/units"])
                labels = np.asarray(file["labels"]).astype(np.int64)
                keys = [*file.get("extra/keys", [])]
            self.names = tuple(key.decode() if isinstance(key, bytes) else str(key) for key in keys)
            self._opened = None
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise UserError(
                f"{self.path} cannot be read: {one_line(error)}; accepted: HDF5 with spikes/times, "
                "spikes/units and labels"
            ) from None
        if counts != (len(labels),) * 2:
            raise UserError(
                f"{self.path} holds {len(labels):,} labels, and times and units of {counts[0]:,} and {counts[1]:,} "
                "recordings; accepted: as many"
            )
        self.labels = torch.from_numpy(labels)
        self.lengths = torch.full((len(labels),), self.steps)

    def _file(self) -> Any:
        if self._opened is None:
            import h5py

            self._opened = h5py.File(self.path, "r")
        return self._opened

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: np.ndarray) -> list[Tensor]:
        """UserError: a channel is not from 0 to 699."""
        return [self._counted(int(index)) for index in indices]

    def _counted(self, index: int) -> Tensor:
        file = self._file()
        times = np.asarray(file["spikes/times"][index], np.float64)
        units = np.asarray(file["spikes/units"][index]).astype(np.int64)
        if len(times) != len(units) or (len(units) and not 0 <= units.min() <= units.max() < UNITS):
            raise UserError(
                f"{self.path}, recording {index}: {len(times)} times and {len(units)} channels from "
                f"{units.min(initial=0)} to {units.max(initial=0)}; accepted: as many, and 0 to {UNITS - 1}"
            )
        bins = np.floor(times * (self.steps / self.seconds)).astype(np.int64)
        inside = (bins >= 0) & (bins < self.steps)
        places = bins[inside] * UNITS + units[inside]
        counts = np.bincount(places, minlength=self.steps * UNITS)
        return torch.from_numpy(counts.astype(np.float32)).view(self.steps, UNITS)

    def __getstate__(self) -> dict[str, Any]:
        """A worker process opens the file itself."""
        return {**self.__dict__, "_opened": None}
