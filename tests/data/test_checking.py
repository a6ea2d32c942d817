"""Broken image files: named where they are read, or left out before training."""

from pathlib import Path

import numpy as np
import pytest

from spiketriton.data import build_data, preparing
from spiketriton.data.checking import why_broken
from spiketriton.data.splits import FileSplit
from spiketriton.system.errors import UserError
from tests.small_data import (
    all_of,
    damage,
    data_recipe,
    make_class_tree,
    mentions,
    mistake,
    noise_image,
)


def folder_of(root: Path, per_class: int = 6) -> Path:
    make_class_tree(root, ("train", "val"), ("ape", "bee"), per_class)
    return root


def file(root: Path, at: int = 0, split: str = "train", name: str = "ape") -> Path:
    return root / split / name / f"{name}_{split}_{at}.JPEG"


def recipe(root: Path, lines: str = 'broken = "skip"'):
    return data_recipe("imagefolder", root, data=f"image_size = 16\n{lines}")


def why(path: Path) -> str:
    return why_broken(FileSplit([(str(path), 0)], ["ape"]), 0)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_file_cut_short_is_found_and_says_why(tmp_path, format):
    path = tmp_path / "a.image"
    noise_image(np.random.default_rng(0), "RGB", (80, 60)).save(path, format)
    assert why(path) == ""
    whole = path.read_bytes()
    path.write_bytes(whole[: int(0.97 * len(whole))])
    assert why(path).startswith(f"{path} (class ape): ")
    path.write_bytes(b"")
    assert why(path) == f"{path} (class ape): the file is empty"


def test_bytes_behind_the_image_are_no_damage(tmp_path):
    path = tmp_path / "a.jpg"
    noise_image(np.random.default_rng(0), "RGB", (80, 60)).save(path)
    for more in (b"\0" * 100, b"\0" * 100_000):  # beyond what is looked at, the image is decoded
        path.write_bytes(path.read_bytes() + more)
        assert why(path) == ""


def test_a_broken_file_is_named_with_its_class_where_it_is_read(tmp_path):
    root = folder_of(tmp_path)
    damage(file(root, 2, "val"), "no image")
    data = build_data(recipe(root, ""))
    with pytest.raises(UserError) as raised:
        all_of(data.test)
    mentions(str(raised.value), "cannot read image", file(root, 2, "val"), "(class ape)")


def test_broken_files_are_left_out_and_counted(tmp_path):
    root = folder_of(tmp_path)
    assert build_data(recipe(root)).skipped == ()
    broken = [file(root, 2), file(root, 0, "val", "bee")]
    damage(broken[0], "no image")
    damage(broken[1], "empty")
    data = build_data(recipe(root))
    assert (data.train.images, data.test.images) == (11, 11)
    assert data.facts.class_counts == (5, 6)
    assert [said.partition(" (")[0] for said in data.skipped] == [*map(str, broken)]
    assert len(all_of(data.test)[0]) == 11
    other = build_data(recipe(root), rank=1, world_size=2)
    assert other.skipped == data.skipped
    assert np.array_equal(other.train.members, data.train.members)


def test_a_class_without_an_image_to_train_on_or_a_split_without_any_is_refused(tmp_path):
    root = folder_of(tmp_path, per_class=2)

    def without(split: str, name: str) -> None:
        for at in range(2):
            damage(file(root, at, split, name), "empty")

    without("val", "ape")
    assert build_data(recipe(root)).test.images == 2
    without("val", "bee")
    mentions(mistake(recipe(root)), "no test image of ape", "one or more")
    without("train", "ape")
    mentions(mistake(recipe(root)), "no train image of ape", file(root), "the file is empty")


def test_many_files_are_checked_by_several_processes(tmp_path, monkeypatch):
    root = folder_of(tmp_path)
    damage(file(root, 5), "cut short")
    damage(file(root, 1, "val", "bee"), "empty")
    alone = build_data(recipe(root)).skipped
    monkeypatch.setattr(preparing, "CHUNK", 4)
    assert build_data(recipe(root, 'broken = "skip"\nworkers = 2')).skipped == alone
    assert len(alone) == 2
