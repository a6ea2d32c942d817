"""`predict`: the classes of image files, as in Python."""

import json

import pytest
import torch
from PIL import Image

import spiketriton
from spiketriton.predict import main
from spiketriton.system.errors import UserError


def test_it_says_what_python_says(runs, tmp_path, capsys):
    paths = [str(tmp_path / name) for name in ("grey.png", "noise.png")]
    Image.new("L", (20, 20), 128).save(paths[0])
    Image.effect_noise((12, 9), 200).save(paths[1])
    expected = spiketriton.load_run(runs / "lif").predict(paths)
    main([str(runs / "lif"), *paths, "--top", "2", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["image"] for row in rows] == paths
    for row, probabilities in zip(rows, expected, strict=True):
        best, order = probabilities.topk(2)
        assert list(row["classes"]) == [str(int(index)) for index in order]
        assert torch.allclose(torch.tensor(list(row["classes"].values())), best, atol=1e-6)
    main([str(runs / "lif"), paths[0]])
    said = capsys.readouterr().out
    assert said.startswith(f"{paths[0]}: ")
    assert said.count(" %") == 3


def test_folders_are_answered_and_a_broken_file_hides_no_answer(runs, tmp_path, capsys):
    """Whatever batch it is in."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    names = ["in/a.png", "in/broken.jpg", "in/deep/b.JPG", "in/deep/c.gif"]
    for name in names:
        Image.effect_noise((12, 9), 200).save(tmp_path / name)
    (tmp_path / names[1]).write_bytes(b"no image")
    (tmp_path / "in" / "notes.txt").write_text("none of its business")
    good = [str(tmp_path / name) for name in names if "broken" not in name]
    expected = spiketriton.load_run(runs / "lif").predict(good)
    with pytest.raises(UserError, match="1 of 4 files have no answer; each is named above"):
        main([str(runs / "lif"), str(tmp_path / "in"), "--json"])
    said = capsys.readouterr()
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [row["image"] for row in rows] == good
    for row, probabilities in zip(rows, expected, strict=True):
        first = next(iter(row["classes"].values()))
        assert first == pytest.approx(float(probabilities.max()), abs=1e-6)
    assert "broken.jpg" in said.err
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no image file; accepted: files, or folders"):
        main([str(runs / "lif"), str(tmp_path / "empty")])


def test_mistakes_are_named(runs, tmp_path):
    with pytest.raises(UserError, match="--top: 0: accepted: integers from 1"):
        main([str(runs / "lif"), "a.png", "--top", "0"])
    with pytest.raises(UserError, match=r"missing\.png"):
        main([str(runs / "lif"), str(tmp_path / "missing.png")])
