"""Broken image files: found before training, once, by their ends or by all pixels; named, or left out."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spiketriton.data import build_data, checking, preparing
from spiketriton.data.checking import why_broken
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


def recipe(root: Path, lines: str = ""):
    return data_recipe("imagefolder", root, data=f"image_size = 16\n{lines}")


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_file_cut_short_is_found_and_says_why(tmp_path, format, pixels):
    path = tmp_path / "a.image"
    noise_image(np.random.default_rng(0), "RGB", (80, 60)).save(path, format)
    assert why_broken(path, "ape", pixels=pixels) == ""
    whole = path.read_bytes()
    path.write_bytes(whole[: int(0.97 * len(whole))])
    assert why_broken(path, "ape", pixels=pixels).startswith(f"{path} (class ape): ")
    path.write_bytes(b"")
    assert why_broken(path, "ape", pixels=pixels) == f"{path} (class ape): the file is empty"


def test_bytes_behind_the_image_are_no_damage(tmp_path):
    path = tmp_path / "a.jpg"
    noise_image(np.random.default_rng(0), "RGB", (80, 60)).save(path)
    for more in (b"\0" * 100, b"\0" * 100_000):  # beyond what is looked at, the image is decoded
        path.write_bytes(path.read_bytes() + more)
        assert why_broken(path, "ape", pixels=False) == ""


def test_only_the_full_check_reads_the_middle_of_a_file(tmp_path):
    path = tmp_path / "a.png"
    noise_image(np.random.default_rng(0), "RGB", (80, 60)).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert why_broken(path, "ape", pixels=False) == ""
    assert "(class ape): " in why_broken(path, "ape", pixels=True)


def test_broken_files_are_named_before_training_or_left_out_and_counted(tmp_path):
    root = folder_of(tmp_path)
    whole = build_data(recipe(root))
    broken = [file(root, 2), file(root, 0, "val", "bee")]
    damage(broken[0], "no image")
    damage(broken[1], "empty")
    message = mistake(recipe(root))
    mentions(message, "imagefolder: 2 of 24 image files cannot be read", "(class ape)", *broken)
    mentions(message, 'data.broken = "skip"')
    data = build_data(recipe(root, 'broken = "skip"'))
    assert (data.train.images, data.test.images) == (11, 11)
    assert data.facts.class_counts == (5, 6)
    assert [said.partition(" (")[0] for said in data.skipped] == [*map(str, broken)]
    assert len(all_of(data.test)[0]) == 11
    assert whole.skipped == ()
    other = build_data(recipe(root, 'broken = "skip"'), rank=1, world_size=2)
    assert other.skipped == data.skipped
    assert np.array_equal(other.train.members, data.train.members)


def test_off_checks_nothing(tmp_path):
    root = folder_of(tmp_path)
    damage(file(root, 2), "empty")
    assert build_data(recipe(root, 'check = "off"')).train.images == 12
    assert not (root / checking.FOLDER).exists()


def test_a_class_without_an_image_to_train_on_or_a_split_without_any_is_refused(tmp_path):
    root = folder_of(tmp_path, per_class=2)

    def without(split: str, name: str) -> None:
        for at in range(2):
            damage(file(root, at, split, name), "empty")

    without("val", "ape")
    assert build_data(recipe(root, 'broken = "skip"')).test.images == 2
    without("val", "bee")
    mentions(mistake(recipe(root, 'broken = "skip"')), "no test image of ape", "one or more")
    without("train", "ape")
    message = mistake(recipe(root, 'broken = "skip"'))
    mentions(message, "no train image of ape", file(root), "the file is empty")


@pytest.fixture
def opened(monkeypatch) -> list[Path]:
    """The files that are opened, in this process."""
    found: list[Path] = []

    def counted(path: Path, class_name: str, *, pixels: bool) -> str:
        found.append(path)
        return why_broken(path, class_name, pixels=pixels)

    monkeypatch.setattr(checking, "why_broken", counted)
    return found


def test_a_file_is_checked_once_and_again_when_it_changes(tmp_path, opened):
    root = folder_of(tmp_path)
    damage(file(root, 2), "empty")
    lines = 'broken = "skip"'
    build_data(recipe(root, lines))
    assert len(opened) == 24
    opened.clear()
    assert len(build_data(recipe(root, lines)).skipped) == 1
    assert opened == []
    Image.new("RGB", (20, 20)).save(file(root, 2), "JPEG")
    os.utime(file(root, 3), ns=(1, 1))
    assert build_data(recipe(root, lines)).skipped == ()
    assert sorted(opened) == [file(root, 2), file(root, 3)]
    opened.clear()
    build_data(recipe(root, 'check = "full"'))
    assert len(opened) == 24  # a fast check is none of pixels
    record = root / checking.FOLDER / "imagefolder-full.npz"
    record.write_bytes(record.read_bytes()[:-9])
    build_data(recipe(root, 'check = "full"'))
    assert len(opened) == 48


def test_a_process_that_waited_for_another_checks_nothing_again(tmp_path, monkeypatch, opened):
    """As the ranks of a job, which begin at the same time."""
    root = folder_of(tmp_path)
    lock = checking.one_process_at_a_time

    @contextmanager
    def held_by_another(folder: Path) -> Iterator[None]:
        monkeypatch.setattr(checking, "one_process_at_a_time", lock)
        build_data(recipe(root), rank=0, world_size=2)
        with lock(folder):
            yield

    monkeypatch.setattr(checking, "one_process_at_a_time", held_by_another)
    build_data(recipe(root), rank=1, world_size=2)
    assert len(opened) == 24


def test_a_folder_that_cannot_be_written_is_no_mistake(tmp_path, capsys):
    root = folder_of(tmp_path / "data")
    (tmp_path / "file").write_text("no folder")
    damage(file(root, 2), "empty")
    data = build_data(recipe(root, f'broken = "skip"\ncache = "{tmp_path / "file"}"'))
    assert len(data.skipped) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"cannot be kept in {tmp_path / 'file'}" in said
    assert "data.cache names another folder" in said


def test_many_files_are_checked_by_several_processes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(preparing, "CHUNK", 4)
    root = folder_of(tmp_path)
    damage(file(root, 5), "cut short")
    damage(file(root, 1, "val", "bee"), "empty")
    parts = build_data(recipe(root, 'broken = "skip"\nworkers = 2'))
    said = capsys.readouterr().err
    assert "imagefolder: 24 image files are checked once (data.check = fast)" in said
    assert parts.skipped == build_data(recipe(root, 'check = "full"\nbroken = "skip"')).skipped
