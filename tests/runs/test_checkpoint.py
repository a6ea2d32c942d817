"""Checkpoints: whole or not at all, verified, and free of code."""

import hashlib
import io
import resource
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from spiketriton.runs.checkpoint import Checkpoints, DamagedCheckpoint, read_checkpoint
from spiketriton.system.errors import UserError
from tests.small_runs import assert_equal


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def checkpoints(tmp_path, warnings) -> Checkpoints:
    return Checkpoints(tmp_path, warn=warnings.append)


def state(step: int) -> dict:
    return {"step": step, "weights": torch.full((100,), float(step)), "name": "x", "none": None}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_flipped_bit_anywhere_is_found(checkpoints, tmp_path, share):
    checkpoints.save_last(state(1))
    path = tmp_path / "last.pt"
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match=r"last\.pt is damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize("kept", [0, 1, 100, -1, -71, -72])
def test_a_file_cut_short_is_found(checkpoints, tmp_path, kept):
    checkpoints.save_last(state(1))
    path = tmp_path / "last.pt"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DamagedCheckpoint, match="cut short"):
        read_checkpoint(path)


def test_the_newest_whole_checkpoint_replaces_a_damaged_one(tmp_path, warnings):
    checkpoints = Checkpoints(tmp_path, warn=warnings.append)
    for step in (10, 20, 30):
        checkpoints.save_last(state(step))
        if step == 10:
            checkpoints.save_best(state(step))
    (tmp_path / "last.pt").write_bytes(b"not a checkpoint")
    assert checkpoints.load()["step"] == 20
    assert str(tmp_path / "last.pt") in warnings[0]
    assert "last.1.pt of step 20 is used instead" in warnings[1]
    checkpoints.save_best(state(25))
    assert checkpoints.load()["step"] == 25, "the best may be newer than the one before the last"
    checkpoints.save_best(state(10))

    (tmp_path / "last.1.pt").write_bytes(b"")
    warnings.clear()
    assert checkpoints.load()["step"] == 10
    assert [w.split("/")[-1].split(" ")[0] for w in warnings] == ["last.pt", "last.1.pt", "best.pt"]
    (tmp_path / "best.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"are damaged: last\.pt, last\.1\.pt, best\.pt; start"):
        checkpoints.load()


def test_the_last_two_are_kept_and_no_more(tmp_path):
    checkpoints = Checkpoints(tmp_path, warn=pytest.fail)
    for step in range(1, 7):
        checkpoints.save_last(state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.1.pt", "last.pt"]
    assert [read_checkpoint(tmp_path / name)["step"] for name in ("last.pt", "last.1.pt")] == [6, 5]


def with_checksum(archive: bytes) -> bytes:
    archive = archive[:-2] + (71).to_bytes(2, "little")
    return archive + b"sha256:" + hashlib.sha256(archive).hexdigest().encode()


def test_plain_data_that_is_no_training_state_is_refused(tmp_path):
    buffer = io.BytesIO()
    torch.save([1, 2], buffer)
    (tmp_path / "last.pt").write_bytes(with_checksum(buffer.getvalue()))
    with pytest.raises(DamagedCheckpoint, match="not a checkpoint of a training run"):
        read_checkpoint(tmp_path / "last.pt")


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """As on a full disk, writes beyond `size` bytes fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_earlier_checkpoints_as_they_are(tmp_path, warnings):
    checkpoints = Checkpoints(tmp_path, warn=warnings.append)
    checkpoints.save_last(state(1))
    checkpoints.save_last(state(2))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with files_no_larger_than(1000):
        assert not checkpoints.save_last(state(3))
        assert not checkpoints.save_best(state(3))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert "last.pt of step 3 could not be written: File too large" in warnings[0]
    assert "best.pt of step 3 could not be written" in warnings[1]
    assert checkpoints.save_best(state(3))
    assert warnings[2:] == [
        f"{tmp_path / 'best.pt'} of step 3 is written now, at the second attempt"
    ]
    assert checkpoints.save_last(state(4))
    assert checkpoints.load()["step"] == 4


def test_a_step_that_is_saved_again_replaces_itself_also_in_a_resumed_run(tmp_path):
    """As after a test, when the run was killed between the two: the step before it is kept."""
    first = Checkpoints(tmp_path, warn=pytest.fail)
    for step in (18, 21):
        first.save_last(state(step))
    resumed = Checkpoints(tmp_path, warn=pytest.fail)
    assert resumed.load()["step"] == 21
    resumed.save_last(state(21))
    steps = [read_checkpoint(tmp_path / name)["step"] for name in ("last.pt", "last.1.pt")]
    assert steps == [21, 18]


def test_other_files_are_not_read(tmp_path, warnings):
    checkpoints = Checkpoints(tmp_path, warnings.append)
    for step, name in ((1, "last.1.pt"), (99, "last.old.pt")):
        assert checkpoints.save_as(tmp_path / name, state(step))
    assert checkpoints.load()["step"] == 1
    assert checkpoints.loaded == tmp_path / "last.1.pt"


def test_the_format_by_hand(checkpoints, tmp_path):
    """A zip archive whose comment, of 71 bytes, is the SHA-256 of all bytes before it."""
    checkpoints.save_last(state(1))
    content = (tmp_path / "last.pt").read_bytes()
    digest = hashlib.sha256(content[:-71]).hexdigest()
    assert content[-73:] == (71).to_bytes(2, "little") + b"sha256:" + digest.encode()
    archive = zipfile.ZipFile(tmp_path / "last.pt")
    assert (archive.comment, archive.testzip()) == (content[-71:], None)
    assert_equal(torch.load(tmp_path / "last.pt", weights_only=True), state(1))  # torch alone
