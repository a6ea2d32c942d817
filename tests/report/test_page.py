"""The parts of the report's page, from evaluations and a run folder."""

import pytest

from spiketriton.config import Recipe
from spiketriton.evaluate.results import Evaluation
from spiketriton.report import page as report_page
from spiketriton.report.page import Page
from spiketriton.runs.folder import RunFolder
from spiketriton.system.errors import UserError
from tests.show.support import ann, evaluation
from tests.small_runs import small_recipe

ROW = {"layer": "a", "index": 0, "grad_input_rms": 1.0, "firing_rate": 0.5, "outside_share": 0.5}


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    folder = RunFolder.create(tmp_path / "a run", "x")
    folder.begin_session(small_recipe(), {"command": "python -m x <y>", "time": "now", "gpu": None})
    return folder


def trained(folder: RunFolder) -> None:
    numbers = {"kind": "train", "loss": 1.0, "lr": 0.1, "grad_norm": 2.0}
    folder.metrics.append(
        {"step": int(epoch), "epoch": epoch, "seconds": seconds, **numbers}
        for epoch, seconds in ((1.0, 1.0), (2.5, 90.0))
    )


def page(folder: RunFolder, *evaluations: Evaluation, recipe: Recipe | None = None) -> Page:
    return Page(folder, recipe or small_recipe(), [*evaluations])


def test_facts_are_those_at_t_and_of_the_last_row(folder):
    assert page(folder).facts() == '<div class="facts"></div>'
    trained(folder)
    facts = page(folder, evaluation()).facts()
    for shown in (
        "<b>75.00 %</b><span>accuracy on 1,000 test images, 95 %: 65.0-85.0</span>",
        "<b>3</b><span>time steps, read: mean over time</span>",
        "<b>4.6 µJ</b>",
        "<b>32.1 %</b><span>of the neurons spike in a step</span>",
        "<b>1,234</b><span>images/s</span>",
        "<b>2.5</b><span>epochs, 1.5 minutes</span>",
    ):
        assert shown in facts, shown
    assert "<b>32.1 %</b><span>of the neurons active</span>" in page(folder, ann()).facts()


def test_commands_are_those_of_the_sessions_and_how_to_see_more(folder):
    recipe = small_recipe("data.test_images=0")
    (text,) = page(folder, evaluation(), ann(), recipe=recipe).commands()
    path = str(folder.path)
    assert text == (
        f"<pre>python -m x &lt;y&gt;\nspiketriton evaluate &#x27;{path}&#x27; --against "
        f"runs/twin\nspiketriton report &#x27;{path}&#x27; --against runs/twin</pre>"
    )
    part = evaluation(available=4 * evaluation().images)
    shown = page(folder, part, recipe=recipe)
    (text,) = shown.commands()
    assert f"--images {part.images}\n" in text
    assert f"accuracy on {part.images:,} of {part.available:,} test images" in shown.facts()


@pytest.mark.usefixtures("blank_pictures")
def test_synthetic_images_and_the_row_at_t_are_marked(folder):
    (table, *_) = page(folder, evaluation()).cost()
    rows = table.split("<tr")[2:]
    assert [row.startswith(' class="own"') for row in rows] == [False, False, True, False]
    trained(folder)
    text = page(folder, recipe=small_recipe("data.name=synthetic")).html()
    assert "synthetic noise" in text
    assert "<td>time</td><td>now</td>" in text
    assert "gpu" not in text  # it is null
    folder.environment.write_text("[]")
    text = page(folder).html()
    assert "synthetic noise" not in text
    assert "<h2>Environment" not in text


def test_the_worst_class_comes_first_and_one_without_images_last():
    one = evaluation(classes=["cat", "dog", "owl"], confusion=[[30, 10, 0], [0, 0, 0], [1, 0, 1]])
    rows = [("owl", "2", "50.0 %"), ("cat", "40", "75.0 %"), ("dog", "0", "-")]
    assert list(report_page._class_rows(one)) == rows


def test_a_run_without_rows_says_why(folder, monkeypatch):
    state = {}
    monkeypatch.setattr(report_page, "read_state", lambda folder: (state, "last"))
    assert list(page(folder).training()) == ["<p>The run has logged nothing yet.</p>"]
    state["conversion"] = {"source": "runs/ann", "method": "balanced"}
    assert list(page(folder).training()) == [
        "<p>Converted from runs/ann, not trained: method balanced.</p>"
    ]


def test_the_verdict_is_that_of_what_the_training_measured_last(folder):
    assert list(page(folder).gradients()) == []
    shares = {"credit": 0.5, "direct": 0.0, "remembered": 0.5}
    measured = [{"step": 9, "time_step": t, **ROW, **shares} for t in range(2)]
    folder.gradients.append(measured)
    (figure,) = page(folder).gradients()  # without a verdict, where nothing was judged
    assert 'alt="gradient by layer and time step"' in figure
    trained(folder)
    for step, overlap in ((0, 0.2), (9, 0.77)):
        kept = {
            "overlap": [overlap],
            "arrives": True,
            "chain": True,
            "memory": "",
            "apart": [],
            "weights": {"w": 1e-9},
        }
        folder.judged.append([{"step": step, "rows": measured, **kept}])
    recipe = small_recipe("train.optimizer=adamw")
    line, sentences, again = page(folder, recipe=recipe).gradients()
    assert again == figure
    assert line == "<p><strong>After step 9: too early to tell.</strong></p>"
    for way in ("forward: 77 % at the last layer", "backward: ", "through time: ", "weights: the"):
        assert f"<li>{way}" in sentences
    step, _, signal = report_page._judged(folder)
    assert (step, signal.arrives, signal.chain) == (9, True, True)


@pytest.mark.parametrize(
    "damage",
    [{"overlap": [1.0, 1.0]}, {"rows": []}, {"rows": [3]}, {"rows": [ROW]}, {"weights": {"w": "x"}}, {"arrives": 1}],
    ids=lambda damage: str(damage)[:20],
)  # fmt: skip
def test_a_damaged_measurement_is_named(folder, damage):
    row = {"step": 9, "rows": [{"time_step": 0, **ROW}], "overlap": [1.0], "weights": {}}
    folder.judged.append([row | {"arrives": True, "chain": False, "memory": ""} | damage])
    with pytest.raises(UserError, match=r"judged\.jsonl is damaged: "):
        list(page(folder).gradients())
