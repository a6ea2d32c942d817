"""What a run says at its start and at its end."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spiketriton.config import load_recipe
from spiketriton.config.names import LEAKY
from spiketriton.data import build_data
from spiketriton.data.splits import ArraySplit
from spiketriton.models import build_model
from spiketriton.runs.checkpoint import Checkpoints
from spiketriton.runs.folder import RunFolder
from spiketriton.training import announcements
from spiketriton.training.announcements import Announcements
from spiketriton.training.plan import Plan, Progress
from spiketriton_kernels.backends import native
from tests.show.support import outcome
from tests.small_runs import SMALL, Lines, small_recipe

RUN = RunFolder(Path("runs/x"))


def summary(path: Path, **changes) -> str:
    display = Lines()
    pictures = [path / "curves.png", path / "gradients.png"]
    Announcements(display, small_recipe(), RunFolder(path)).summary(outcome(**changes), pictures)
    return display.text


def test_the_summary_has_what_was_measured_and_whole_paths():
    path = Path("runs") / ("long-" * 40)
    text = summary(path)
    for words in (
        *(f" {path}\n", "  curves.png, gradients.png, in the run folder\n"),
        *("100 of 100", "90.00 %", "95.00 % (after epoch 2)", "3.33 min", "321 images/s"),
        *("512 MiB", "0.123 spikes"),
    ):
        assert words in text, words
    never = Progress(step=3, seconds=1.0)
    text = summary(path, images_per_s=None, firing_rate=None, progress=never)
    assert "3 of 100" in text
    assert "accuracy" not in text


@pytest.mark.parametrize(("saved", "words"), [(None, "nothing yet"), (40, "step 40")])
@pytest.mark.parametrize(
    ("changes", "tail"),
    [([], ""), (["plugins.modules=json"], " --trust-plugins")],  # consent to somebody's code
    ids=["own", "plugins"],
)
def test_the_resume_command_stands_alone_on_its_line(saved, words, changes, tail, tmp_path):
    """What is saved is read from the disk."""
    folder, display = RunFolder(tmp_path / "my run"), Lines()
    folder.checkpoints.mkdir(parents=True)
    folder.recipe.touch()
    if saved is not None:
        Checkpoints(folder.checkpoints, pytest.fail).save_last({"step": saved})
    stopped = outcome(step=41, saved_at=None)
    Announcements(display, small_recipe(*changes), folder).what_next(stopped, [])
    assert display.text.splitlines() == [
        f"stopped at step 41; saved: {words}. To continue:",
        f"  spiketriton train --resume '{folder.path}'{tail}",
    ]


def test_of_a_folder_that_is_gone_nothing_is_continued(tmp_path):
    display = Lines()
    Announcements(display, small_recipe(), RunFolder(tmp_path / "run")).to_continue("interrupted")
    assert (
        display.text
        == f"interrupted; {tmp_path}/run is gone, and what was saved there: nothing can be continued\n"
    )


def offered(given: list[str], folder: RunFolder = RUN, **changes) -> list[str]:
    """The commands that follow a training of the recipe with overrides; each has a reason."""
    display = Lines()
    recipe = small_recipe(*given[1:])
    Announcements(display, recipe, folder).what_next(outcome(**changes), given)
    head, *lines = display.text.splitlines()
    assert head == "what to try next:"
    assert all(line.startswith("      ") for line in lines[1::2])
    return [command.strip() for command in lines[::2]]


@pytest.fixture
def file(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(SMALL)
    return "small.toml"


BEST_IS_LAST = Progress(step=100, best_score=0.9, best_step=100, tested_at=100)
TWIN, SNN = (f"spiketriton train {{}} neuron.kind={kind}" for kind in ("relu", "lif"))
DIAGNOSE = "spiketriton diagnose runs/x"
REPORT = "spiketriton report runs/x"


def accepted(given: list[str], commands: list[str]) -> bool:
    """Whether each recipe that is offered can be read, and is another one."""
    words = [command.split()[2:] for command in commands if " train " in command]
    return all(load_recipe(own[0], own[1:]) != small_recipe(*given[1:]) for own in words)


@pytest.mark.parametrize(
    ("given", "commands"),
    [
        (["quickstart"], [TWIN, DIAGNOSE, "cp runs/x/recipe.toml my_recipe.toml"]),
        # whoever trains a recipe of their own needs no copy, which might overwrite it
        (["small.toml"], [TWIN, DIAGNOSE, REPORT]),
        (["small.toml", "neuron.kind=relu"], [SNN, "spiketriton convert runs/x", REPORT]),
    ],
)
def test_after_a_run_its_twin_and_what_takes_the_run_are_offered(given, commands, file):
    found = offered(given)
    assert found == [command.format(given[0]) for command in commands]
    assert accepted(given, found)


@pytest.mark.parametrize(("kind", "twin"), [("ilif", "ilif"), ("relu", "lif")])
def test_the_spiking_twin_has_the_neurons_of_the_recipes_file(file, kind, twin):
    Path(file).write_text(f'{SMALL}[neuron]\nkind = "{kind}"\n')
    assert offered([file, "neuron.kind=relu"])[0] == f"spiketriton train {file} neuron.kind={twin}"


@pytest.mark.parametrize(
    ("given", "longer"),
    [
        ([], "train.epochs=6"),
        (["train.epochs=5"], "train.epochs=10"),  # once, not twice
        (["train.max_steps=10"], "train.max_steps=20"),  # epochs have no effect beside it
        (["neuron.kind=if"], "neuron.kind=if train.epochs=6"),
    ],
)
def test_longer_is_offered_where_the_last_weights_are_the_best(file, given, longer):
    found = offered([file, *given], progress=BEST_IS_LAST)
    assert found[1] == f"spiketriton train {file} {longer}"
    assert accepted([file, *given], found)


@pytest.mark.parametrize("measured", [True, False])
def test_a_diagnosis_is_offered_only_where_something_can_be_measured(tmp_path, measured):
    """As with a network that calls its neurons step by step."""
    folder = RunFolder(tmp_path)
    folder.metrics.append([{"step": 1}])
    if measured:
        folder.gradients.append([{"step": 1}])
    found = offered(["small.toml"], folder)
    assert any("spiketriton diagnose" in command for command in found) == measured


def test_the_parts_of_a_run_and_what_its_data_lack():
    recipe, display = small_recipe(), Lines()
    data = build_data(recipe)
    data = replace(
        data,
        skipped=("a.png (class a): empty", "b.png (class b): cut"),
        facts=replace(data.facts, class_counts=(5, 0, 3, 0, *[1] * 6)),
    )
    model = build_model(recipe, **data.facts.sizes)
    Announcements(display, recipe, RUN).training(data, model, Plan.of(recipe, data))
    shown, left_out, skipped, network, threads, neurons, *rest = display.text.splitlines()
    assert shown == "data: digits, 120 training and 50 test images of 1x8x8, 10 classes"
    assert left_out == (
        "an epoch leaves out 8 training images, others each time: it has whole batches of 16"
    )
    assert skipped == (
        "left out: image files that cannot be read, a.png (class a): empty and 1 more"
    )
    assert network.startswith("network: resnet8, ")
    assert network.endswith(" parameters, 7 spiking layers over 3 time steps")
    assert (threads, neurons[:9]) == ("threads: 1", "neurons: ")
    assert rest == ["plan: 21 steps of 16 images, 7 steps an epoch", ""]
    assert display.warnings == [
        "no training images of 1, 3: the network cannot learn what they look like"
    ]
    display = Lines()
    split = data.test.dataset.split
    split = ArraySplit(split.images, split.labels.masked_fill(split.labels == 4, 5))
    dataset = replace(data.test.dataset, split=split)
    data = replace(data, test=replace(data.test, dataset=dataset))
    Announcements(display, recipe, RUN).training(data, model, Plan.of(recipe, data))
    assert display.warnings[1:] == [
        "no test images of 4: tests say nothing of how well they are told apart"
    ]


def test_slow_neurons_are_said_with_the_cause(monkeypatch):
    why = native.CompilerError(
        "the compiled CPU kernels do not load: x.so: Operation not permitted"
    )
    monkeypatch.setattr(native, "failure", lambda dtype: why)
    monkeypatch.setattr(announcements, "backend_for", lambda x: "torch")
    assert announcements._backend(torch.device("cpu")) == (
        f"eager PyTorch, which is slow: no GPU, and {why}"
    )


@pytest.mark.parametrize(
    ("kind", "decay_input"), [*((kind, False) for kind in LEAKY), ("lif", True), ("plif", True)]
)
def test_what_has_no_effect_in_one_time_step_is_said(kind, decay_input):
    """And has none: the answers are the same for any tau; and where it is not said they are others."""
    given = [f"neuron.kind={kind}", "time_steps=1", "model.name=mlp", "model.norm=none"]
    given += ["model.depth=1", "model.width=32"]
    given += ["neuron.decay_input=true"] * decay_input
    recipe, display = small_recipe(*given), Lines()
    data = build_data(recipe)
    images = 3 * torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    answers = []
    for tau in (2.0, 50.0):
        torch.manual_seed(0)
        model = build_model(small_recipe(*given, f"neuron.tau={tau}"), **data.facts.sizes)
        answers.append(model(images))
    assert len(answers[0].unique()) > 10  # not silent
    Announcements(display, recipe, RUN).training(data, model, Plan.of(recipe, data))
    (said,) = (line for line in display.text.splitlines() if line.startswith("one time step: "))
    assert ("neuron.tau has no effect" in said) == torch.equal(*answers)
    assert ("quantised to whole numbers from 0 to 4" in said) == (kind == "ilif")
    assert "spiking layers over 1 time step\n" in display.text
