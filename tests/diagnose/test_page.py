"""The page of a diagnosis."""

import dataclasses
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from spiketriton.diagnose.cures import THRESHOLD, Cure, Why
from spiketriton.diagnose.diagnosis import Diagnosis, diagnose
from spiketriton.diagnose.page import (
    as_json,
    causes,
    first_rows,
    heat_map,
    opening,
    show,
)
from spiketriton.diagnose.trials import Trials
from spiketriton.diagnose.words import WHY, change, tried
from spiketriton.gradients.verdict import Learned, Word
from spiketriton.report.page import Page
from spiketriton.runs.folder import RunFolder
from spiketriton.runs.rows import json_text
from spiketriton.show.verdict import sentences
from tests.gradients.support import DEEP, subject
from tests.show.support import measurement

PAGE = 400  # no sentence breaks
LOST = ("model.name=mlp", "model.depth=24", "model.width=128", "model.start=kaiming")
NARROW = "neuron.surrogate.width=0.02"


@pytest.fixture(scope="module")
def narrow() -> Diagnosis:
    return diagnose(subject(*DEEP, NARROW), 2)


@pytest.fixture(scope="module")
def lost() -> Diagnosis:
    return diagnose(subject(*LOST))


def page(found: Diagnosis, **options: bool) -> str:
    console = Console(file=io.StringIO(), width=PAGE, highlight=False, **options)  # type: ignore[arg-type]
    show(found, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "changes",
    [
        ("neuron.kind=if", "neuron.reset=none", "model.norm=none"),
        ("neuron.kind=plif", "model.block=sew", "model.norm=tebn", "loss.kind=tet"),
        ("model.block=ms", "model.norm=tdbn", "time_steps=1"),
        ("neuron.surrogate.width=1e-6", "neuron.surrogate.shape=rectangle"),
    ],
)
def test_every_kind_of_recipe_gets_a_page(changes):
    found = diagnose(subject(*changes))
    text = page(found)
    assert "verdict:" in text
    assert text.count("conclusion: ") == 1
    free = found.verdict.word in (Word.FREE, Word.NOT_JUDGED)
    assert (" whether it learns shows in a training" in text) == free
    json.loads(json_text(as_json(found)))


def test_an_ilif_has_no_surrogate_whose_width_is_shown_or_changed():
    found = diagnose(subject(*DEEP, "neuron.kind=ilif"))
    text = page(found)
    assert "\nI-LIF passes gradients on where 0 <= membrane / threshold <= levels; neurons" in text
    assert "width" not in text
    assert "neuron.surrogate" not in text
    run = RunFolder(Path("none"))
    assert "surrogate" not in Page(run, found.subject.recipe, []).subtitle()


def test_the_page_is_plain_where_it_is_piped(narrow):
    text = page(narrow)
    assert text.startswith("recipe small.toml: gradients of 32 images\n")
    assert "width 0.02; neurons fire" in text
    for sentence in sentences(narrow.verdict):
        assert f"  {sentence}\n" in text
    assert causes(narrow) == ""
    assert "\x1b" not in text
    assert "verdict: not judged" in text
    assert "layers.0.neuron" in text
    rows = [line for line in text.splitlines() if line.startswith("layers.") and "●" in line]
    assert len(rows) == 8
    assert rows[-1].count("█") > 0 == rows[0].count("█")
    table = text[text.index("one thing changed") : text.index("gain: growth of")]
    assert "…" not in table


def test_a_lost_net_gets_the_changes_that_helped_with_their_losses():
    found = diagnose(subject(*LOST), tries=30)
    text = page(found)
    assert found.trials is not None
    helped = found.trials.helped
    assert [cure.override for cure, _ in helped] == ["model.start=identity"]
    assert "conclusion: lost forward; these changes help:\n" in text
    assert f"  {tried(found.trials)}\n" in text
    assert f"lower than both with model.start=identity ({helped[0][1]:.3g})" in text
    assert text.endswith(f"  {change(helped[0][0])}\n      {WHY[helped[0][0].why]}\n")
    shown = as_json(found)["trials"]
    assert (shown["steps"], shown["images"]) == (30, 16)
    assert shown["loss"] == found.trials.as_it_is > shown["changes"][0]["loss"]
    assert shown["changes"][0]["helped"]


def test_what_did_not_help_is_not_named_as_a_change(lost):
    assert lost.trials is None  # they were not asked for
    assert "conclusion: lost forward; no change was tried\n" in page(lost)
    rate = Cure("train.lr", 0.01, Why.RATE)
    worse = Trials(50, 32, 2.0, ((rate, 1.91), (THRESHOLD, math.inf)))
    assert worse.helped == []
    assert tried(worse) == (
        "fresh nets were trained for 50 steps of 32 images: as it is the loss is 2; not 5 % lower with train.lr=0.01 "
        "(1.91), half of every neuron's v_threshold (not finite)"
    )
    text = page(dataclasses.replace(lost, trials=worse))
    assert "conclusion: lost forward; no change that was tried helps\n" in text
    assert "\n  train.lr" not in text
    better = Trials(
        50, 32, math.inf, ((rate, 1.91),)
    )  # of a net whose loss is not finite everything else is
    assert [cure for cure, _ in better.helped] == [rate]
    guessed = Trials(50, 32, 2.9, ((rate, 2.1), (THRESHOLD, 2.3)), guess=2.303)  # back at chance
    assert [cure for cure, _ in guessed.helped] == [rate]
    assert tried(guessed).endswith(
        "as it is the loss is 2.9, of guessing 2.3; lower than both with train.lr=0.01 (2.1); not 5 % lower than both "
        "with half of every neuron's v_threshold (2.3)"
    )
    below = Trials(50, 32, -2.0, ((rate, -1.95), (THRESHOLD, -2.2)))  # of a task's loss
    assert [cure for cure, _ in below.helped] == [THRESHOLD]


def test_the_conclusion_says_what_is_not_known_yet(lost):
    row = {
        "kind": "eval",
        "step": 200,
        "test_accuracy": 0.13,
        "test_images": 9999,
        "test_loss": 9.0,
    }
    row |= {"test_chance": 0.1, "test_chance_spread": 0.003}
    open_ = Learned.of(lost.subject.recipe.loss, (5, 5), None, row)
    for learned, said in (
        (None, "known after the warm-up, and not before step 100"),
        (
            open_,
            "test accuracy 13.00 % on 9,999 images, guessing has 10.00 %; this does not tell yet",
        ),
    ):
        verdict = dataclasses.replace(lost.verdict, begun=True, learned=learned)
        text = " ".join(page(dataclasses.replace(lost, verdict=verdict)).split())
        assert f"conclusion: too early to tell: {said}" in text


@pytest.mark.parametrize("width", [60, 120])
def test_the_page_fits_the_screen(narrow, width):
    console = Console(file=io.StringIO(), width=width)
    show(narrow, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    assert sum(line.startswith("layers.") for line in text.splitlines()) == 8
    for ablation in narrow.ablations:  # a change is told from the others in each part of the table
        assert ablation.override in text


@pytest.mark.parametrize(
    ("options", "blocks"),
    [
        ({"color_system": "truecolor"}, False),
        ({"color_system": "256"}, False),
        ({"color_system": "standard"}, True),
        ({"color_system": "truecolor", "no_color": True}, True),  # NO_COLOR
        ({"color_system": None}, True),  # TERM=dumb, a pipe
    ],
)
def test_a_heat_map_is_read_by_colours_or_by_heights(options, blocks):
    console = Console(file=io.StringIO(), force_terminal=True, width=PAGE, **options)
    heat_map(measurement(np.array([[1e-3, 1e4]])), console)
    row = console.file.getvalue().splitlines()[1]  # type: ignore[attr-defined]
    assert ("▁▁██" in row) == blocks
    assert ("\x1b[48;" in row) == (not blocks)


def mapped(grads: np.ndarray) -> list[str]:
    console = Console(file=io.StringIO(), width=PAGE)
    heat_map(measurement(grads), console)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_a_heat_map_by_hand():
    """From 1e-3 to 1e4 by 7 decades, a block for each: eight heights, the lowest not empty."""
    grads = np.array([[1e-3, 1e-2, 0, np.inf], [1e4, 1e3, 1e-3, 1e-3]])
    head, *rows, profile, scale = mapped(grads)
    assert head.endswith("the input is at the top, time runs to the right")
    assert rows[0].startswith("layer 0       ▁▁▂▂··!!  ")
    assert rows[1].startswith("layer 1       ██▇▇▁▁▁▁  ")
    assert rows[1].endswith(f"  5.0e+03 {'─' * 19}●")  # 10 to the 3.7: 6.7 of 7 decades, of 20
    assert rows[0].endswith(" inf ●")
    assert profile.startswith("time profile  ")
    assert scale == "scale         ▁▁▂▂▃▃▄▄▅▅▆▆▇▇██ from 1.0e-03 to 1.0e+04"


def test_a_tall_heat_map_is_thinned_and_without_any_gradient_there_is_none():
    assert mapped(np.zeros((2, 2))) == ["no gradient arrives at any layer"]
    for layers, shown in ((40, range(40)), (41, range(0, 41, 2)), (90, range(0, 90, 3))):
        lines = mapped(np.ones((layers, 1)))
        rows = [line.split()[1] for line in lines if line.startswith("layer")]
        assert rows == [*map(str, shown)]
        assert (f"; 1 layer in {shown.step}" in " ".join(lines)) == (shown.step > 1)


@pytest.mark.usefixtures("verdicts_alone")
@pytest.mark.parametrize("block", ["ms", "plain"])
def test_blocks_that_start_closed_are_opened_to_be_measured_and_the_page_says_so(block):
    changes = ("model.name=resnet8", f"model.block={block}", "model.residual_gain=0")
    found = diagnose(subject(*changes))
    assert found.opened
    as_it_is, opened = first_rows(found)
    assert (as_it_is.measured, opened.measured) == (found.as_it_is, found.measured)
    assert not (found.as_it_is.depth_profile > 0).all()
    assert "\nbranches opened " in page(found)
    assert opening(found) in page(found)
    assert as_json(found)["opened"]
    assert (found.measured.depth_profile > 0).all()  # though no gradient enters a block at 0
    usual = diagnose(subject(*changes[:2], "model.residual_gain=1"))
    assert not usual.opened
    assert len(first_rows(usual)) == 1
    assert usual.as_it_is is usual.measured
    assert "opened" not in page(usual)
