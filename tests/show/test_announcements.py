"""What a run says at its start and at its end."""

import io
from pathlib import Path

import pytest
import torch

from spiketriton.config import replace, to_toml
from spiketriton.data import build_data
from spiketriton.models import build_model
from spiketriton.show.announcements import announce_parts, announce_run, summary, what_next
from spiketriton.show.display import Display
from spiketriton.training.plan import Plan, Progress
from spiketriton.training.ranks import Ranks
from tests.show.support import outcome
from tests.small_runs import small_recipe


def test_the_summary_keeps_long_paths_whole():
    stream = io.StringIO()
    path = Path("runs") / ("long-" * 40)
    summary(Display(stream), outcome(), path, [path / "curves.png", path / "gradients.png"])
    text = stream.getvalue()
    for words in (
        f" {path} ",
        f" {path}/curves.png ",
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
    summary(Display(stream), early, Path("x"), [])
    assert "3 of 100" in stream.getvalue()
    assert "accuracy" not in stream.getvalue()


def test_after_an_interruption_the_resume_command_stands_alone_on_its_line():
    stream = io.StringIO()
    what_next(Display(stream), outcome(step=40), Path("my runs/x"), small_recipe(), [])
    lines = stream.getvalue().splitlines()
    assert lines == [
        "stopped at step 40; saved: step 40. To continue:",
        "  python -m spiketriton.train --resume 'my runs/x'",
    ]


def test_what_next_offers_commands_that_change_the_recipe():
    for kind, other in (("lif", "relu"), ("relu", "lif")):
        stream = io.StringIO()
        recipe = small_recipe(f"neuron.kind={kind}")
        given = ["a.toml", f"neuron.kind={kind}"]
        what_next(Display(stream), outcome(), Path("x"), recipe, given)
        commands = [line for line in stream.getvalue().splitlines() if line.startswith("  python")]
        assert len(commands) == 3
        start = f"  python -m spiketriton.train a.toml neuron.kind={kind} "
        for command in commands:
            override = command.removeprefix(start).split("    # ")[0]
            assert replace(recipe, override) != recipe
        assert f"neuron.kind={other}" in commands[0]


def announced(*overrides: str, ranks: Ranks | None = None) -> list[str]:
    recipe = small_recipe(*overrides)
    data = build_data(recipe)
    model = build_model(recipe, classes=10, channels=data.channels, image_size=data.image_size)
    display = Display(io.StringIO())
    announce_parts(display, recipe, data, model, Plan.of(recipe, data), ranks)
    return display.stream.getvalue().splitlines()


def test_the_parts_of_a_run():
    lines = announced()
    assert lines[0] == ("data: digits, 120 training and 50 test images of 1x8x8, 10 classes")
    assert lines[1].startswith("network: resnet8, ")
    assert lines[1].endswith(" parameters, 7 spiking layers over 3 time steps")
    assert lines[2] == f"threads: {torch.get_num_threads()}"
    assert lines[3].startswith("neurons: ")
    assert lines[4:] == ["plan: 21 steps of 16 images, 7 steps an epoch", ""]


def test_an_ann_has_no_neurons_and_synthetic_images_are_named():
    lines = announced("neuron.kind=relu", "data.name=synthetic", "train.accumulate=2")
    assert lines[0].startswith("data: synthetic (synthetic images), ")
    assert lines[1].endswith(" parameters, an ANN")
    assert not [line for line in lines if line.startswith("neurons")]
    assert lines[-2].startswith("plan: 21 steps of 16 images in 2 parts, ")


@pytest.mark.parametrize(
    ("sync", "norms"), [("true", "all ranks together"), ("false", "each rank by itself")]
)
def test_ranks_are_named_with_their_norms(sync, norms, monkeypatch):
    monkeypatch.setattr(Ranks, "in_words", lambda self: "2 ranks, by gloo")
    lines = announced(f"train.sync_bn={sync}", ranks=Ranks())
    assert f"ranks: 2 ranks, by gloo; batch norm's statistics are those of {norms}" in lines


def test_what_is_about_to_run_where_and_why():
    display = Display(io.StringIO())
    announce_run(display, small_recipe("train.device=cpu"), Path("runs/x"))
    text = display.stream.getvalue()
    for words in (
        "spiketriton ",
        "recipe small, resolved:\n\n",
        to_toml(small_recipe("train.device=cpu")),
        "device: cpu, ",
        "precision: fp32, as the recipe says\n",
        "cost: there is no GPU in this run",
        "run folder: runs/x\n",
    ):
        assert words in text, words


def test_the_changes_that_are_offered_one_by_one():
    display = Display(io.StringIO())
    recipe = small_recipe("seed=3", "train.epochs=5")
    what_next(display, outcome(), Path("x"), recipe, ["a.toml"], ["torchrun", "--n=2"])
    start = "  torchrun --n=2 -m spiketriton.train a.toml"
    assert display.stream.getvalue().splitlines() == [
        "what to try next:",
        f"{start} neuron.kind=relu    # its ANN twin (the same network, no time)",
        f"{start} train.epochs=10    # twice as long",
        f"{start} seed=4    # another seed, to see the spread",
    ]


def test_what_was_not_saved_is_named():
    display = Display(io.StringIO())
    what_next(display, outcome(saved_at=None, step=3), Path("x"), small_recipe(), [])
    assert display.stream.getvalue().startswith("stopped at step 3; saved: no checkpoint. To cont")


def test_the_summary_is_as_wide_as_its_content_and_has_no_head():
    display = Display(io.StringIO())
    summary(display, outcome(), Path("x"), [Path("a"), Path("b")])
    lines = display.stream.getvalue().splitlines()
    assert len(lines) == 2 + 11  # rows in a frame
    assert lines[1].split() == ["│", "steps", "│", "100", "of", "100", "│"]
    assert [line.split()[1] for line in lines[-3:-1]] == ["pictures", "│"]
    assert len({len(line) for line in lines}) == 1
