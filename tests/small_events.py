"""Small data sets of random events in the exact layouts of the real ones.

from tests.event_files import write_events
from tests.small_events import make_events
"""

from pathlib import Path

import numpy as np

from spiketriton.data.events import EVENT, FORMATS
from spiketriton.data.events.recordings import _CIFAR10
from tests.event_files import write_events

CLASSES = 3  # of the sets whose classes are folders


def random_events(
    rng: np.random.Generator, count: int, sensor: tuple[int, int], start: int = 0
) -> np.ndarray:
    """`count` events within 300 ms on a sensor of (height, width)."""
    events = np.empty(count, EVENT)
    events["t"] = start + np.sort(rng.integers(0, 300_000, count))
    events["y"], events["x"] = (rng.integers(0, side, count) for side in sensor)
    events["p"] = rng.integers(0, 2, count)
    return events


def make_events(root: Path, name: str, per_class: int = 12, count: int = 400) -> Path:
    """A set named as in a recipe, below `root`; returns the folder that holds its files.

    CIFAR10-DVS has ten classes, Gesture eleven, the others three (N-MNIST ten).
    """
    rng = np.random.default_rng(0)
    if name == "dvs_gesture":
        return _gesture(root / "dvs_gesture" / "DvsGesture", rng, count)
    if name == "cifar10_dvs":
        folder = root / "cifar10_dvs"
        for label in _CIFAR10:
            for number in range(per_class):
                # 100 on, so that the split first100 has both parts
                path = folder / label / f"cifar10_{label}_{number * 100 // 3}.aedat"
                write_events(path, random_events(rng, count, (128, 128)), "aedat2")
        return folder
    if name == "n_mnist":
        for part in ("Train", "Test"):
            for label in range(10):
                for number in range(per_class):
                    path = root / "n_mnist" / part / str(label) / f"{number:05d}.bin"
                    write_events(path, random_events(rng, count, (34, 34)), "bin")
        return root / "n_mnist"
    if name == "n_caltech101":
        folder = root / "n_caltech101" / "Caltech101"
        for label in ("accordion", "bonsai", "camera"):
            for number in range(per_class):
                path = folder / label / f"image_{number + 1:04d}.bin"
                write_events(path, random_events(rng, count, (180, 240)), "bin")
        return folder
    assert name == "eventfolder"
    formats = list(FORMATS)
    for part in ("train", "val"):
        for label in ("ape", "bee", "cow"):
            for number in range(per_class):
                format = formats[number % len(formats)]
                path = root / part / label / f"{number}{FORMATS[format].ending}"
                write_events(path, random_events(rng, count, (40, 50)), format)
    return root


def _gesture(folder: Path, rng: np.random.Generator, count: int) -> Path:
    """Two files of each set with all gestures, one after another, a pause before each."""
    for part, users in (("train", (1, 2)), ("test", (24, 25))):
        names = [f"user{user:02d}_led" for user in users]
        for name in names:
            events, table = [], ["class,startTime_usec,endTime_usec"]
            for label in range(11):
                start = 10_000_000 + 1_000_000 * label
                events.append(random_events(rng, count, (128, 128), start))
                table.append(f"{label + 1},{start},{start + 200_000}")
            write_events(folder / f"{name}.aedat", np.concatenate(events), "aedat3")
            (folder / f"{name}_labels.csv").write_text("\n".join(table) + "\n")
        (folder / f"trials_to_{part}.txt").write_text("".join(f"{n}.aedat\n" for n in names))
    return folder
