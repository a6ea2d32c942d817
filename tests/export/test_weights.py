"""Weights as safetensors: what is written makes a run with the same answers, and other files are refused."""

import json
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch
from PIL import Image

import spiketriton
from spiketriton.evaluate.evaluation import evaluate
from spiketriton.export import __main__ as export
from spiketriton.export.weights import export_safetensors
from spiketriton.system.commandline import home_of
from spiketriton.system.errors import UserError
from spiketriton.training import trained as loading
from spiketriton.training.trained import load_run
from spiketriton.training.weights import make_run
from tests.small_runs import small_trainer

safetensors = pytest.importorskip("safetensors.torch")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "run"
    small_trainer(path, "train.max_steps=2", "neuron.kind=plif").fit()
    return path


def test_a_file_makes_a_run_with_the_same_answers(trained, tmp_path, capsys):
    file = tmp_path / "net.safetensors"
    assert export.main([str(trained), "--to", "safetensors", "--out", str(file)]) == 0
    assert "step 2\nread back: they differ by 0" in capsys.readouterr().out
    make_run(file, tmp_path / "new")
    run, again = (spiketriton.load_run(path) for path in (trained, tmp_path / "new"))
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(run.predict(images), again.predict(images))
    assert (again.step, again.recipe, again.facts) == (run.step, run.recipe, run.facts)
    with pytest.raises(UserError, match="already holds a run"):
        make_run(file, tmp_path / "new")


def altered(run: Path, file: Path, **changes: str | None) -> None:
    """Writes the file of a run with other metadata; None: without that key."""
    export_safetensors(load_run(run), file)
    with safetensors.safe_open(file, "pt") as opened:
        said = opened.metadata() | changes
    said = {key: value for key, value in said.items() if value is not None}
    safetensors.save_file(safetensors.load_file(file), file, said)


def test_a_recipe_that_names_code_needs_consent(trained, tmp_path):
    file, recipe = tmp_path / "net.safetensors", load_run(trained).recipe.to_toml()
    strange = recipe.replace('name = "resnet8"', 'name = "stranger.nets:make"')
    altered(trained, file, recipe=strange)
    with pytest.raises(UserError, match="names code that would run now"):
        make_run(file, tmp_path / "new")
    assert not (tmp_path / "new" / "recipe.toml").exists()


RELEASED = Path(__file__).parents[2] / "examples" / "weights"
FEW = 250  # test images of the larger nets
ROW = re.compile(r"^\| `(\w+)` \|.*\| ([\d.]+) \| [\d,]+ \|$", re.M)
TABLE = dict(ROW.findall((RELEASED / "README.md").read_text("utf-8")))


def test_every_released_file_has_a_row_of_its_own():
    assert {path.stem for path in RELEASED.glob("*.safetensors")} == TABLE.keys()


@pytest.mark.parametrize("name", TABLE)
def test_released_weights_reach_what_their_table_says(name, tmp_path, request):
    if name == "digits_dvs" and not request.config.getoption("--slow"):
        pytest.skip("its recordings are simulated in 20 s; needs --slow")
    folder = make_run(RELEASED / f"{name}.safetensors", tmp_path / "run").path
    few = name not in ("quickstart", "digits_dvs")
    moved = ["data.download=false"] if few else [f"data.root={tmp_path}"]
    run = load_run(folder, *moved, test_images=FEW if few else 0)
    try:
        found = evaluate(run).accuracy[-1]
    except UserError as error:
        pytest.skip(f"no data: {error}")
    said = float(TABLE[name]) / 100
    # of a subset four standard errors; of all 360 two images, which another machine may round otherwise
    assert abs(found - said) < (4 * (said * (1 - said) / FEW) ** 0.5 if few else 0.006)


def test_a_file_is_loaded_in_one_line_and_unpacked_once(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "cache_folder", lambda: tmp_path)
    first, again = (spiketriton.load_run(RELEASED / "quickstart.safetensors") for _ in range(2))
    assert first.path == again.path
    assert tmp_path in first.path.parents
    assert first.predict(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(UserError, match=r"none\.safetensors cannot be read: No such file"):
        spiketriton.load_run("none.safetensors")


@pytest.mark.usefixtures("blank_pictures")
def test_a_file_is_taken_wherever_a_run_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = str(RELEASED / "quickstart.safetensors")
    few = ["--images", "40"]
    assert import_module(home_of("evaluate")).main([file, *few]) is None
    (made,) = (tmp_path / "runs").iterdir()
    assert made.name.startswith("quickstart-")
    assert json.loads((made / "evaluation/evaluation.json").read_text())["images"] == 40
    import_module(home_of("report")).main([file, "--no-evaluation"])
    import_module(home_of("export")).main([file, "--to", "safetensors"])
    assert {"report.html", "quickstart.safetensors"} <= {path.name for path in made.iterdir()}
    Image.new("L", (8, 8)).save("zero.png")
    capsys.readouterr()
    import_module(home_of("predict")).main([file, "zero.png"])
    assert capsys.readouterr().out.startswith("zero.png: ")
    assert [*(tmp_path / "runs").iterdir()] == [made]
    with pytest.raises(
        UserError, match=r"none\.safetensors does not exist; accepted: a run folder, or a file"
    ):
        import_module(home_of("evaluate")).main(["none.safetensors"])
