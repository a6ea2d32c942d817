"""--out of every command that has one: nothing overwrites another's file silently."""

from pathlib import Path

import pytest

from spiketriton.config import to_toml
from spiketriton.diagnose.__main__ import unused
from spiketriton.evaluate import __main__ as evaluate
from spiketriton.evaluate.pictures import PICTURES
from spiketriton.export import __main__ as export
from spiketriton.report import __main__ as report
from spiketriton.sweep import __main__ as sweep
from spiketriton.system.errors import UserError
from tests.small_runs import QUICK, small_recipe, small_trainer

pytestmark = pytest.mark.usefixtures("blank_pictures")
FOREIGN = "is not what this command wrote about this run earlier"


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[str, str]:
    """Two runs, one step each."""
    root = tmp_path_factory.mktemp("two")
    for name in "ab":
        small_trainer(root / name, *QUICK, "train.max_steps=1", "data.test_images=8").fit()
    return str(root / "a"), str(root / "b")


def written(command, run: str, out: Path) -> None:
    calls = {
        "evaluate": lambda: evaluate.main([run, "--json", "--out", str(out)]),
        "report": lambda: report.main([run, "--no-evaluation", "--out", str(out)]),
        "nir": lambda: export.main([run, "--to", "nir", "--images", "1", "--out", str(out)]),
        "safetensors": lambda: export.main([run, "--to", "safetensors", "--out", str(out)]),
    }
    calls[command]()


@pytest.mark.parametrize("command", ["evaluate", "report", "nir", "safetensors"])
def test_a_file_of_another_run_or_of_the_user_stays(command, two, tmp_path):
    if command == "nir":
        pytest.importorskip("nir", reason="the extra nir is not installed")
    first, second = two
    out = tmp_path / "out"
    written(command, first, out)
    written(command, first, out)  # its own is replaced
    files = {p: p.read_bytes() for p in (out.iterdir() if out.is_dir() else [out])}
    with pytest.raises(UserError, match=FOREIGN):
        written(command, second, out)
    assert all(path.read_bytes() == content for path, content in files.items())
    users = tmp_path / "users"
    target = users / "confusion.png" if command == "evaluate" else users
    target.parent.mkdir(exist_ok=True)
    target.write_text("mine")
    with pytest.raises(UserError, match=FOREIGN):
        written(command, first, users)
    assert target.read_text() == "mine"


def test_the_commands_own_places_are_replaced(two, capsys):
    for _ in range(2):
        evaluate.main([two[1], "--json"])
        report.main([two[1], "--no-evaluation"])
        report.main([two[1], "--no-evaluation", "--out", f"{two[1]}/report.html"])
    written = {path.name for path in (Path(two[1]) / "evaluation").iterdir()}
    assert written <= {"evaluation.json", *PICTURES}


def test_results_of_another_sweep_stay(tmp_path, capsys):
    recipe = tmp_path / "small.toml"
    fast = ("train.max_steps=1", "model.name=mlp", "model.depth=1", "model.width=4")
    recipe.write_text(to_toml(small_recipe(*fast)), "utf-8")
    arguments = [str(recipe), "--out", str(tmp_path / "out")]
    sweep.main([*arguments, "neuron.tau=2,3"])
    sweep.main([*arguments, "neuron.tau=2,3,4"])  # includes the first
    before = (tmp_path / "out" / "results.json").read_bytes()
    for axes in (["neuron.tau=2,4"], ["neuron.surrogate.width=1,2"], []):
        with pytest.raises(UserError, match=r"has results of neuron.tau=\d, which is not in this"):
            sweep.main([*arguments, *axes])
    assert (tmp_path / "out" / "results.json").read_bytes() == before


def test_files_of_somebody_else_are_no_results_of_a_sweep(tmp_path):
    words = ["quickstart", "seed=0,1", "train.max_steps=1", "--out", str(tmp_path)]
    for name, content, said in (
        ("results.json", '{"mine": 1}', "is damaged"),
        ("norms.png", "mine", FOREIGN),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=said):
            sweep.main(words)
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, content)]
        (tmp_path / name).unlink()


def test_a_diagnosis_takes_a_name_that_is_free(tmp_path):
    assert unused(tmp_path, "a").name == "diagnosis.json"
    (tmp_path / "diagnosis.png").write_text("the user's")
    assert unused(tmp_path, "a").name == "diagnosis-2.json"
    (tmp_path / "diagnosis-2.json").write_text("a")
    (tmp_path / "diagnosis-2.png").write_text("its picture")
    assert unused(tmp_path, "a").name == "diagnosis-2.json"
    assert unused(tmp_path, "b").name == "diagnosis-3.json"
