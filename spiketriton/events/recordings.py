"""The recordings of each data set of event cameras: files, classes, and which are tested on.

Archives are unpacked in a folder of the data set's name in data.root:

    dvs_gesture     DvsGesture.tar.gz: user01_led.aedat, user01_led_labels.csv, trials_to_train.txt, ...
    cifar10_dvs     airplane.zip ... truck.zip: airplane/cifar10_airplane_0.aedat, ...
    n_mnist         Train.zip and Test.zip: Train/0/00002.bin, ...
    n_caltech101    Caltech101.zip: Caltech101/accordion/image_0001.bin, ...
    dvs_biolab      github.com/eberlawrence/DVS128_BioLab: DataSet2/Caixa.aedat, ...

eventfolder reads your own: root/train/<class>/* and root/val/<class>/* (or root/test/<class>/*) with
the split "official", root/<class>/* with another one:

    first100   tests on recordings 0 to 99 of each class, by the number in their file's name, as in TEBN (Duan et
               al. 2022) and SpikingJelly's CIFAR10DVSTEBNSplit; scores higher than a random split
    random90   tests on a tenth of each class (rounded down), drawn by a seed and the recordings' numbers
"""

import csv
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from spiketriton import plugins
from spiketriton.config import DataConfig
from spiketriton.data.counter_rng import mix
from spiketriton.data.download import RemoteFile, data_root, unpacked
from spiketriton.data.splits import drawn_of_each, folders_of_splits
from spiketriton.events import simulated
from spiketriton.events.cache import CACHE, Recording, Recordings
from spiketriton.events.formats import DVS128, FORMATS, Sensor, read_events
from spiketriton.system.errors import UserError, one_line

ENDINGS = tuple(sorted({format.ending for format in FORMATS.values()}))

_GESTURE = RemoteFile(
    "https://ibm.ent.box.com/s/3hiq58ww1pbbjrinh367ykfdf60xsfm8/folder/50167556794",
    "8a5c71fb11e24e5ca5b11866ca6c00a1",
    "DvsGesture.tar.gz",
    by_hand=True,
)
GESTURES = (
    "hand clapping",
    "right hand wave",
    "left hand wave",
    "right arm clockwise",
    "right arm counter clockwise",
    "left arm clockwise",
    "left arm counter clockwise",
    "arm roll",
    "air drums",
    "air guitar",
    "other gestures",
)
_CIFAR10 = {
    "airplane": ("7712788", "0afd5c4bf9ae06af762a77b180354fdd"),
    "automobile": ("7712791", "8438dfeba3bc970c94962d995b1b9bdd"),
    "bird": ("7712794", "a9c207c91c55b9dc2002dc21c684d785"),
    "cat": ("7712812", "52c63c677c2b15fa5146a8daf4d56687"),
    "deer": ("7712815", "b6bf21f6c04d21ba4e23fc3e36c8a4a3"),
    "dog": ("7712818", "f379ebdf6703d16e0a690782e62639c3"),
    "frog": ("7712842", "cad6ed91214b1c7388a5f6ee56d08803"),
    "horse": ("7712851", "e7cbbf77bec584ffbf913f00e682782a"),
    "ship": ("7712836", "41c7bd7d6b251be82557c6cce9a7d5c9"),
    "truck": ("7712839", "89f3922fd147d9aeff89e76a2b0b70a7"),
}
_N_MNIST = {  # at Mendeley Data
    "Train": ("39c25547-014b-4137-a934-9d29fa53c7a0", "20959b8e626244a1b502305a9e6e2031"),
    "Test": ("05a4d654-7e03-4c15-bdfa-9bb2bcbea494", "69ca8762b2fe404d9b9bad1103e97832"),
}
_N_CALTECH101 = RemoteFile(
    "https://www.garrickorchard.com/datasets/n-caltech101",
    "66201824eabb0239c7ab992480b50ba3",
    "Caltech101.zip",
    by_hand=True,
)


@plugins.data("dvs_gesture")
def dvs_gesture(config: DataConfig) -> Recordings:
    """DVS128 Gesture (Amir et al. 2017): 11 gestures, parts of 122 files, 1,176 + 288 recordings."""
    folder = unpacked(_GESTURE, "DvsGesture", _inside(config))

    def read(part: str) -> list[Recording]:
        names = _text(folder / f"trials_to_{part}.txt").split()
        return [recording for name in names for recording in _gestures(folder / name)]

    return Recordings(
        root=folder,
        classes=GESTURES,
        train=read("train"),
        test=read("test"),
        format="aedat3",
        sensor=DVS128,
        size=128,
        mirrors=False,
    )


def _gestures(path: Path) -> list[Recording]:
    """The parts of a file that its table of labels names."""
    table = path.with_name(f"{path.stem}_labels.csv")
    found = []
    for number, row in enumerate(csv.reader(_text(table).splitlines()), 1):
        try:
            label, start, end = map(int, row)
        except ValueError:
            if number == 1:  # class,startTime_usec,endTime_usec
                continue
            label = start = end = 0
        if not (1 <= label <= len(GESTURES) and start < end):
            raise UserError(
                f"{table}, line {number}: {','.join(row)!r}; accepted: a class from 1 to "
                f"{len(GESTURES)}, the microsecond of its start and a later one of its end"
            )
        found.append(Recording(path, label - 1, (start, end)))
    return found


@plugins.data("cifar10_dvs")
def cifar10_dvs(config: DataConfig) -> Recordings:
    """CIFAR10-DVS (Li et al. 2017): 10,000 recordings of CIFAR-10's images, moved on a screen."""
    inside = _inside(config)
    for name, (number, md5) in _CIFAR10.items():
        file = RemoteFile(
            f"https://ndownloader.figshare.com/files/{number}",
            md5,
            f"{name}.zip",
            mirror=f"https://api.figshare.com/v2/file/download/{number}",
        )
        unpacked(file, name, inside)
    return Recordings(
        **_partitioned(Path(inside.root), tuple(_CIFAR10), config),
        format="aedat2",
        sensor=DVS128,
        size=48,
        mirrors=True,
    )


@plugins.data("n_mnist")
def n_mnist(config: DataConfig) -> Recordings:
    """N-MNIST (Orchard et al. 2015): 60,000 + 10,000 recordings of MNIST's digits by saccades."""
    inside = _inside(config)
    files = "https://data.mendeley.com/public-files/datasets/468j46mzdv/files"
    for name, (key, md5) in _N_MNIST.items():
        unpacked(RemoteFile(f"{files}/{key}/file_downloaded", md5, f"{name}.zip"), name, inside)
    return Recordings(
        **_in_folders(Path(inside.root), list(_N_MNIST), tuple("0123456789"), config),
        format="bin",
        sensor=sensor_of(config),
        size=34,
        mirrors=False,
    )


@plugins.data("n_caltech101")
def n_caltech101(config: DataConfig) -> Recordings:
    """N-Caltech101 (Orchard et al. 2015): 8,709 recordings of 101 classes by saccades."""
    folder = unpacked(_N_CALTECH101, "Caltech101", _inside(config))
    return Recordings(
        **_partitioned(folder, _class_folders(folder, config), config),
        format="bin",
        sensor=sensor_of(config),
        size=48,
        mirrors=True,
    )


_OBJECTS = {
    "box": "Caixa",
    "mug": "Caneca",
    "box cutter": "Estilete",
    "pencil": "Lapiseira",
    "scissors": "Tesoura",
}
"""Those of which there are two takes, with the names of their files."""
_TAKES = ("DataSet2", "NeuromorphicObjectDataSet_100/aedatFiles")
_BIOLAB = "https://github.com/eberlawrence/DVS128_BioLab"


@plugins.data("dvs_biolab")
def dvs_biolab(config: DataConfig) -> Recordings:
    """Small objects in front of a real DVS128, each in two takes of seconds: one take trains, the other tests.

    The repository has no licence: it is read where somebody has cloned it.
    """
    root = data_root(config)
    for folder in (root / config.name, root):
        if all((folder / take).is_dir() for take in _TAKES):
            break
    else:
        raise UserError(
            f"{config.name}: no folders {' and '.join(_TAKES)} in {root / config.name}; git clone --depth 1 {_BIOLAB} "
            f"{root / config.name}, or set data.root to the folder that holds it"
        )
    train, test = (
        [
            Recording(folder / take / f"{name}.aedat", label)
            for label, name in enumerate(_OBJECTS.values())
        ]
        for take in _TAKES
    )
    sensor = sensor_of(config)
    return Recordings(
        root=folder,
        classes=tuple(_OBJECTS),
        train=cut(train, config, "aedat2", sensor),
        test=cut(test, config, "aedat2", sensor),
        format="aedat2",
        sensor=sensor,
        size=128,
        mirrors=True,
    )


def cut(
    whole: Sequence[Recording], config: DataConfig, format: str, sensor: Sensor
) -> list[Recording]:
    """The parts of `data.cut_ms` of each recording, from its first event on; with 0 the recordings themselves.

    UserError: a file is damaged, or shorter than a part.
    """
    if not config.cut_ms:
        return [*whole]
    parts, long = [], 1000 * config.cut_ms
    for one in whole:
        events = read_events(one.path, format, sensor=sensor, backward="sort")
        spans = spans_of(events, long)
        if not spans:
            raise UserError(
                f"{one.path} has {_duration(events) / 1000:g} ms of events; accepted with data.cut_ms = "
                f"{config.cut_ms}: as long or longer"
            )
        parts += [Recording(one.path, one.label, span) for span in spans]
    return parts


def spans_of(events: np.ndarray, long: int) -> list[tuple[int, int]]:
    """The parts of so many microseconds, from the first event on; a rest that is shorter is left out."""
    first = int(events["t"][0]) if len(events) else 0
    starts = range(first, first + _duration(events) // long * long, long)
    return [(start, start + long) for start in starts]


def _duration(events: np.ndarray) -> int:
    """Microseconds from the first event to just behind the last."""
    return int(events["t"][-1]) - int(events["t"][0]) + 1 if len(events) else 0


@plugins.data("eventfolder")
def eventfolder(config: DataConfig) -> Recordings:
    """Your own recordings, a folder for each class."""
    root, sensor = data_root(config), sensor_of(config)
    if config.split != "official":
        parts = _partitioned(root, _class_folders(root, config), config)
    else:
        holding = 'recordings, or <class>/ with data.split = "random90"'
        names = folders_of_splits(root, config, holding)
        classes = _class_folders(root / "train", config)
        for name in names[1:]:
            if (others := _class_folders(root / name, config)) != classes:
                raise UserError(
                    f"eventfolder: {root} has different classes in train ({', '.join(classes)}) and "
                    f"{name} ({', '.join(others)})"
                )
        parts = _in_folders(root, names, classes, config)
    for name in ("train", "test", "validation"):
        if name in parts:
            parts[name] = cut(parts[name], config, config.format, sensor)
    return Recordings(**parts, format=config.format, sensor=sensor, size=max(sensor), mirrors=True)


@plugins.data("digits_dvs")
def digits_dvs(config: DataConfig) -> Recordings:
    """The packaged digits as a simulated camera sees them, moved by three saccades: 1,437 + 360."""
    if config.format not in ("auto", "bin"):
        raise UserError(
            f'data.format = "{config.format}": digits_dvs is written as .bin; accepted with it: "auto", "bin"'
        )
    folder = simulated.digits(data_root(config))
    return Recordings(
        **_in_folders(folder, ["train", "test"], tuple("0123456789"), config),
        format="bin",
        sensor=simulated.SENSOR,
        size=max(simulated.SENSOR),
        mirrors=False,
    )


_SENSORS: dict[str, Sensor] = {
    "dvs_gesture": DVS128,
    "cifar10_dvs": DVS128,
    "n_mnist": (34, 34),
    "n_caltech101": (180, 240),
    "dvs_biolab": DVS128,
    "digits_dvs": simulated.SENSOR,
}


def sensor_of(config: DataConfig) -> Sensor:
    """Height and width of the camera. UserError: the recipe does not say that of eventfolder."""
    if config.name in _SENSORS:
        return _SENSORS[config.name]
    if config.sensor != "auto":
        width, height = map(int, config.sensor.split("x"))
        return height, width
    if config.format == "aedat2":
        return DVS128
    raise UserError(
        f'data.sensor = "auto": eventfolder needs the camera\'s pixels, as "346x260"; only '
        f'data.format = "aedat2" says them, not {config.format!r}'
    )


def _inside(config: DataConfig) -> DataConfig:
    """The recipe's data with data.root at the folder of the data set's name."""
    return replace(config, root=str(data_root(config) / config.name))


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from None


def _class_folders(folder: Path, config: DataConfig) -> tuple[str, ...]:
    """The names of the folders in a folder, but for the cache of frames. UserError: there are none."""
    found = sorted(path.name for path in _inside_of(folder, config) if path.is_dir())
    names = tuple(name for name in found if not name.startswith(".") and name != CACHE)
    if not names:
        raise UserError(f"{config.name}: {folder} holds no folder of a class")
    return names


def _inside_of(folder: Path, config: DataConfig) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{config.name}: {folder}: {error.strerror}") from None


def _in_classes(folder: Path, classes: Sequence[str], config: DataConfig) -> list[Recording]:
    """The recordings in folder/<class>/, by class and name. UserError: a class has none."""
    found = []
    for label, name in enumerate(classes):
        mine = [
            Recording(path, label)
            for path in _inside_of(folder / name, config)
            # macOS writes ._0.npy next to 0.npy on other disks and in archives
            if path.name.lower().endswith(ENDINGS) and not path.name.startswith(".")
        ]
        if not mine:
            raise UserError(
                f"{config.name}: {folder / name} holds no recording; accepted: {', '.join(ENDINGS)}"
            )
        found += mine
    return found


def _in_folders(
    root: Path, names: Sequence[str], classes: tuple[str, ...], config: DataConfig
) -> dict[str, Any]:
    """The sets of recordings in root/<name>/<class>/: train, test and perhaps validation."""
    sets = [_in_classes(root / name, classes, config) for name in names]
    return {
        "root": root,
        "classes": classes,
        **dict(zip(("train", "test", "validation"), sets, strict=False)),
    }


def _partitioned(root: Path, classes: tuple[str, ...], config: DataConfig) -> dict[str, Any]:
    """The recordings in root/<class>/, divided by the recipe's split. UserError: a set would be empty."""
    every = _in_classes(root, classes, config)
    labels = np.array([one.label for one in every])
    tested = held_out(
        config.split, labels, [number_of(one.path) for one in every], config.split_seed
    )
    train, test = ([every[at] for at in np.flatnonzero(tested == part)] for part in (False, True))
    if not train or not test:
        raise UserError(
            f"data.split = {config.split!r} leaves no {'test' if train else 'training'} recording of the "
            f"{len(every):,} of {config.name}"
        )
    return {"root": root, "classes": classes, "train": train, "test": test}


def number_of(path: Path) -> int:
    """The last number in a file's name. UserError: there is none."""
    digits = re.findall(r"\d+", path.stem)
    if not digits:
        raise UserError(f"{path}: its file name has no number, which the named splits need")
    return int(digits[-1])


def held_out(split: str, labels: np.ndarray, numbers: Sequence[int], seed: int) -> np.ndarray:
    """Whether each recording of a class, with a number within it, belongs to the test set: bool [N]."""
    within = np.array(numbers)
    if split == "first100":
        return within < 100
    return drawn_of_each(labels, mix(seed, labels, within), lambda members: members // 10)
