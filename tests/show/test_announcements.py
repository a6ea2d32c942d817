"""What a run says at its start and at its end."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spiketriton.config import Recipe, load_recipe
from spiketriton.data import build_data
from spiketriton.models import build_model
from spiketriton.runs.checkpoint import Checkpoints
from spiketriton.runs.folder import RunFolder
from spiketriton.show.announcements import Announcements
from spiketriton.show.display import Display
from spiketriton.training.plan import Plan, Progress
from spiketriton.training.ranks import Ranks
from tests.show.support import outcome
from tests.small_runs import SMALL, Lines, small_recipe


def test_the_summary_keeps_long_paths_whole():
    stream = io.StringIO()
    path = Path("runs") / ("long-" * 40)
    drawn = [path / "curves.png", path / "gradients.png"]
    Announcements(Display(stream), small_recipe(), RunFolder(path)).summary(outcome(), drawn)
    text = stream.getvalue()
    for words in (
        f" {path}\n",
        "  curves.png, gradients.png, in the run folder\n",
        "100 of 100",
        "90.00 %",
        "95.00 % (after epoch 2)",
        "3.33 min",
        "321 images/s",
        "512 MiB",
        "0.123 spikes",
    ):
        assert words in text, words


def test_the_summary_of_a_run_that_was_never_tested():
    stream = io.StringIO()
    early = outcome(images_per_s=None, firing_rate=None, progress=Progress(step=3, seconds=1.0))
    Announcements(Display(stream), small_recipe(), RunFolder(Path("x"))).summary(early, [])
    assert "3 of 100" in stream.getvalue()
    assert "accuracy" not in stream.getvalue()


def test_after_an_interruption_the_resume_command_stands_alone_on_its_line(tmp_path):
    """What is saved is read from the disk."""
    folder = RunFolder(tmp_path / "my run")
    folder.checkpoints.mkdir(parents=True)
    recipe, tail = small_recipe(), ""
    for saved, words in ((None, "nothing yet"), (40, "step 40"), (40, "step 40")):
        stream = io.StringIO()
        if saved is not None:
            Checkpoints(folder.checkpoints, pytest.fail).save_last({"step": saved})
        stopped = outcome(step=41, saved_at=None)
        Announcements(Display(stream), recipe, folder).what_next(stopped, [])
        lines = stream.getvalue().splitlines()
        assert lines == [
            f"stopped at step 41; saved: {words}. To continue:",
            f"  spiketriton train --resume '{folder.path}'{tail}",
        ]
        if saved:  # what was trained with code of somebody else's asks for consent to it
            recipe, tail = small_recipe("plugins.modules=json"), " --trust-plugins"


def offered(
    recipe: Recipe, arguments: list[str], launcher: tuple[str, ...] = (), **changes
) -> dict[str, str]:
    """Commands and their reasons."""
    display = Display(io.StringIO())
    ranks = Ranks()
    ranks.launcher = launcher
    folder = RunFolder(Path("runs/x"))
    Announcements(display, recipe, folder, ranks).what_next(outcome(**changes), arguments)
    head, *lines = display.stream.getvalue().splitlines()
    assert head == "what to try next:"
    assert all(line.startswith("  ") and line[2] != " " for line in lines[::2])
    return {
        command.strip(): why.strip() for command, why in zip(lines[::2], lines[1::2], strict=True)
    }


@pytest.fixture
def file(tmp_path) -> str:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return str(path)


BEST_IS_LAST = Progress(step=100, best_accuracy=0.9, best_step=100, tested_at=100)


def test_after_a_first_run_its_twin_then_diagnose_then_a_recipe_of_ones_own(file, monkeypatch):
    monkeypatch.chdir(Path(file).parent)
    copy = "cp runs/x/recipe.toml my_recipe.toml"
    # whoever trains a recipe of their own needs no copy, which might overwrite it
    for given, last in (("quickstart", copy), (file, "spiketriton report runs/x")):
        assert list(offered(small_recipe(), [given])) == [
            f"spiketriton train {given} neuron.kind=relu",
            "spiketriton diagnose runs/x",
            last,
        ]


def test_an_ann_is_offered_its_spiking_twin_and_its_conversion(file):
    found = offered(small_recipe("neuron.kind=relu"), [file, "neuron.kind=relu"])
    assert list(found)[:2] == [
        f"spiketriton train {file} neuron.kind=lif",
        "spiketriton convert runs/x",
    ]


@pytest.mark.parametrize(
    ("given", "longer"),
    [
        ([], "train.epochs=6"),
        (["train.epochs=5"], "train.epochs=10"),  # once, not twice
        (["train.max_steps=10"], "train.max_steps=20"),  # epochs have no effect beside it
    ],
)
def test_longer_is_offered_where_the_last_weights_are_the_best(file, given, longer):
    found = list(offered(small_recipe(*given), [file, *given], progress=BEST_IS_LAST))
    assert found[1] == f"spiketriton train {file} {longer}"


def test_every_offered_recipe_is_accepted_and_differs(file):
    for given in (
        [],
        ["neuron.tau=3"],
        ["neuron.kind=if", "train.epochs=9"],
        ["train.max_steps=4"],
    ):
        recipe = small_recipe(*given)
        commands = offered(recipe, [file, *given], progress=BEST_IS_LAST)
        trained = [c.split()[2:] for c in commands if "spiketriton train" in c]
        assert len(trained) == 2
        for path, *overrides in trained:
            assert load_recipe(path, overrides) != recipe
            keys = [text.partition("=")[0] for text in overrides]
            assert len(set(keys)) == len(keys)


def announced(
    *overrides: str, ranks: Ranks | None = None, skipped: tuple[str, ...] = ()
) -> list[str]:
    recipe = small_recipe(*overrides)
    data = replace(build_data(recipe), skipped=skipped)
    model = build_model(recipe, classes=10, channels=data.channels, image_size=data.image_size)
    display = Display(io.StringIO())
    folder = RunFolder(Path("runs/x"))
    Announcements(display, recipe, folder, ranks or Ranks()).training(
        data, model, Plan.of(recipe, data)
    )
    return display.stream.getvalue().splitlines()


def test_the_parts_of_a_run():
    lines = announced()
    assert lines[0] == ("data: digits, 120 training and 50 test images of 1x8x8, 10 classes")
    assert lines[1].startswith("network: resnet8, ")
    assert lines[1].endswith(" parameters, 7 spiking layers over 3 time steps")
    assert lines[2] == f"threads: {torch.get_num_threads()}"
    assert lines[3].startswith("neurons: ")
    assert lines[4:] == ["plan: 21 steps of 16 images, 7 steps an epoch", ""]


def test_image_files_that_were_left_out_are_named():
    line = announced(skipped=("a.png (class a): empty", "b.png (class b): cut"))[1]
    assert line == "left out: image files that cannot be read, a.png (class a): empty and 1 more"


def test_classes_without_a_training_image_are_warned_of():
    recipe, display = small_recipe(), Lines()
    data = build_data(recipe)
    data = replace(data, facts=replace(data.facts, class_counts=(5, 0, 3, 0, *[1] * 6)))
    Announcements(display, recipe, RunFolder(Path("runs/x"))).training(
        data, build_model(recipe, **data.facts.sizes), Plan.of(recipe, data)
    )
    assert display.warnings == [
        "no training images of 1, 3: the network cannot learn what they look like"
    ]


@pytest.mark.parametrize("measured", [True, False])
def test_a_diagnosis_is_offered_only_where_something_can_be_measured(tmp_path, measured):
    """As with a network that calls its neurons step by step."""
    folder, display = RunFolder(tmp_path), Display(io.StringIO())
    folder.metrics.append([{"step": 1}])
    if measured:
        folder.gradients.append([{"step": 1}])
    Announcements(display, small_recipe(), folder).what_next(outcome(), ["small.toml"])
    assert ("spiketriton diagnose" in display.stream.getvalue()) == measured
