"""The page of a diagnosis."""

import io
import json

import pytest
from rich.console import Console

from spiketriton.gradients.diagnosis import Diagnosis, diagnose
from spiketriton.gradients.subject import Subject
from spiketriton.runs.rows import json_text
from spiketriton.show.diagnosis_page import show
from tests.small_runs import small_recipe

PAGE = 80
DEEP = ("model.name=mlp", "model.depth=8", "train.optimizer=sgd", "time_steps=5")
NARROW = "neuron.surrogate.width=0.05"


def subject(*changes: str) -> Subject:
    return Subject(small_recipe(*changes), "recipe small.toml")


@pytest.fixture(scope="module")
def narrow() -> Diagnosis:
    return diagnose(subject(*DEEP, NARROW), 2)


def page(found: Diagnosis, **options: bool) -> str:
    console = Console(file=io.StringIO(), width=PAGE, highlight=False, **options)  # type: ignore[arg-type]
    show(found, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "changes",
    [
        ("neuron.kind=if", "neuron.reset=none", "model.norm=none"),
        ("neuron.reset=soft", "neuron.detach_reset=false", "neuron.surrogate.width=auto_per_layer"),
        ("neuron.kind=plif", "model.block=sew", "model.norm=tebn", "loss.kind=tet"),
        ("model.block=ms", "model.norm=tdbn", "neuron.surrogate.width=auto", "time_steps=1"),
        ("model.name=plain", "model.depth=1", "train.accumulate=4"),
        ("neuron.surrogate.width=1e-6", "neuron.surrogate.shape=rectangle"),
    ],
)
def test_every_kind_of_recipe_gets_a_page(changes):
    found = diagnose(subject(*changes))
    text = page(found)
    assert "verdict:" in text
    assert "what to change:" in text or "nothing to change" in text
    json.loads(json_text(found.as_json()))


def test_the_page_is_plain_where_it_is_piped(narrow):
    text = page(narrow)
    assert text.startswith("recipe small.toml: gradients of 32 images\n")
    assert f"auto would choose a width of {narrow.better_width:.4g} (depth gain 1.15: SGD" in text
    assert f"width 0.05; passes {narrow.transmission:.0%} of the gradient" in text
    assert narrow.forgotten() in text
    for cause in narrow.causes():
        assert cause in text
    assert "\x1b" not in text
    assert "vanishing through depth (for sgd)" in text
    assert "layers.0.neuron" in text
    rows = [line for line in text.splitlines() if line.startswith("layers.") and "●" in line]
    assert len(rows) == 8
    assert rows[-1].count("█") > 0 == rows[0].count("█")
    assert "neuron.surrogate.width=auto" in text
    table = text[text.index("one thing changed") : text.index("gain: through depth")]
    assert "…" not in table


def test_the_page_has_colours_on_a_terminal(narrow):
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=PAGE)
    show(narrow, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[48;2;68;1;84m" in text  # the darkest of the scale
    assert "\x1b[1;34mvanishing" in text


def test_synthetic_images_are_said_to_be_so():
    found = diagnose(
        subject(
            "data.name=synthetic",
            "data.image_size=8",
            "data.train_images=20",
            "train.batch_size=32",
        )
    )
    assert found.synthetic
    assert "(synthetic images)" in page(found)
    assert found.images == 20
