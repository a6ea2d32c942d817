"""Small images that are decoded once: the same pixels, whatever was killed, changed or full in between."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spiketriton.data import decoded as module
from spiketriton.data import preparing
from spiketriton.data.decoded import decoded
from spiketriton.data.splits import FileSplit, Photo
from spiketriton.system.errors import UserError
from tests.processes import Forked
from tests.small_data import data_recipe

N = 9


def make(root: Path, count: int = N) -> FileSplit:
    """Images of 4x6 pixels, the second of them grey."""
    root.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    paths = [root / f"{at}.png" for at in range(count)]
    for at, path in enumerate(paths):
        image = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
        image.convert("L" if at == 1 else "RGB").save(path)
    return split_of(paths)


def split_of(paths: list[Path]) -> FileSplit:
    return FileSplit([(str(path), 0) for path in paths], ["a"])


def truth(split: FileSplit) -> np.ndarray:
    images = [Image.open(split.path(at)).convert("RGB") for at in range(len(split))]
    return np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2)


@pytest.fixture
def config(tmp_path):
    return data_recipe("cifar10", tmp_path / "data").data


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The names of the files that were decoded in this process."""
    names: list[str] = []
    decode = Photo.decode

    def noted(self, **how):
        names.append(self.path.name)
        return decode(self, **how)

    monkeypatch.setattr(Photo, "decode", noted)
    return names


def cached(config) -> list[Path]:
    return sorted((Path(config.root) / ".decoded_images").glob("cifar10-*"))


@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_decoded_once_and_mapped(tmp_path, monkeypatch, opened, capfd, workers):
    monkeypatch.setattr(preparing, "CHUNK", 2)
    config = data_recipe("cifar10", tmp_path / "data", data=f"workers = {workers}").data
    split = make(tmp_path / "images")
    first = decoded(config, split)
    assert np.array_equal(first, truth(split))
    assert len(opened) == (0 if workers else N)
    (path,) = cached(config)
    assert capfd.readouterr().err == f"cifar10: {N} images are decoded once into {path}\n"
    opened.clear()
    again = decoded(config, split)
    assert isinstance(again, np.memmap)
    assert np.array_equal(again, first)
    assert (opened, capfd.readouterr().err) == ([], "")
    assert not again.flags.writeable


@pytest.mark.parametrize("how", ["content", "time", "name", "order", "fewer"])
def test_what_changes_the_files_makes_another_array(tmp_path, config, opened, how):
    split = make(tmp_path / "images")
    before = decoded(config, split).copy()
    paths = [split.path(at) for at in range(N)]
    if how == "content":
        Image.new("RGB", (6, 4), "red").save(paths[3])
    elif how == "time":
        os.utime(paths[3], ns=(1, 1))
    elif how == "name":
        paths[3] = paths[3].rename(paths[3].with_name("x.png"))
    else:
        paths = paths[::-1] if how == "order" else paths[1:]
    opened.clear()
    split = split_of(paths)
    after = decoded(config, split)
    assert len(opened) == len(paths)
    assert np.array_equal(after, truth(split))
    assert np.array_equal(after, before) == (how in ("time", "name"))


def test_a_build_that_is_cut_short_leaves_nothing_and_is_made_anew(tmp_path, config, monkeypatch):
    split = make(tmp_path / "images")
    real = module.in_processes

    def killed(*given):
        yield next(iter(real(*given)))
        raise KeyboardInterrupt

    monkeypatch.setattr(preparing, "CHUNK", 4)
    monkeypatch.setattr(module, "in_processes", killed)
    with pytest.raises(KeyboardInterrupt):
        decoded(config, split)
    assert cached(config) == []
    monkeypatch.setattr(module, "in_processes", real)
    assert np.array_equal(decoded(config, split), truth(split))
    (path,) = cached(config)
    path.with_name(f"{path.name}.part").write_bytes(b"of a process that was killed at once")
    for damaged in (path.read_bytes()[:-1], b"", b"\x93NUMPY nonsense"):
        path.write_bytes(damaged)
        assert np.array_equal(decoded(config, split), truth(split))
    assert cached(config) == [path]


def test_a_run_that_has_mapped_the_array_keeps_it(tmp_path, config):
    split = make(tmp_path / "images")
    mapped = decoded(config, split)
    (path,) = cached(config)
    path.unlink()
    assert np.array_equal(decoded(config, split), mapped)


@pytest.mark.parametrize("trouble", ["full", "unwritable"])
def test_without_room_images_are_decoded_into_memory(tmp_path, config, monkeypatch, capfd, trouble):
    split = make(tmp_path / "images")
    if trouble == "full":

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", full)
    else:
        Path(config.root).write_text("a file where the folder should be")
    for _ in range(2):
        assert np.array_equal(decoded(config, split), truth(split))
        why = "No space left on device" if trouble == "full" else "Not a directory"
        place = Path(config.root) / ".decoded_images"
        said = f"cifar10: 648 bytes of decoded images cannot be kept in {place} ({why}) and are decoded at"
        assert said in capfd.readouterr().err
    assert cached(config) == []


def test_several_processes_decode_once(tmp_path):
    make(tmp_path / "images", 40)
    code = (
        "import sys, hashlib; from pathlib import Path; import tests.data.test_decoded as t\n"
        "from spiketriton.data.splits import Photo; import time\n"
        "decode = Photo.decode\n"
        "Photo.decode = lambda self, **how: time.sleep(0.01) or decode(self, **how)\n"
        "split = t.split_of([Path('images') / f'{at}.png' for at in range(40)])\n"
        "config = t.data_recipe('cifar10', 'data').data\n"
        "assert (t.decoded(config, split) == t.truth(split)).all()\n"
        "print('equal')\n"
    )
    processes = [Forked("-c", code, folder=tmp_path) for _ in range(3)]
    output = "".join(process.communicate()[0] for process in processes)
    assert output.count("equal") == 3, output
    assert output.count("decoded once into") == 1, output


@pytest.mark.parametrize("where", [0, 5])
def test_a_damaged_image_is_named_and_nothing_is_kept(tmp_path, config, where):
    split = make(tmp_path / "images")
    split.path(where).write_bytes(b"")
    with pytest.raises(UserError, match=rf"{where}\.png \(class a\): the file is empty"):
        decoded(config, split)
    assert cached(config) == []
