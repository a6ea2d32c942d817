"""The registered chains, and what is said of them."""

import pytest

from spiketriton.gradients.verdict import LIMITS, Word
from studies.untrained import run


def test_the_register_is_what_the_seed_draws():
    assert run.draw() == run.read(run.REGISTER)
    assert [row["id"] for row in run.read(run.ROWS)] == [
        row["id"] for row in run.read(run.REGISTER)[: len(run.read(run.ROWS))]
    ]


@pytest.mark.parametrize("path", run.PAGES, ids=lambda path: path.parent.name)
def test_the_pages_are_those_of_the_rows(path):
    text = path.read_text("utf-8")
    assert run.page(text) == text


def test_a_limit_has_the_counts_of_the_nets_that_did_not_choose_it():
    lost = [
        (number, float(row["accuracy"]) >= run.FAILS)
        for number, row in enumerate(run.read(run.ROWS))
        if run.said(row) == Word.LOST and row["arrives"] == "True"
    ]
    new = [learnt for number, learnt in lost if number >= run.SEEN]
    assert (LIMITS.others.learnt, LIMITS.others.trainings) == (sum(new), len(new))
    asleep = [not failed for _, word, failed in run.nets() if word == Word.ASLEEP]
    assert (LIMITS.asleep.learnt, LIMITS.asleep.trainings) == (sum(asleep), len(asleep))


def test_a_row_is_what_its_settings_say():
    row = {"id": "x", "half": "1"}
    row["settings"] = "model.name=mlp model.depth=3 model.width=8 neuron.kind=psn time_steps=2"
    found = run.answer(row)
    assert len(found["kept"].split()) == len(found["gradient"].split()) == 3
    assert run.said(found) == Word.NOT_JUDGED
    assert 0 <= float(found["accuracy"]) <= 1
