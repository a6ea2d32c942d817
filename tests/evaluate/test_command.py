"""`evaluate`: its output, its files, and the mistakes that it names."""

import json
import math

import pytest

from spiketriton.evaluate.__main__ import main
from tests.small_runs import QUICK, refused, small_trainer

pytestmark = pytest.mark.usefixtures("blank_pictures")


def test_the_command_compares_runs(runs, tmp_path, capsys):
    out = tmp_path / "out"
    main([str(runs / "lif"), "--steps", "1,6", "--against", str(runs / "ann"), "--out", str(out)])
    text = capsys.readouterr().out
    assert "\nlif " in text
    assert "\nann " in text
    for name in ("accuracy", "energy", "rates", "confusion"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
    both = json.loads((out / "comparison.json").read_text())
    assert [one["kind"] for one in both] == ["spiking", "ann"]
    assert [len(one["values"]) for one in both] == [6, 1]


def test_json_and_nothing_else_and_the_run_is_left_as_it_is(runs, tmp_path, capsys):
    before = sorted((runs / "ann").rglob("*"))
    main([str(runs / "ann"), "--json", "--images", "20", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    (one,) = json.loads(text)
    assert len(text.splitlines()) < 200  # numbers of a list share a line
    assert not {"samples", "raster"} & {*one}  # what pictures are drawn of is in evaluation.json
    assert {"samples", "raster"} <= {*json.loads((tmp_path / "evaluation.json").read_text())}
    assert one["images"] == 20
    assert one["energy_uj"] == [pytest.approx(one["ann_macs"] * 4.6e-6)]
    assert math.isfinite(one["images_per_s"])
    assert sorted((runs / "ann").rglob("*")) == before


def test_mistakes_are_named(runs, tmp_path):
    lif = str(runs / "lif")
    assert "--steps: 0: accepted: integers from 1" in refused(main, [lif, "--steps", "1,0"])
    assert "--batch-size: x: accepted: " in refused(main, [lif, "--batch-size", "x"])
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(main, [lif, "--out", str(tmp_path / "file")])
    assert "does not exist" in refused(main, [str(tmp_path / "nothing")])
    assert "no recipe.toml" in refused(main, [str(tmp_path)])
    assert "change no weight" in refused(main, [lif, "time_steps=9"])
    small_trainer(tmp_path / "other", *QUICK, "data.name=synthetic", "train.max_steps=1").fit()
    assert "same data" in refused(main, [lif, "--against", str(tmp_path / "other")])
    small_trainer(tmp_path / "fewer", *QUICK, "data.test_images=40", "train.max_steps=1").fit()
    assert "--images N gives both" in refused(main, [lif, "--against", str(tmp_path / "fewer")])
