"""Each data set in its real layout: its files, classes, splits, some of them SpikingJelly's, and what is refused."""

import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from spiketriton.data.download import RemoteFile
from spiketriton.events import recordings
from spiketriton.events.recordings import GESTURES, Recordings, held_out, number_of
from spiketriton.system.errors import UserError
from tests.event_files import write_events
from tests.events.support import spikingjelly
from tests.small_data import data_recipe
from tests.small_events import make_events, random_events

SPLIT = {"cifar10_dvs": "first100", "n_caltech101": "random90"}


def read(name: str, root: Path, data: str = "") -> Recordings:
    if "split " not in data and name in SPLIT:
        data += f'\nsplit = "{SPLIT[name]}"'
    return getattr(recordings, name)(data_recipe(name, root, data=f"download = false\n{data}").data)


def labels(part):
    return Counter(recording.label for recording in part)


def test_gesture_has_the_parts_of_each_file_that_its_table_names(tmp_path):
    folder = make_events(tmp_path, "dvs_gesture")
    found = read("dvs_gesture", tmp_path)
    assert found.classes == GESTURES
    assert (found.sensor, found.size, found.mirrors) == ((128, 128), 128, False)
    assert {r.path.name for r in found.train} == {"user01_led.aedat", "user02_led.aedat"}
    assert {r.path.name for r in found.test} == {"user24_led.aedat", "user25_led.aedat"}
    assert labels(found.train) == labels(found.test) == {label: 2 for label in range(11)}
    third = found.train[2]
    assert (third.path, third.label) == (folder / "user01_led.aedat", 2)
    assert third.span == (12_000_000, 12_200_000)


@pytest.mark.parametrize("line", ["12,10,20", "0,10,20", "1,20,20", "1,10"])
def test_a_wrong_line_of_a_table_of_gestures_is_named(tmp_path, line):
    table = make_events(tmp_path, "dvs_gesture") / "user02_led_labels.csv"
    table.write_text(f"class,startTime_usec,endTime_usec\n1,5,6\n{line}\n")
    said = f"{table}, line 3: '{line}'; accepted: a class from 1 to 11"
    with pytest.raises(UserError, match=re.escape(said)):
        read("dvs_gesture", tmp_path)


def test_cifar10_dvs_has_two_splits(tmp_path):
    make_events(tmp_path, "cifar10_dvs")
    found = read("cifar10_dvs", tmp_path)
    assert len(found.classes) == 10
    assert all(number_of(r.path) < 100 for r in found.test)
    assert all(number_of(r.path) >= 100 for r in found.train)
    assert labels(found.test) == {label: 3 for label in range(10)}
    one, again, other = (
        read("cifar10_dvs", tmp_path, f'split = "random90"\nsplit_seed = {seed}')
        for seed in (0, 0, 1)
    )
    assert labels(one.test) == {label: 1 for label in range(10)}
    assert labels(one.train) == {label: 11 for label in range(10)}
    assert one.test == again.test != other.test
    assert not {*one.train} & {*one.test}


def test_n_mnist_has_the_split_of_its_folders(tmp_path):
    folder = make_events(tmp_path, "n_mnist", per_class=2)
    found = read("n_mnist", tmp_path)
    assert labels(found.train) == labels(found.test) == {label: 2 for label in range(10)}
    assert all(r.path.parents[1] == folder / "Test" for r in found.test)
    assert all(r.path.parent.name == str(r.label) for r in found.train)


def test_n_caltech101_has_the_classes_of_its_folders(tmp_path):
    make_events(tmp_path, "n_caltech101")
    found = read("n_caltech101", tmp_path)
    assert found.classes == ("accordion", "bonsai", "camera")
    assert (found.sensor, found.size) == ((180, 240), 48)
    assert (len(found.train), len(found.test)) == (33, 3)


FOLDER = 'sensor = "50x40"'


def test_an_eventfolder_has_any_format_and_the_split_of_its_folders(tmp_path):
    make_events(tmp_path, "eventfolder")
    found = read("eventfolder", tmp_path, FOLDER)
    assert found.classes == ("ape", "bee", "cow")
    assert (found.sensor, found.size, found.format) == ((40, 50), 50, "auto")
    assert {r.path.suffix for r in found.train} == {
        *(".aedat", ".aedat4", ".bin", ".dat", ".npy", ".npz", ".raw")
    }
    assert (len(found.train), len(found.test)) == (36, 36)
    assert all("val" in r.path.parts for r in found.test)
    (tmp_path / "train" / "event_frames").mkdir()  # a cache next to the classes is not one of them
    found = read("eventfolder", tmp_path / "train", f'{FOLDER}\nsplit = "random90"')
    assert found.classes == ("ape", "bee", "cow")
    assert (len(found.train), len(found.test)) == (33, 3)


def test_what_an_eventfolder_lacks_is_named(tmp_path):
    def refused(words, data=FOLDER, root=tmp_path):
        with pytest.raises(UserError, match=words):
            read("eventfolder", root, data)

    refused(r"no folder .*train; data\.root must hold train/<class>/ and val/<class>/")
    make_events(tmp_path, "eventfolder", per_class=1)
    refused(r'data\.sensor = "auto": eventfolder needs the camera\'s pixels', "")
    for split, left in (("random90", "test"), ("first100", "training")):
        lines = f'{FOLDER}\nsplit = "{split}"'
        refused(f"leaves no {left} recording of the 3", lines, tmp_path / "train")
    (tmp_path / "val" / "dog").mkdir()
    refused(r"different classes in train \(ape, bee, cow\) and val \(ape, bee, cow, dog\)")
    (tmp_path / "train" / "dog").mkdir()
    refused(r"train/dog holds no recording; accepted: \.aedat, \.aedat4, \.bin, \.dat")


def test_validation_may_have_a_folder_of_its_own(tmp_path):
    make_events(tmp_path, "eventfolder", per_class=2)
    shutil.copytree(tmp_path / "val", tmp_path / "test")
    held_out = f'{FOLDER}\nvalidation = "val"'
    found = read("eventfolder", tmp_path, held_out)
    for part, name in ((found.test, "test"), (found.validation, "val"), (found.train, "train")):
        assert len(part) == 6
        assert {r.path.parts[-3] for r in part} == {name}
    (tmp_path / "val" / "ape").rename(tmp_path / "val" / "gnu")
    with pytest.raises(UserError, match=r"different classes in train \(ape.* and val \(bee"):
        read("eventfolder", tmp_path, held_out)


def test_archives_that_lie_in_the_folder_are_unpacked(tmp_path, monkeypatch):
    folder = make_events(tmp_path, "n_mnist", per_class=1)
    for part in ("Train", "Test"):
        shutil.make_archive(str(folder / part), "zip", folder, part)
        shutil.rmtree(folder / part)
    checked = []
    monkeypatch.setattr(RemoteFile, "whole", lambda file, path: not checked.append(file.md5))
    found = read("n_mnist", tmp_path)
    assert (len(found.train), len(found.test)) == (10, 10)
    assert checked == ["20959b8e626244a1b502305a9e6e2031", "69ca8762b2fe404d9b9bad1103e97832"]


LABELS = np.repeat([0, 1, 2], [1000, 300, 9])
NUMBERS = np.concatenate([np.arange(n) for n in (1000, 300, 9)])


def test_first100_is_spikingjellys_split_of_tebn(tmp_path, monkeypatch):
    """What its code links into test/ and train/ of a tree of files, named as the real ones."""
    theirs = spikingjelly("cifar10_dvs")
    monkeypatch.setattr(theirs, "CIFAR10DVS_CLASS_NAMES", ["bird", "ship"])
    names = {name: [f"cifar10_{name}_{i}" for i in range(1000)] for name in ("bird", "ship")}
    theirs._move_data(tmp_path)
    for label, (name, stems) in enumerate(names.items()):
        numbers = [number_of(Path(f"{stem}.aedat")) for stem in stems]
        ours = held_out("first100", np.full(1000, label), numbers, 0)
        for part, wanted in (("test", True), ("train", False)):
            linked = {path.stem for path in (tmp_path / part / name).iterdir()}
            assert linked == {s for s, t in zip(stems, ours, strict=True) if t == wanted}


def test_random90_is_as_large_as_spikingjellys():
    by_class = [list(np.flatnonzero(label == LABELS)) for label in range(3)]
    train, test = spikingjelly("utils")._split_class_indices(by_class, 0.9, True)
    ours = held_out("random90", LABELS, NUMBERS, 0)
    assert (int(ours.sum()), int((~ours).sum())) == (len(test), len(train))
    assert np.bincount(LABELS[ours]).tolist() == [100, 30]


def test_random90_depends_on_the_seed_and_on_nothing_else():
    one, again, other = (held_out("random90", LABELS, NUMBERS, seed) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    shuffled = np.random.default_rng(0).permutation(len(LABELS))
    assert np.array_equal(
        held_out("random90", LABELS[shuffled], NUMBERS[shuffled], 0), one[shuffled]
    )


def test_the_number_of_a_recording_is_the_last_in_its_name():
    names = ("cifar10_bird_17.aedat", "00003.bin", "image_0042.bin", "a1b2c.npy")
    assert [number_of(Path(name)) for name in names] == [17, 3, 42, 2]
    with pytest.raises(UserError, match=r"wave\.npy: its file name has no number"):
        number_of(Path("wave.npy"))


def make_biolab(root):
    """Two takes of each object, of 1.05 s (0.85 for the second), which begin at 5 ms."""
    rng = np.random.default_rng(0)
    for take, end in (
        ("DataSet2", 1_050_000),
        ("NeuromorphicObjectDataSet_100/aedatFiles", 850_000),
    ):
        for name in ("Caixa", "Caneca", "Estilete", "Lapiseira", "Tesoura", "Mouse"):
            events = random_events(rng, 2000, (128, 128), start=5000, end=end)
            events["t"][0], events["t"][-1] = 5000, 5000 + end - 1
            write_events(root / take / f"{name}.aedat", events, "aedat2")


@pytest.mark.parametrize("place", ["dvs_biolab", "."])
def test_long_recordings_are_cut_and_one_take_tests_the_other(tmp_path, place):
    make_biolab(tmp_path / place)
    found = read("dvs_biolab", tmp_path, "cut_ms = 200")
    assert found.classes == ("box", "mug", "box cutter", "pencil", "scissors")
    assert (len(found.train), len(found.test)) == (5 * 5, 5 * 4)
    first = found.train[:5]
    assert {one.label for one in first} == {0}
    assert [one.span[0] for one in first] == [5000 + 200_000 * n for n in range(5)]
    assert all(one.span[1] - one.span[0] == 200_000 for one in found.train)
    assert "DataSet2" in str(first[0].path)
    assert not any("DataSet2" in str(one.path) for one in found.test)
    whole = read("dvs_biolab", tmp_path, "")
    assert [str(one.path) for one in whole.train] == [str(one.path) for one in found.train[::5]]
    with pytest.raises(UserError, match=r"850 ms of events; accepted with data.cut_ms = 900"):
        read("dvs_biolab", tmp_path, "cut_ms = 900")


def test_the_takes_that_are_missing_are_named(tmp_path):
    with pytest.raises(UserError, match=r"DataSet2 and .* git clone --depth 1 https://github.com"):
        read("dvs_biolab", tmp_path, "cut_ms = 200")


def test_an_eventfolder_is_cut_too(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("push", "wave"):
            events = random_events(rng, 500, (40, 50), end=310_000)
            write_events(tmp_path / part / name / "0.npy", events, "npy")
    sensor = 'sensor = "50x40"'
    found = read("eventfolder", tmp_path, f"{sensor}\ncut_ms = 100")
    assert [one.label for one in found.train] == [0, 0, 0, 1, 1, 1]
    assert len(found.test) == 6
    config = data_recipe("eventfolder", tmp_path, data=f"{sensor}\ncut_ms = 100").data
    source = found.source(config, 2)
    whole = read("eventfolder", tmp_path, sensor)
    every = whole.source(data_recipe("eventfolder", tmp_path, data=sensor).data, 2).train
    assert len(source.train) == 6
    counts = source.train.facts["events"].reshape(2, 3).sum(1)
    assert (counts <= every.facts["events"]).all()
    assert (counts > 0.9 * every.facts["events"]).all()
