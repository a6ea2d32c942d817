"""`spiketriton train`: what a user types, sees and finds."""

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spiketriton.config import load_recipe
from spiketriton.runs import checkpoint
from spiketriton.runs.folder import RunFolder
from spiketriton.system.errors import EXIT_DONE, EXIT_ERROR, EXIT_USER, UserError
from spiketriton.train import main
from spiketriton.training import environment
from tests import small_runs
from tests.small_runs import QUICK, small_trainer


def refused(*arguments: str) -> str:
    return small_runs.refused(main, list(arguments))


def test_a_run_from_the_command(recipe, capsys):
    assert main([recipe, "train.epochs=2", "seed=3", "--run-dir", "run"]) == EXIT_DONE
    shown = capsys.readouterr()
    assert shown.err == ""
    for words in (
        f"spiketriton {environment.version.__version__}",
        f"torch {torch.__version__}",
        "recipe small: seed=3 time_steps=3 data.name=digits ",
        "(all keys: recipe.toml in the run folder)",
        "device: cpu",
        "this run uses the CPU",
        "precision: fp32, as the recipe says",
        "run folder: run",
        "120 training and 50 test images of 1x8x8, 10 classes",
        "7 spiking layers over 3 time steps",
        "plan: 14 steps of 16 images, 7 steps an epoch",
        "test accuracy  ",
        "curves.png, gradients.png, firing.png, in the run folder",
        "spiketriton train small.toml train.epochs=2 seed=3 neuron.kind=relu",
    ):
        assert words in shown.out, words
    assert "\x1b" not in shown.out

    run = Path("run")
    assert load_recipe(run / "recipe.toml").train.epochs == 2
    assert {path.name for path in run.iterdir()} == {
        "recipe.toml", "environment.json", "metrics.jsonl", "gradients.jsonl", "judged.jsonl", "checkpoints", ".lock",
        "console.log",
        "curves.png", "gradients.png", "firing.png",
    }  # fmt: skip
    log = [line[9:] for line in (run / "console.log").read_text().splitlines()]  # without the time
    assert [line for line in log if line] == [
        line.rstrip() for line in shown.out.splitlines() if line
    ]
    kept = {"last.pt", "last.1.pt"}
    assert {path.name for path in (run / "checkpoints").iterdir()} == kept
    (session,) = json.loads((run / "environment.json").read_text())
    assert session["torch"] == torch.__version__
    assert session["device"] == "cpu"
    assert session["threads"] == 1


def test_the_command_itself(quick):
    """One process from start to end, with a mistake: one line, and the exit code for it."""
    words = [sys.executable, "-m", "spiketriton.train", quick, "train.lr=fast"]
    process = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert (process.returncode, process.stdout) == (EXIT_USER, "")
    assert process.stderr.startswith("error: train.lr")
    assert process.stderr.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no RECIPE was given"),
        (["small.toml", "--res", "run"], "unrecognized arguments"),
        (["small.toml", "--out", "run"], "did you mean --run-dir?"),
        (["--resume", "."], "holds no run"),
        (["--resume", "run", "--run-dir", "other"], "--run-dir contradicts --resume"),
        (["small.toml", "--run-dir", "small.toml/x"], "small.toml/x cannot be written"),
        (["small.toml", "data.name=imagefolder", "data.root=nowhere"], "nowhere"),
        (["small.toml", "train.init_from=x", "data.name=imagefolder"], "init_from: x does not"),
        (["small.toml", "train.batch_size=999"], "train.batch_size = 999"),
        (["small.toml", "train.freeze=all"], '"all" names no parameter'),
        (["small.toml", "train.device=cuda"], 'train.device = "cuda", but PyTorch'),
    ],
)
def test_mistakes_are_refused_in_one_line_and_leave_nothing(quick, arguments, words, capsys):
    before = sorted(Path().rglob("*"))
    assert words in refused(*arguments)
    assert capsys.readouterr().out == ""
    left = [path for path in Path().rglob("*") if path not in before and path.name != "runs"]
    assert left == []


def test_what_no_memory_holds_is_refused_before_the_first_step(quick, monkeypatch):
    def build(*_: object, **__: object) -> None:
        raise RuntimeError("can't allocate memory: you tried to allocate 4194304 bytes")

    monkeypatch.setattr("spiketriton.training.trainer.build_model", build)
    said = refused(quick, "--run-dir", "run")
    assert "out of memory before the first step: 4.0 MiB more" in said
    assert not Path("run").exists()


FULL = OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_from_the_start(quick, monkeypatch):
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> None:
        write(path, content[:9])
        raise FULL

    monkeypatch.setattr(Path, "write_bytes", full)
    message = refused(quick, "--run-dir", "run")
    assert message == "run/environment.json cannot be written: No space left on device"
    assert not Path("run").exists()


def test_a_disk_that_is_full_at_the_end(quick, monkeypatch, capsys):
    """No pictures, which costs nothing; no last checkpoint, without which the run is not done."""

    def full(*_: object) -> None:
        raise FULL

    def no_room(path: Path, content: object) -> None:
        raise UserError(f"{path} cannot be written: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("spiketriton.show.figures.replace_file", no_room)
        assert main([quick, "--run-dir", "drawn", "train.max_steps=8"]) == EXIT_DONE
    assert "warning: not all pictures are drawn: drawn/" in capsys.readouterr().err

    monkeypatch.setattr("spiketriton.training.session.draw_run", lambda *_: [])
    with monkeypatch.context() as patch:
        patch.setattr("spiketriton.runs.checkpoint._write_part", full)
        assert main([quick, "--run-dir", "run", "train.max_steps=8"]) == EXIT_ERROR
    shown = capsys.readouterr()
    assert "stopped at step 8; saved: its rows, but no checkpoint. To train it again:" in shown.out
    assert "spiketriton train run/recipe.toml --run-dir run-2" in shown.out
    assert shown.err.count("of step 8 could not be written") == 1
    assert "There is no earlier checkpoint" in shown.err
    assert "has rows up to step 8 but no checkpoint" in refused("--resume", "run")


def test_what_was_saved_before_the_disk_was_full_is_said_and_resumed(quick, monkeypatch, capsys):
    write = checkpoint._write_part
    left = iter([True])

    def full(path: Path, state: dict) -> Path:
        if next(left, False):
            return write(path, state)
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr("spiketriton.training.session.draw_run", lambda *_: [])
        patch.setattr("spiketriton.runs.checkpoint._write_part", full)
        assert main([quick, "--run-dir", "run", "train.max_steps=8"]) == EXIT_ERROR
        shown = capsys.readouterr()
        assert "stopped at step 8; saved: step 7. To continue:" in shown.out
        assert "Earlier checkpoints are intact" in shown.err
    assert main(["--resume", "run"]) == EXIT_DONE


@pytest.mark.usefixtures("no_pictures")
def test_a_finished_run_without_its_checkpoints_is_not_trained_over(quick, tmp_path):
    small_trainer(tmp_path / "run", *QUICK).fit()
    shutil.rmtree("run/checkpoints")
    before = Path("run/metrics.jsonl").read_bytes()
    said = refused("--resume", "run")
    assert "has rows up to step 21 but no checkpoint (removed, or never written" in said
    assert "spiketriton train run/recipe.toml --run-dir run-2" in said
    assert Path("run/metrics.jsonl").read_bytes() == before


@pytest.mark.usefixtures("no_pictures")
def test_a_second_ctrl_c_says_what_is_saved(quick, monkeypatch, capsys):
    """Also one that comes while the pictures are drawn."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("spiketriton.training.session.draw_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main([quick, "--run-dir", "run", "train.max_steps=8"])
    shown = capsys.readouterr().out
    assert "interrupted; saved: step 8. To continue:\n  spiketriton train --resume run" in shown


@pytest.mark.usefixtures("no_pictures")
def test_quiet_and_json(quick, capsys):
    assert main([quick, "--run-dir", "quiet", "train.max_steps=1", "--quiet"]) == EXIT_DONE
    assert capsys.readouterr() == ("", "")
    assert "what to try next:" in Path("quiet/console.log").read_text()
    assert main([quick, "--run-dir", "json", "train.max_steps=1", "--json"]) == EXIT_DONE
    said = json.loads(capsys.readouterr().out)
    (test,) = [row for row in RunFolder.find("json").metrics.read() if row["kind"] == "eval"]
    assert said["test_accuracy"] == pytest.approx(test["test_accuracy"], rel=1e-6)
    wanted = {"run": "json", "finished": True, "exit_code": 0, "step": 1, "steps": 1, "saved_at": 1}
    assert wanted.items() <= said.items()


@pytest.mark.usefixtures("no_pictures")
def test_a_killed_run_whose_checkpoint_is_missing_resumes_from_the_start(quick, tmp_path, capsys):
    small_trainer(tmp_path / "run", *QUICK)
    (tmp_path / "run" / "checkpoints").rmdir()
    assert main(["--resume", "run"]) == EXIT_DONE
    assert "no checkpoint had been written yet" in capsys.readouterr().out


def test_the_twin_and_synthetic_images(recipe, capsys):
    twin = ["neuron.kind=relu", "data.name=synthetic", "train.max_steps=2", "--run-dir", "run"]
    assert main([recipe, *twin]) == EXIT_DONE
    shown = capsys.readouterr().out
    assert "an ANN" in shown
    assert "(synthetic images)" in shown
    assert not Path("run/gradients.png").exists()
    assert "neuron.kind=lif" in shown
