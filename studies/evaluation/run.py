"""The table of docs/evaluation.md and the numbers of its first sentences, from rows.csv.

sh studies/pictures/runs.sh            # trains, converts and compares the runs, then calls this
python studies/evaluation/run.py RUN   # new rows, from RUN/evaluation/comparison.json, and the table
python studies/evaluation/run.py       # the table; names every number of a sentence that the rows deny
"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from studies.pages import filled, unsaid

HERE = Path(__file__).parent
ROWS, PAGE = HERE / "rows.csv", HERE.parents[1] / "docs" / "evaluation.md"
COLUMNS = ("run", "t", "accuracy", "low", "high", "ac", "mac", "uj", "uj_with_data")
COLUMNS += ("images", "seed", "machine", "commit")
TWIN = "ANN twin"
SHOWN = (
    ("LIF, trained directly", "LIF", 4),
    ("IF, trained directly", "IF", 4),
    (TWIN, TWIN, 1),
    ("twin, converted (`calibrated` for T = 8)", "twin, calibrated", 4),
    ("", "twin, calibrated", 8),
    ("twin, converted (`balanced`)", "twin, balanced", 8),
    ("", "twin, balanced", 64),
)
Row = dict[str, str]


def rows_of(found: list[dict[str, Any]]) -> Iterator[Row]:
    """A row for each time step of each run of a comparison, which has its runs' folders."""
    for run in found:
        folder = Path(run["run"])
        last = json.loads((folder / "environment.json").read_text("utf-8"))[-1]
        seed = "0"
        for line in (folder / "recipe.toml").read_text("utf-8").splitlines():
            if line.startswith("seed = "):
                seed = line.removeprefix("seed = ")
        for i, accuracy in enumerate(run["values"]):
            steps = 0 if run["kind"] == "ann" else i + 1
            membranes = run["neurons"] * steps  # a leak multiplies, an IF neuron adds
            macs = run["macs_once"] + run["macs_per_step"] * steps
            low, high = run["interval"][i]
            yield {
                "run": folder.name,
                "t": str(i + 1),
                "accuracy": f"{accuracy:.6f}",
                "low": f"{low:.6f}",
                "high": f"{high:.6f}",
                "ac": f"{run['synaptic_operations'][i] + membranes * (not run['leaky']):.1f}",
                "mac": f"{macs + membranes * run['leaky']}",
                "uj": f"{run['energy_uj'][i]:.4f}",
                "uj_with_data": f"{run['energy_with_data_uj'][i]:.4f}",
                "images": str(run["images"]),
                "seed": seed,
                "machine": run["device"],
                "commit": str(last["commit"])[:9] + "-dirty" * bool(last["dirty"]),
            }


def add(folder: Path) -> None:
    """Writes the rows anew."""
    found = json.loads((folder / "evaluation" / "comparison.json").read_text("utf-8"))
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows_of(found))
    ROWS.write_text(text.getvalue(), "utf-8")


def read() -> dict[tuple[str, int], Row]:
    """The rows by run and number of time steps."""
    with ROWS.open(newline="", encoding="utf-8") as file:
        return {(row["run"], int(row["t"])): row for row in csv.DictReader(file)}


def three(value: float) -> str:
    """With three digits."""
    return f"{value:#.3g}".rstrip(".")


def table(rows: dict[tuple[str, int], Row]) -> str:
    head = "| run | T | accuracy, % | AC, million | MAC, million | µJ | µJ with data |\n"
    lines = [head, "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"]
    for label, run, t in SHOWN:
        row = rows[run, t]
        ac, mac = float(row["ac"]) / 1e6, float(row["mac"]) / 1e6
        cells = [
            label,
            str(t),
            f"{100 * float(row['accuracy']):.1f}",
            three(ac) if ac else "-",
            f"{mac:.2f}",
        ]
        cells += [three(float(row["uj"])), three(float(row["uj_with_data"]))]
        lines.append("| " + " | ".join(cells) + " |\n")
    return "".join(lines)


def first(rows: dict[tuple[str, int], Row], run: str) -> int:
    """The first time step after which a run is as accurate as the twin."""
    twin = float(rows[TWIN, 1]["accuracy"])
    return min(
        t for (name, t), row in rows.items() if name == run and float(row["accuracy"]) >= twin
    )


def facts(rows: dict[tuple[str, int], Row]) -> list[str]:
    """The numbers of the page's sentences."""
    twin, lif = rows[TWIN, 1], rows["LIF", 4]
    shares = [float(lif[name]) / float(twin[name]) for name in ("uj", "uj_with_data")]
    steps = {run: first(rows, run) for run in ("LIF", "twin, calibrated", "twin, balanced")}
    return [
        f"{lif['images']} handwritten digits",
        f"at time step {steps['LIF']}",
        f"{shares[0]:.2f} of the twin's energy",
        f"{shares[1]:.2f} with data movement",
        f"{steps['twin, calibrated']} steps (`calibrated`) or {steps['twin, balanced']} (`balanced`)",
        f"one thread of an {lif['machine']}, commit {lif['commit']}",
    ]


def page(text: str, rows: dict[tuple[str, int], Row]) -> str:
    """The page with the table between its marks."""
    return filled(text, "runs", table(rows), PAGE)


def missing(text: str, rows: dict[tuple[str, int], Row]) -> list[str]:
    return unsaid(text, facts(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", nargs="?", type=Path, help="the run that others were compared with")
    given = parser.parse_args()
    if given.run is not None:
        add(given.run)
    rows = read()
    PAGE.write_text(page(PAGE.read_text("utf-8"), rows), "utf-8")
    if wrong := missing(PAGE.read_text("utf-8"), rows):
        sys.exit("docs/evaluation.md does not say: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
