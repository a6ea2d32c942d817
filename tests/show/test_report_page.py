"""The parts of the report's page, from evaluations and a run folder."""

import json
import re

import pytest

from spiketriton.config import Recipe
from spiketriton.runs.folder import RunFolder
from spiketriton.show import report_page
from spiketriton.show.report_page import Page, _table
from spiketriton.show.screen import Table
from spiketriton.trained.results import Evaluation
from tests.show.support import ann, evaluation
from tests.small_runs import small_recipe


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    folder = RunFolder.create(tmp_path / "a run", "x")
    folder.begin_session(small_recipe(), {"command": "python -m x <y>", "time": "now", "gpu": None})
    return folder


def page(folder: RunFolder, *evaluations: Evaluation, recipe: Recipe | None = None) -> Page:
    return Page(folder, recipe or small_recipe(), [*evaluations])


def test_facts_are_those_at_t_and_of_the_last_row(folder):
    assert page(folder).facts() == '<div class="facts"></div>'
    folder.metrics.append(
        {"kind": "train", "step": int(e), "epoch": e, "seconds": s, "loss": 1.0, "lr": 0.1, "grad_norm": 2.0}
        for e, s in ((1.0, 1.0), (2.5, 90.0))
    )  # fmt: skip
    facts = page(folder, evaluation()).facts()
    for shown in (
        "<b>75.00 %</b><span>accuracy on 1,000 test images, 95 %: 65.0-85.0</span>",
        "<b>3</b><span>time steps</span>",
        "<b>4.6 µJ</b>",
        "<b>32.1 %</b><span>of the neurons spike in a step</span>",
        "<b>1,234</b><span>images/s</span>",
        "<b>2.5</b><span>epochs, 1.5 minutes</span>",
    ):
        assert shown in facts, shown
    assert "<b>32.1 %</b><span>of the neurons active</span>" in page(folder, ann()).facts()


def test_a_table_escapes_its_cells_and_marks_the_runs_own_row():
    text = _table(Table(("a<b",), [("1",), ("2&3",)], bold=[1]))
    assert "<th>a&lt;b</th>" in text
    assert '<tr><td>1</td></tr><tr class="own"><td>2&amp;3</td></tr>' in text
    assert 'class="own"' not in _table(Table(("a",), [("1",)]))


def test_commands_are_those_of_the_sessions_and_how_to_see_more(folder):
    recipe = small_recipe("data.test_images=0")
    (text,) = page(folder, evaluation(), ann(), recipe=recipe).commands()
    path = str(folder.path)
    assert text == (
        f"<pre>python -m x &lt;y&gt;\nspiketriton evaluate &#x27;{path}&#x27; --against "
        f"runs/twin\nspiketriton report &#x27;{path}&#x27; --against runs/twin</pre>"
    )
    (text,) = page(folder, evaluation(), recipe=recipe).commands()
    assert "--against" not in text
    assert "--images" not in text
    part = evaluation(available=4 * evaluation().images)
    shown = page(folder, part, recipe=recipe)
    (text,) = shown.commands()
    assert f"--images {part.images}" in text
    assert f"accuracy on {part.images:,} of {part.available:,} test images" in shown.facts()


@pytest.mark.usefixtures("blank_pictures")
def test_a_page_has_the_sections_for_which_there_is_something(folder):
    folder.metrics.append(
        {"kind": "train", "step": s, "epoch": s / 2, "seconds": 2.0, "loss": 1.0, "lr": 0.1, "grad_norm": 2.0}
        for s in (1, 2)
    )  # fmt: skip
    text = page(folder, evaluation(), ann()).html()
    heads = [part.partition("</h2>")[0] for part in text.split("<h2>")[1:]]
    assert heads == [
        "Accuracy",
        "Cost",
        "Training",
        "Activity",
        "Recipe",
        "Environment",
        "Commands",
    ]
    assert text.count('<tr class="own">') == 2  # T of each run
    assert text.count("<img") == 5
    assert "gpu" not in re.sub(
        r"base64,[^\"]*", "", text
    )  # the letters of a picture may say anything
    assert "synthetic noise" not in text
    text = page(folder, recipe=small_recipe("data.name=synthetic")).html()
    assert "synthetic noise" in text
    assert text.count("<h2>") == 4
    folder.environment.write_text(json.dumps([]))
    assert "<h2>Environment" not in page(folder).html()


def test_what_is_left_of_the_image_is_told_where_it_was_measured(folder):
    row = {"layer": "a", "index": 0, "time_step": 0, "firing_rate": 0.5, "outside_share": 0.5}
    folder.gradients.append([{"step": 9, "grad_input_rms": 1.0, **row}])
    found = [(8, [], 0.2), (9, ["time_steps=2"], 0.3), (9, [], 0.77)]
    for number, (step, changes, overlap) in enumerate(found):
        path = folder.path / f"diagnosis-{number}.json"
        path.write_text(json.dumps({"step": step, "changes": changes, "overlap": [overlap]}))
    line, sentences, _ = page(folder).gradients()
    assert "After step 9: no obstacle found" in line
    assert "forward: the forward signal at the last layer is 77 %" in sentences


def test_a_run_without_rows_says_why(folder, monkeypatch):
    state = {}
    monkeypatch.setattr(report_page, "read_state", lambda folder: (state, "last"))
    assert list(page(folder).training()) == ["<p>The run has logged nothing yet.</p>"]
    state["conversion"] = {"source": "runs/ann", "method": "qcfs"}
    assert list(page(folder).training()) == [
        "<p>Converted from runs/ann, not trained: method qcfs.</p>"
    ]


def test_gradients_and_sessions_are_shown_where_there_are_some(folder):
    assert list(page(folder).gradients()) == []
    assert list(page(folder).activity()) == []
    folder.gradients.append(
        {
            "step": 1, "layer": "a", "index": 0, "time_step": t, "grad_input_rms": 1.0,
            "firing_rate": 0.5, "outside_share": 0.5,
        }
        for t in range(2)
    )  # fmt: skip
    line, sentences, figure = page(folder).gradients()
    assert line == "<p><strong>After step 1: no obstacle found.</strong></p>"
    for way in ("<li>forward: ", "<li>backward: ", "<li>through time: "):
        assert way in sentences
    assert 'alt="gradient by layer and time step"' in figure
    assert "is measured by spiketriton diagnose" in sentences
    assert "before training" not in sentences
    (session,) = page(folder).environment()
    assert "<th>session</th><th>now</th>" in session
    assert "<td>time</td><td>now</td>" in session
    assert "gpu" not in session  # it is null
