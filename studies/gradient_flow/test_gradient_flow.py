"""docs/gradient_flow.md and its log say what the rows say, and a row says what trained it."""

import csv
import re
from pathlib import Path

import pytest
import torch

from spiketriton.config import load_recipe
from spiketriton.gradients.verdict import LIMITS
from studies.gradient_flow import run, tables

HERE = Path(__file__).parent
ROWS = tables.Rows()
PAGE = HERE.parents[1] / "docs" / "gradient_flow.md"


def changed(settings, validation):
    """The rows, one of them with another accuracy."""
    rows = tables.Rows()
    key = tables.key(settings)
    rows.by_key[key] = rows.by_key[key] | {"validation": validation}
    return rows


@pytest.mark.parametrize("path", tables.PAGES, ids=lambda path: path.stem)
def test_the_tables_are_those_of_the_rows(path):
    text, found = path.read_text("utf-8"), tables.tables(ROWS)
    assert tables.page(text, found) == text
    named = re.findall(r"<!-- (\w+): begin -->", text)
    assert named
    assert set(named) <= set(found)
    other = tables.tables(changed("data.image_size=16 model.name=resnet56 train.lr=6e-3", "0.1"))
    assert tables.page(text, other) != text


def test_every_table_stands_on_a_page():
    pages = "".join(path.read_text("utf-8") for path in tables.PAGES)
    assert all(f"<!-- {name}: begin -->" in pages for name in tables.tables(ROWS))


def test_the_numbers_of_the_sentences_are_those_of_the_rows():
    text = "\n".join(path.read_text("utf-8") for path in tables.PAGES)
    assert tables.missing(text, ROWS) == []
    seed = "data.image_size=16 model.name=resnet56 model.block=ms train.lr=6e-3 seed=2"
    assert tables.missing(text, changed(seed, "0.9"))


def test_the_page_names_the_keys_that_are_clear_of_zero():
    clear = [row[0] for row in tables.worth(ROWS) if row[4] and float(row[4]) > 0]
    assert clear == [
        "plain blocks: start, bias and shortcut's gradient together",
        "plain blocks: straight-through shortcut",
        "the same with `neuron.decay_input` or a threshold of 2",
        "MS blocks: from zero instead of 1",
        "no shortcuts: from the identity",
        "SGD, no shortcuts: limit of 1",
        "SGD at 0.3, plain blocks: limit of 1",
        "width 0.3 instead of a wider one",
    ]


def test_a_pair_differs_in_its_change_alone():
    rows = tables.Rows()
    rows.by_key = {
        tables.key(settings): {"validation": validation}
        for settings, validation in (
            ("model.block=ms", "0.5"),
            ("model.block=ms model.residual_gain=1", "0.4"),
            ("model.block=ms model.residual_gain=1 seed=1", "0.9"),  # has no partner
            ("model.block=ms neuron.kind=ilif model.residual_gain=1", "0.9"),
            ("model.block=sew", "0.3"),
            ("model.block=sew model.residual_gain=1", ""),  # not finite: at chance
            ("train.optimizer=sgd train.lr=0.3", "0.2"),
            ("train.optimizer=sgd train.lr=0.3 train.clip_grad_norm=1", "0.6"),
            ("train.optimizer=sgd train.lr=0.3 model.block=ms", "0.3"),
            ("train.optimizer=sgd train.lr=0.3 model.block=ms train.clip_grad_norm=1", "0.2"),
            ("train.optimizer=sgd train.lr=0.1", "0.2"),  # not the default rate
            ("train.optimizer=sgd train.lr=0.1 train.clip_grad_norm=1", "0.9"),
            ("neuron.decay_input=true", "0.4"),
            ("neuron.decay_input=true model.residual_bias=0", "0.1"),
            ("train.lr=0.01", "0.5"),
            ("train.lr=0.01 train.clip_grad_norm=1", "0.9"),  # under AdamW none is the default
        )
    }
    found = [
        tables.pairs(rows, nets, ("model.residual_gain=1",)) for nets in ("ms", "sew", "plain")
    ]
    assert found == [
        [pytest.approx(10)],
        [pytest.approx(-20)],
        [],
    ]  # of SEW blocks 1 is the default
    limit = ("train.clip_grad_norm=1",)
    assert tables.pairs(rows, "plain, 0.3", limit) == [pytest.approx(40)]
    assert tables.pairs(rows, "free, 0.3", limit) == [pytest.approx(-10)]
    bias = ("model.residual_bias=0",)
    assert tables.pairs(rows, "out of reach", bias) == [pytest.approx(30)]
    assert tables.pairs(rows, "plain", bias) == []
    assert tables.pairs(rows, "chain", limit) == []


def test_settings_are_found_however_they_are_written():
    key = tables.key
    assert key("train.lr=6e-3 seed=0 time_steps=4") == key("train.lr=0.006")
    assert key("train.lr=6e-3") != key("train.lr=6e-3 seed=1")
    assert key("model.residual_gain=0") == key("")  # zero is the default, but not of I-LIF
    assert key("neuron.kind=ilif model.residual_gain=0") != key("neuron.kind=ilif")
    with pytest.raises(KeyError, match="has no row of 'seed=77'"):
        ROWS.percent("seed=77")


def test_a_row_has_its_seed_and_what_published_it():
    for row in ROWS.rows:
        given = dict(word.split("=", 1) for word in row["settings"].split())
        assert row["seed"] == given.get("seed", "0")
        assert re.fullmatch(r"[0-9a-f]{9}", row["commit"])
        assert bool(row["machine"]) == bool(row["hours"])


def test_a_row_that_is_trained_again_says_what_trained_it(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "train", lambda settings: {"validation": 0.5})
    run.again(["cured"], tmp_path / "again.csv")
    with (tmp_path / "again.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows][:2] == ["100", "104"]
    assert list(rows[0]) == list(ROWS.rows[0])
    assert all(re.match(r"[0-9a-f]{9}", row["commit"]) for row in rows)
    assert all(row["machine"] and float(row["hours"]) >= 0 for row in rows)


def test_settings_become_rows_of_a_group_once(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(run, "train", lambda words: trained.append(words) or {})
    for settings in (["seed=3"], ["seed=3", "train.lr=1e-2"]):  # goes on where it was stopped
        run.again(["full"], tmp_path / "new.csv", settings)
    assert trained == ["seed=3", "train.lr=1e-2"]
    with (tmp_path / "new.csv").open(newline="", encoding="utf-8") as file:
        rows = [(row["group"], row["settings"], row["seed"]) for row in csv.DictReader(file)]
    assert rows == [("full", "seed=3", "3"), ("full", "train.lr=1e-2", "0")]


def test_heads_read_the_end_of_every_stage_but_the_last():
    recipe = load_recipe(HERE / "cells.toml", ["time_steps=2"])
    net = run.network("", recipe, 3, 16)
    heads = run.Heads(net)
    before = set(net.state_dict())
    for _ in range(2):  # those of the last batch alone
        net(torch.rand(2, 3, 16, 16))
    assert [logits.shape for logits in heads.logits] == [(2, 2, 10), (2, 2, 10)]
    assert {name for name in before if "head" in name} == {
        f"layer{i}_head.{part}" for i in (1, 2) for part in ("weight", "bias")
    }
    sum(logits.sum() for logits in heads.logits).backward()
    assert net.conv1.weight.grad.abs().sum() > 0
    assert net.fc.weight.grad is None


def test_what_predicts_learning_is_what_its_script_finds_in_its_rows(capsys):
    run.judge()
    printed = capsys.readouterr().out
    found = dict(line.rsplit(": ", 1) for line in printed.splitlines())
    page = PAGE.read_text("utf-8")
    cases = ("fitted, above 20%", "out of sample, above 20%", "out of sample, above 40%")
    for sign, words in (
        ("none", "nothing (the base rate)"),
        ("loss", "loss of steps 51 to 100 below 0.95 ln K"),
    ):
        for case in cases:
            learnt, of, low, high = re.findall(r"\d+", found[f"{case}: {sign}"])
            assert f"| {words} | {case} | {of} | {learnt} | {low} | {high} |" in page
    for limit, known in (
        ("chain", LIMITS.chain), ("plain", LIMITS.plain), ("growth", LIMITS.growth)
    ):  # fmt: skip
        learnt, of, _, high = re.findall(r"\d+", found[limit])
        assert f" | {of} | {learnt} | {high} |" in page
        assert (int(learnt), int(of)) == (known.learnt, known.trainings)
    followed = r"in tenth 3 .*: (\d+ of \d+ .*) learn; above it: (.*)\nin tenth 5 .*: (.*) learn;"
    told = re.search(followed, printed)
    assert told
    prose = " ".join(page.split())
    assert all(share in prose for share in told.groups())
