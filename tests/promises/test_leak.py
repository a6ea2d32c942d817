"""The measurement of leaks: its verdict on made-up series, and a rehearsal."""

import json

import pytest

from profiling import run
from profiling.leak import TOLERANCE, Growth
from spiketriton.errors import UserError


def series(per_sample: float, warm_up: float = 0.0) -> list[float]:
    """200 samples in MiB, a sawtooth of 1 MiB on top."""
    return [400 + warm_up * min(i / 50, 1) + per_sample * i + i % 2 for i in range(200)]


def test_growth_is_a_leak_and_warm_up_is_none():
    assert not Growth.of(series(0.0)).leaks
    assert not Growth.of(series(0.0, warm_up=300.0)).leaks
    assert Growth.of(series(1.1 * TOLERANCE / 100)).leaks  # the quarters are 100 samples apart
    assert not Growth.of(series(0.9 * TOLERANCE / 100)).leaks
    with pytest.raises(UserError, match="7 samples of memory: accepted: 8 or more"):
        Growth.of([1.0] * 7)


@pytest.mark.parametrize(("tolerance", "code", "status"), [(1e6, 0, "ok"), (-1e6, 1, "leaks")])
def test_a_rehearsal(tmp_path, monkeypatch, capsys, tolerance, code, status):
    monkeypatch.setattr("profiling.leak.TOLERANCE", tolerance)
    words = ["data.image_size=8", "model.width=4", "time_steps=2", "data.train_images=64"]
    arguments = ["leak", *words, "--steps", "8", "--device", "cpu", "--out", str(tmp_path)]
    assert run.main(arguments) == code
    (file,) = tmp_path.glob("leak/*.jsonl")
    row = json.loads(file.read_text())
    assert row["status"] == status
    assert row["steps"] == list(range(1, 9))
    assert min(row["resident_mib"]) > 10
    assert list(tmp_path.glob("leak/*-leak-quickstart.png"))
    assert "resident memory grew by" in capsys.readouterr().out
