"""The page of promises names tests that exist; a run folder that cannot be written is named."""

import errno
import re
from pathlib import Path

import pytest

from spiketriton.errors import UserError
from spiketriton.runs.folder import RunFolder

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text("utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


def test_the_page_names_many_tests():
    assert len(NAMED) > 30


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_every_test_on_the_page_exists(file, name):
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("file", re.findall(r"\((img/[\w.]+|\w+\.md)\)", PAGE))
def test_every_file_on_the_page_exists(file):
    assert (ROOT / "docs" / file).is_file()


def test_a_read_only_run_folder_is_named(tmp_path, monkeypatch):
    """As on a read-only file system, which stops root too: nothing can be written in the folder."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").write_text("")

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "write_text", refuse)
    for begin in (
        lambda: RunFolder.open(tmp_path / "run"),
        lambda: RunFolder.create(tmp_path / "new", "x"),
    ):
        with pytest.raises(UserError, match="cannot be written: Read-only file system") as caught:
            begin()
        assert str(tmp_path) in str(caught.value)
