"""docs/evaluation.md says what the rows of its runs say."""

import csv
import json
from pathlib import Path

import pytest

from studies.evaluation import run as script

DOCS = Path(__file__).parents[2] / "docs"
ROWS = script.read()
TEXT = (DOCS / "evaluation.md").read_text("utf-8")


def test_the_page_has_the_table_and_the_numbers_of_the_rows():
    assert script.page(TEXT, ROWS) == TEXT
    assert script.missing(TEXT, ROWS) == []
    other = ROWS | {("LIF", 4): ROWS["LIF", 4] | {"uj": "9.99", "uj_with_data": "99.9"}}
    assert script.page(TEXT, other) != TEXT
    assert len(script.missing(TEXT, other)) == 2


def test_the_energy_of_a_row_is_that_of_its_operations():
    """45 nm: 0.9 pJ for an accumulate, 4.6 pJ for a multiply-accumulate (Horowitz 2014)."""
    for row in ROWS.values():
        picojoules = 0.9 * float(row["ac"]) + 4.6 * float(row["mac"])
        assert float(row["uj"]) == pytest.approx(picojoules / 1e6, abs=1e-3)


def test_rows_are_made_of_a_comparison(tmp_path, monkeypatch):
    (tmp_path / "LIF" / "evaluation").mkdir(parents=True)
    (tmp_path / "LIF" / "recipe.toml").write_text('seed = 3\n[data]\nname = "digits"\n')
    session = {"commit": "0123456789ab", "dirty": True}
    (tmp_path / "LIF" / "environment.json").write_text(json.dumps([{}, session]))
    run = {
        "run": str(tmp_path / "LIF"), "kind": "spiking", "leaky": False, "images": 9, "device": "a CPU", "neurons": 10,
        "values": [0.5, 0.75], "interval": [[0.1, 0.9], [0.2, 0.8]], "synaptic_operations": [100.0, 150.5],
        "macs_once": 7, "macs_per_step": 2, "energy_uj": [0.1, 0.2], "energy_with_data_uj": [1.0, 2.0],
    }  # fmt: skip
    comparison = tmp_path / "LIF" / "evaluation" / "comparison.json"
    comparison.write_text(json.dumps([run, run | {"leaky": True}, run | {"kind": "ann"}]))
    monkeypatch.setattr(script, "ROWS", tmp_path / "rows.csv")
    script.add(tmp_path / "LIF")
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == script.COLUMNS
    assert [(row["t"], row["ac"], row["mac"]) for row in rows] == [
        *[("1", "110.0", "9"), ("2", "170.5", "11")],  # membranes that add
        *[("1", "100.0", "19"), ("2", "150.5", "31")],  # and that leak
        *[("1", "100.0", "7"), ("2", "150.5", "7")],  # an ANN has none
    ]
    assert {(row["seed"], row["commit"]) for row in rows} == {("3", "012345678-dirty")}


def test_the_script_of_the_pictures_writes_the_rows():
    assert 'studies/evaluation/run.py "$out/LIF"' in (
        DOCS.parent / "studies" / "pictures" / "runs.sh"
    ).read_text("utf-8")
