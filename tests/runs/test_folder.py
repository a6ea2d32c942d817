"""The folder of a run: made, found, held, and not left behind."""

import errno
import json
import re
from pathlib import Path

import pytest

from spiketriton.config import load_recipe, replace, to_toml
from spiketriton.runs.folder import Onlooker, RunFolder
from spiketriton.runs.request import Request
from spiketriton.runs.rows import METRICS
from spiketriton.system import locks
from spiketriton.system.errors import UserError
from tests.small_runs import small_recipe


def begun(path: Path, *overrides: str) -> RunFolder:
    folder = RunFolder.create(path, "small")
    folder.begin_session(small_recipe(*overrides), {"commit": "1a2b"})
    return folder


def test_a_run_is_found_and_what_is_none_is_named(tmp_path):
    folder = begun(tmp_path / "run")
    for find in (RunFolder.find, RunFolder.open):
        assert find(str(folder.path)).path == folder.path
        (tmp_path / "file").write_text("")
        for name, why in (
            ("nothing", "does not exist"),
            ("file", "is not a folder"),
            ("", r"holds no run \(no recipe\.toml\)"),
        ):
            with pytest.raises(UserError, match=f"{why}; accepted: the folder of an earlier run"):
                find(tmp_path / name)


def test_sessions_are_added_and_the_first_fixes_the_recipe(tmp_path):
    folder = begun(tmp_path / "run")
    folder.begin_session(small_recipe("seed=4"), {"commit": "5"})
    sessions = json.loads(folder.environment.read_text())
    assert sessions == [{"recipe": "small", "commit": c} for c in ("1a2b", "5")]
    assert folder.load_recipe() == small_recipe()
    folder.environment.write_text("[")
    with pytest.raises(UserError, match=r"is damaged: .*; remove it to continue"):
        folder.load_recipe()
    folder.environment.unlink()
    assert folder.load_recipe().name == "run"


def test_a_damaged_recipe_is_named(tmp_path):
    folder = begun(tmp_path / "run")
    folder.recipe.write_bytes(b"seed = 0\xff")
    with pytest.raises(UserError, match=r"recipe\.toml is damaged: not UTF-8 at byte 8"):
        folder.load_recipe()
    folder.recipe.write_text("sed = 0")
    for version, words in (
        ("0.1.0", "; train.init_from=.*/run begins a new run with its weights"),
        ("9.0.1", ": install the newer one"),
    ):
        folder.environment.write_text(json.dumps([{"spiketriton": version, "commit": "1a2b3c"}]))
        said = rf"recipe\.toml: .*sed.*with spiketriton {version}, commit 1a2b3c, and this is [\d.]+{words}$"
        with pytest.raises(UserError, match=said):
            folder.load_recipe()


def test_a_run_keeps_what_only_new_recipes_are_refused(tmp_path):
    """A key that has no effect any longer."""
    folder, text = RunFolder(tmp_path), to_toml(small_recipe("train.device=cpu"))
    folder.recipe.write_text(text.replace("[loss]", "[loss]\ntet_lambda = 0.5"))
    replace(folder.load_recipe(), "train.epochs=9")
    with pytest.raises(UserError, match="no effect"):
        load_recipe(folder.recipe, ["train.epochs=9"])


def test_a_folder_with_a_run_is_not_taken_again(tmp_path, monkeypatch):
    begun(tmp_path / "a run")
    with pytest.raises(UserError, match=r"continue it with --resume '/.*/a run', or give another"):
        RunFolder.create(tmp_path / "a run", "small")
    for held in ("metrics.jsonl", "checkpoints/last.pt"):
        path = tmp_path / held.replace("/", "-") / held
        path.parent.mkdir(parents=True)
        path.write_text("")
        with pytest.raises(UserError, match="holds a part of a run without its recipe"):
            RunFolder.create(tmp_path / held.replace("/", "-"), "small")
    killed = tmp_path / "killed" / "checkpoints" / "last.pt.part"  # in the first save
    killed.parent.mkdir(parents=True)
    killed.write_text("")
    assert RunFolder.create(tmp_path / "killed", "small").path == tmp_path / "killed"
    monkeypatch.chdir(tmp_path)
    assert re.fullmatch(r"runs/x-\d{8}-\d{6}", str(RunFolder.create(None, "x").path))
    monkeypatch.setattr("time.strftime", lambda form: "now")
    made = [RunFolder.create(None, "x").path for _ in range(3)]
    assert made == [Path(f"runs/x-now{end}") for end in ("", "-2", "-3")]


def test_a_run_begins_in_no_folder_where_it_would_change_files_of_somebody_else(tmp_path):
    for name in ("curves.png", "console.log"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(UserError, match=f"{name} exists, and a run there would change it"):
            RunFolder.create(tmp_path, "small")
        (tmp_path / name).unlink()


@pytest.mark.parametrize("users", [False, True])
def test_a_folder_that_was_never_used_goes(tmp_path, users):
    folder = RunFolder.create(tmp_path / "run", "small")
    folder.write_micro_batch(4)
    assert folder.micro_batch.read_text() == '{"micro_batch": 4}\n'
    with folder.held():
        assert (folder.path / ".lock").exists()
    if users:
        (folder.path / "notes.txt").write_text("")
    folder.discard_if_unused()
    left = [path.name for path in folder.path.iterdir()] if folder.path.exists() else None
    assert left == (["notes.txt"] if users else None)
    used = begun(tmp_path / "used")
    used.discard_if_unused()
    assert used.recipe.exists()
    assert used.checkpoints.exists()


def test_rows_behind_a_checkpoint_are_cut(tmp_path):
    folder = begun(tmp_path / "run")
    kinds = [("train", 4), ("eval", 5), ("train", 6), ("eval", 6), ("train", 7)]
    numbers = {key: 1.0 for kind in METRICS.values() for key in kind if key != "step"}
    folder.metrics.append([{**numbers, "kind": kind, "step": step} for kind, step in kinds])
    place = {"layer": "a", "index": 0, "time_step": 0}
    folder.gradients.append([{**place, "step": step} for step in (5, 6, 7)])
    folder.cut(6, tested_at=5)
    left = [(row["kind"], row["step"]) for row in folder.metrics.read()]
    assert left == [("train", 4), ("eval", 5), ("train", 6)]
    assert [row["step"] for row in folder.gradients.read()] == [5, 6]


def test_other_ranks_write_nothing(tmp_path):
    other = Onlooker(tmp_path / "run")
    other.cut(1, 1)
    other.begin_session(small_recipe(), {})
    other.write_micro_batch(3)
    other.write_network("report")
    other.metrics.append([{"step": 1}])
    other.gradients.append([{"step": 1}])
    with other.held():
        other.discard_if_unused()
    assert not other.path.exists()


def test_the_recipe_of_a_new_run_and_of_a_resumed_one(tmp_path):
    file = tmp_path / "small.toml"
    file.write_text(to_toml(small_recipe()))
    given, folder = Request(str(file), ["seed=3"], str(tmp_path / "run")).find_run()
    assert given == small_recipe("seed=3")
    folder.begin_session(given, {})
    for recipe, overrides in ((None, []), (str(file), ["seed=3"]), (None, ["data.workers=2"])):
        again, found = Request(recipe, overrides, resume=str(folder.path)).find_run()
        assert found.path == folder.path
        assert again.seed == 3
        assert again.data.workers == (2 if "data.workers=2" in overrides else 0)
    for recipe, overrides in ((str(file), []), (None, ["seed=4"])):
        with pytest.raises(UserError, match=r"seed = \d \(the run: 3\)"):
            Request(recipe, overrides, resume=str(folder.path)).find_run()


def test_a_folder_in_use_is_refused_where_the_file_system_has_locks(tmp_path, monkeypatch):
    folder = RunFolder.create(tmp_path / "deep" / "run", "x")

    def lock(code: int):
        def refuse(file: object, how: int) -> None:
            assert how == locks.fcntl.LOCK_EX | locks.fcntl.LOCK_NB
            raise OSError(code, "")

        monkeypatch.setattr(locks.fcntl, "lockf", refuse)

    for code in (errno.EACCES, errno.EAGAIN):
        lock(code)
        with pytest.raises(UserError, match="is in use by another process"), folder.held():
            pass
    lock(errno.ENOLCK)
    with folder.held():
        pass
