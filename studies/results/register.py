"""Runs that were planned before they were trained: register.csv.

    python studies/results/register.py                                   # what is done, what is left
    python studies/results/register.py --train RUNS --root data          # what is left, a run folder each in RUNS
    python studies/results/register.py --train RUNS --root data --group lif_t4 r20_ann_s1      # groups, or single runs
    python studies/results/register.py --take RUNS --processor "A CPU"   # of runs that have ended: rates and rows

A `rate` is a short training with held-out images, of which its group's best one is chosen by their accuracy. A `row`
says `best` where it takes a value of that (`best:GROUP`: of another group), and becomes a row of rows.csv. A row that
goes on with another's weights says `train.init_from=runs/NAME`, so RUNS is `runs` for it. One run is trained after
another, on one thread unless its command has `train.threads`.
"""

import argparse
import csv
import difflib
import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from spiketriton.config.words import some
from spiketriton.runs.rows import Rows, replace_file
from spiketriton.system.errors import UserError
from studies.results import run as results

REGISTER = Path(__file__).parent / "register.csv"
COLUMNS = ("group", "name", "kind", "command", "validation", "test")
Row = dict[str, str]


def read() -> list[Row]:
    with REGISTER.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(rows: Sequence[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_file(REGISTER, text.getvalue())


def is_done(row: Row) -> bool:
    """A rate with its accuracy, or a row that rows.csv has."""
    return bool(row["validation"]) if row["kind"] == "rate" else bool(row["test"])


def words_of(row: Row, rows: Sequence[Row]) -> list[str]:
    """Recipe and overrides, with the best values. UserError: a rate of the group is not known yet."""
    return [_filled(word, row["group"], rows) for word in row["command"].split()]


def _filled(word: str, group: str, rows: Sequence[Row]) -> str:
    key, _, value = word.partition("=")
    best, _, other = value.partition(":")
    if best != "best":
        return word
    rates = [row for row in rows if (row["group"], row["kind"]) == (other or group, "rate")]
    missing = [row["name"] for row in rates if not is_done(row)]
    if missing or not rates:
        raise UserError(f"{key} of {other or group} is not known before {', '.join(missing)}")
    first = max(rates, key=lambda row: float(row["validation"]))
    return next(given for given in first["command"].split() if given.startswith(f"{key}="))


def left(rows: Sequence[Row], chosen: Sequence[str] = ()) -> list[Row]:
    """What is not done, in the order of the register: all, or of groups and runs that are chosen by name.

    UserError: there is none of that name.
    """
    known = {name for row in rows for name in (row["group"], row["name"])}
    for name in chosen:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known)) or sorted(known)
            raise UserError(f"{name} is no group and no run of the register; it has {some(near)}")
    wanted = known.intersection(chosen) or known
    return [row for row in rows if not is_done(row) and wanted & {row["group"], row["name"]}]


def train(name: str, folder: Path, words: Sequence[str], root: str) -> None:
    """Trains one run, or goes on with it. UserError: it failed."""
    recipe, *overrides = words
    if not any(word.startswith("train.threads=") for word in overrides):
        overrides.append("train.threads=1")
    new = [f"recipes/{recipe}.toml", *overrides, f"data.root={root}"]
    begun = (folder / "recipe.toml").exists()
    given = ["--resume", str(folder)] if begun else [*new, "--run-dir", str(folder)]
    command = [sys.executable, "-m", "spiketriton.train", *given]
    if subprocess.run(command, cwd=results.ROOT, check=False).returncode:
        raise UserError(f"{name} did not end well: {' '.join(command)}")


def take(row: Row, folder: Path, processor: str) -> bool:
    """Puts what a run folder says into a row of the register, and of rows.csv; False where it has not ended."""
    tests = [one for one in Rows(folder / "metrics.jsonl").read() if one["kind"] == "eval"]
    if row["kind"] == "rate":
        if not tests or tests[-1]["epoch"] < epochs_of(row):
            return False
        row["validation"] = results.percent(tests[-1]["validation_accuracy"])
    else:
        try:
            results.add(str(folder), row["name"], processor)
        except UserError as error:
            print(error, file=sys.stderr)
            return False
        (known,) = (one for one in results.read() if one["name"] == row["name"])
        row["test"] = known["accuracy"]
    return True


def epochs_of(row: Row) -> float:
    (epochs,) = (w for w in row["command"].split() if w.startswith("train.epochs="))
    return float(epochs.partition("=")[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--train", metavar="RUNS", type=Path, help="train what is left")
    parser.add_argument("--take", metavar="RUNS", type=Path, help="take in what has ended")
    parser.add_argument("--root", default="data", help="where the data are")
    parser.add_argument("--group", nargs="+", default=[], help="of these groups or runs alone")
    parser.add_argument("--processor", default="", help="a fuller name of it, for rows")
    given = parser.parse_args()
    rows = read()
    places = given.train or given.take
    for row in left(rows, given.group):
        if places is None:
            print(row["group"], row["name"], row["command"])
            continue
        folder = places / row["name"]
        if given.train:
            train(row["name"], folder, words_of(row, rows), given.root)
        if (folder / "metrics.jsonl").exists() and take(row, folder, given.processor):
            write(rows)  # after each, so that nothing is lost
            print(row["name"], row["validation"] or row["test"])


if __name__ == "__main__":
    main()
