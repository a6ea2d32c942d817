"""Small data sets of random events in the exact layouts of the real ones.

from tests.event_files import write_events
from tests.small_events import make_events
"""

from pathlib import Path

import numpy as np

from spiketriton.events import EVENT, FORMATS
from spiketriton.events.recordings import _CIFAR10
from tests.event_files import write_events


def random_events(
    rng: np.random.Generator,
    count: int,
    sensor: tuple[int, int],
    start: int = 0,
    end: int = 300_000,
) -> np.ndarray:
    """`count` events within `end` microseconds from `start` on, on a sensor of (height, width)."""
    events = np.empty(count, EVENT)
    events["t"] = start + np.sort(rng.integers(0, end, count))
    events["y"], events["x"] = (rng.integers(0, side, count) for side in sensor)
    events["p"] = rng.integers(0, 2, count)
    return events


def make_events(root: Path, name: str, per_class: int = 12, count: int = 400) -> Path:
    """A set named as in a recipe, below `root`; returns the folder that holds its files.

    CIFAR10-DVS has ten classes, N-MNIST too, Gesture eleven, the others three.
    """
    rng, digits = np.random.default_rng(0), [*"0123456789"]
    if name == "dvs_gesture":
        return _gesture(root / "dvs_gesture" / "DvsGesture", rng, count)
    folder = {"eventfolder": root, "n_caltech101": root / name / "Caltech101"}.get(
        name, root / name
    )
    parts, classes, sensor = {
        "cifar10_dvs": ([""], [*_CIFAR10], (128, 128)),
        "n_mnist": (["Train", "Test"], digits, (34, 34)),
        "n_caltech101": ([""], ["accordion", "bonsai", "camera"], (180, 240)),
        "eventfolder": (["train", "val"], ["ape", "bee", "cow"], (40, 50)),
    }[name]
    formats = {"cifar10_dvs": ["aedat2"], "eventfolder": [*FORMATS]}.get(name, ["bin"])
    for part in parts:
        for label in classes:
            for number in range(per_class):
                format = formats[number % len(formats)]
                stem = {
                    # 100 on, so that the split first100 has both parts
                    "cifar10_dvs": f"cifar10_{label}_{number * 100 // 3}",
                    "n_caltech101": f"image_{number + 1:04d}",
                }.get(name, str(number))
                path = folder / part / label / f"{stem}{FORMATS[format].ending}"
                write_events(path, random_events(rng, count, sensor), format)
    return folder


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
