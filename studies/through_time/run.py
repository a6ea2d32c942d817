"""Which nets that have to remember do not learn, and what their gradients through time said before.

python studies/through_time/run.py draw                   register.csv, from a seed: before any training
python studies/through_time/run.py train --root data      rows.csv: trains what is not there yet, one thread
python studies/through_time/run.py measure --root data    adds to rows.csv what is said of them untrained
python studies/through_time/run.py judge                  the tables of README.md
"""

import argparse
import csv
import math
import random
import statistics
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

import spiketriton
from spiketriton.evaluate.evaluation import wilson
from studies.through_time import nets
from studies.through_time.nets import (
    CHANNELS,
    CLASSES,
    KINDS,
    LEAKY,
    PARALLEL,
    Net,
    Row,
    trained,
)

HERE = Path(__file__).parent
PAGE, DOCS = HERE / "README.md", HERE.parents[1] / "docs" / "gradient_flow.md"
REGISTER, ROWS, CURES = (HERE / f"{name}.csv" for name in ("register", "rows", "cures"))
MADE = "made by studies/through_time/run.py"
PULSES = ("pulse", "growth")
RATES = {"adamw": (3e-3, 1e-2), "sgd": (0.1, 0.01)}
BUDGET = {"pulse": 250, "growth": 250, "digits": 200, "pixels": 100}  # steps
FAILS = {
    "pulse": 0.40,
    "growth": 0.40,
    "digits": 0.20,
    "pixels": 0.20,
}  # below: near chance, which is 0.25, 0.1 and 0.1


class Dice(random.Random):
    """What is drawn of every net."""

    def spread(self, low: float, high: float) -> float:
        """Between the two, even on a log scale."""
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def common(self, kinds: tuple[str, ...], last: float = 0.75) -> Row:
        """last: share of nets that are read at the last step."""
        kind = self.choice(kinds)
        detach = kind not in PARALLEL and self.random() < 0.6
        return {
            "kind": kind,
            "norm": self.random() < 0.5,
            "gain": round(self.uniform(2, 4), 2),
            "reset": {"ilif": "soft", "clif": "soft"}.get(kind, self.choice(("hard", "soft")))
            * (kind not in PARALLEL),
            "detach": detach,
            "height": self.choice((1, 1, 1, 1, 1, 1, 0.5, 2, 3, 5)),
            "surrogate_width": self.choice((0.3, 0.3, 0.5, 1.0)),
            "read": "last" if self.random() < last else "mean",
            "optimizer": "adamw" if self.random() < 0.8 else "sgd",
            "order": 0,
        }


def draw() -> list[Row]:
    """200 pulses, 60 on spoken digits, 20 on permuted pixels, 40 pulses more; of each the first half is for fitting."""
    dice, made = Dice(62), list[Row]()
    spread, common = dice.spread, dice.common
    for family, count in (("pulse", 200), ("digits", 60), ("pixels", 20)):
        for index in range(count):
            row: Row = {
                "id": f"{family}-{index}",
                "half": 1 + (2 * index >= count),
                "family": family,
            }
            if family == "pulse":
                T = round(spread(8, 200))
                row |= common(KINDS) | {
                    "T": T,
                    "depth": dice.choice((1, 2, 2, 3, 4, 6)),
                    "width": 64,
                    "batch": 40,
                }
                row |= {"channels": CHANNELS, "classes": CLASSES, "tau": spread(1.3, 2 * T)}
            elif family == "digits":
                row |= common(
                    ("if", "lif", "lif", "plif", "clif", "alif", "cuba", "psn", "sliding_psn")
                )
                row |= {
                    "T": 64,
                    "depth": 2,
                    "width": 128,
                    "batch": 64,
                    "channels": 32,
                    "classes": 10,
                }
                row |= {"tau": spread(1.3, 300), "norm": dice.random() < 0.8, "optimizer": "adamw"}
            else:
                row |= common(("if", "lif", "lif", "plif", "alif", "cuba"))
                row |= {
                    "T": 784,
                    "depth": 2,
                    "width": 64,
                    "batch": 50,
                    "channels": 1,
                    "classes": 10,
                }
                row |= {"tau": spread(2, 1000), "norm": True, "optimizer": "adamw"}
            if row["kind"] in ("masked_psn", "sliding_psn"):
                row["order"] = round(spread(2, row["T"]))
            row["tau"] = round(row["tau"], 2) if row["kind"] in LEAKY else 0.0
            made.append(row | {"seed": index})
    for index in range(40):  # registered when 81 of the pulses were trained, of which few explode
        T = round(spread(20, 150))
        row = {"id": f"growth-{index}", "half": 1 + (index >= 20), "family": "growth"}
        row |= common(("if", "if", "lif", "plif", "alif", "cuba"))
        row |= {"T": T, "depth": dice.choice((1, 2, 3)), "width": 64, "batch": 40}
        row |= {"channels": CHANNELS, "classes": CLASSES, "seed": 500 + index}
        row |= {"detach": dice.random() < 0.2, "height": dice.choice((1, 2, 3, 5))}
        row |= {"surrogate_width": dice.choice((0.5, 1.0, 2.0))}
        row["optimizer"] = dice.choice(("adamw", "sgd"))
        row["tau"] = round(spread(T / 2, 4 * T), 2) if row["kind"] in LEAKY else 0.0
        made.append(row)
    return made


def draw_again() -> list[Row]:
    """110 pulses, 50 with the reset in the gradient and high surrogates, 30 on spoken digits; halves in turn."""
    dice, made = Dice(6202), list[Row]()
    for index in range(110):
        T = round(dice.spread(8, 200))
        row: Row = {"family": "pulse"} | dice.common(KINDS, last=0.85)
        row |= {
            "T": T,
            "depth": dice.choice((1, 2, 2, 3, 4, 6)),
            "width": dice.choice((32, 64, 96)),
        }
        row |= {"batch": 40, "channels": CHANNELS, "classes": CLASSES, "seed": 1000 + index}
        made.append(row | {"tau": dice.spread(1.3, 2 * T)})
    for index in range(50):
        T = round(dice.spread(30, 200))
        row = {"family": "growth"} | dice.common(
            ("if", "if", "lif", "plif", "alif", "cuba", "clif")
        )
        row |= {"T": T, "depth": dice.choice((1, 2, 3)), "width": 64, "batch": 40}
        row |= {"channels": CHANNELS, "classes": CLASSES, "seed": 2000 + index, "detach": False}
        row |= {
            "height": dice.choice((1, 2, 3, 5, 8)),
            "surrogate_width": dice.choice((0.5, 1.0, 2.0)),
        }
        made.append(
            row | {"optimizer": dice.choice(("adamw", "sgd")), "tau": dice.spread(T / 2, 4 * T)}
        )
    for index in range(30):
        row = {"family": "digits"} | dice.common(KINDS, last=0.85)
        row |= {"T": 64, "depth": dice.choice((1, 2, 3)), "width": 128, "batch": 64, "channels": 32}
        row |= {
            "classes": 10,
            "norm": dice.random() < 0.8,
            "optimizer": "adamw",
            "seed": 3000 + index,
        }
        made.append(row | {"tau": dice.spread(1.3, 300)})
    for index, row in enumerate(made):
        if row["kind"] in ("masked_psn", "sliding_psn"):
            row["order"] = round(dice.spread(2, row["T"]))
        row["tau"] = round(row["tau"], 2) if row["kind"] in LEAKY else 0.0
        row |= {
            "id": f"again-{row['family']}-{row['seed'] % 1000}",
            "half": 1 + index % 2,
            "draw": 2,
        }
    return made


def registered() -> list[Row]:
    return [*(row | {"draw": 1} for row in draw()), *draw_again()]


def read(path: Path) -> list[Row]:
    """A csv file, with numbers and truth values as such."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: _value(text) for key, text in row.items()} for row in csv.DictReader(file)]


def _value(text: str) -> Any:
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def write(path: Path, rows: list[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(
            file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)


def task_of(row: Row, root: str, at_end: bool = False) -> Any:
    if row["family"] in PULSES:
        return nets.pulse(row, at_end)
    return (nets.digits if row["family"] == "digits" else nets.pixels)(row, root)


def best(row: Row, root: str, at_end: bool = False) -> tuple[float, str]:
    """The best accuracy of the rates, of which the second is tried where the first fails, and each rate's."""
    batches, test = task_of(row, root, at_end)
    found = list[tuple[float, float]]()
    for rate in RATES[row["optimizer"]]:
        accuracy, _ = trained(Net(row), row, batches, test, rate, BUDGET[row["family"]])
        found.append((accuracy, rate))
        if accuracy >= FAILS[row["family"]]:
            break
    return max(found)[0], " ".join(f"{rate:g}:{accuracy:.3f}" for accuracy, rate in found)


def train(root: str, only: str) -> None:
    """Trains what the register has and rows.csv has not.

    A pulse that is not learnt is also shown at the end, and one of `growth` is also trained with its reset detached.
    """
    torch.set_num_threads(1)
    commit = subprocess.run(
        ["git", "rev-parse", "--short=8", "HEAD"], cwd=HERE, capture_output=True, text=True
    )
    rows = read(ROWS)
    known = {row["id"] for row in rows}
    for row in sorted(read(REGISTER), key=lambda row: row["seed"] % 30):  # halves in turn
        if row["id"] in known or not row["id"].startswith(only):
            continue
        start = time.perf_counter()
        accuracy, by_rate = best(row, root)
        fails = accuracy < FAILS[row["family"]]
        control: float | str = ""
        if fails and row["family"] in PULSES:
            control, _ = best(row, root, at_end=True)
        detached: float | str = ""
        if fails and row["family"] == "growth" and not row["detach"]:
            detached = round(best(row | {"detach": True}, root)[0], 4)
        made = {"id": row["id"], "accuracy": round(accuracy, 4), "by_rate": by_rate, "fails": fails}
        made |= {"control": control if control == "" else round(float(control), 4)}
        made |= {"detached": detached}
        made |= {"seconds": round(time.perf_counter() - start, 1), "commit": commit.stdout.strip()}
        rows.append(made)
        write(ROWS, rows)
        print(made, flush=True)


def measure(root: str) -> None:
    """What `spiketriton.diagnose` says of the untrained nets of rows.csv, by a batch that no training sees."""
    torch.set_num_threads(1)
    register, rows = {row["id"]: row for row in read(REGISTER)}, read(ROWS)
    for known in rows:
        row = register[known["id"]]
        if known.get("arrives", "") != "":
            continue
        x, y = task_of(row, root)[0](
            row["batch"], torch.Generator().manual_seed(30_000 + row["seed"])
        )
        said = spiketriton.diagnose(
            Net(row), (x, y), optimizer=row["optimizer"], time_first=True, tries=0
        )
        found = said.verdict.through
        known |= {"credit": f"{found.credit:.3g}", "arrives": f"{found.arrives:.3g}"}
        known |= {"largest": f"{found.largest:.3g}", "back": found.back}
        known |= {
            "firing": f"{said.verdict.forward.rate:.2g}",
            "outputs": said.verdict.forward.arrives,
        }
        known["judged"] = found.judged is not None
    write(ROWS, rows)


LIMITS = {"states": 0.0175, "resets": 3e-4, "windows": 0.0}
"""Chosen on the first halves of the pulses: the highest recall with at most 5 % false alarms, by a grid of 0.0025; of
resets, under the smallest share of a net that learnt."""


def remembers_by(row: Row) -> str:
    """As `Signal.memory`."""
    if row["kind"] in PARALLEL:
        return "windows"
    attached_soft = row["reset"] == "soft" and not row["detach"]
    if row["kind"] == "ilif" and attached_soft:
        return ""
    return "resets" if attached_soft else "states"


def forgets(row: Row, known: Row) -> bool:
    """Whether it is told "vanishing through time"."""
    limit = LIMITS.get(remembers_by(row))
    return limit is not None and known["arrives"] <= limit


def cures_of(row: Row) -> dict[str, Row]:
    """Changes of a net that vanishes through time, one at a time; the reading last."""
    made: dict[str, Row] = {}
    if row["kind"] in LEAKY:
        made["tau = T"] = {"tau": float(row["T"])}
    if row["kind"] != "if":
        made["IF"] = {"kind": "if", "reset": row["reset"] or "hard", "detach": True}
    made["ALIF, tau = T"] = {
        "kind": "alif",
        "tau": float(row["T"]),
        "reset": "soft",
        "detach": True,
    }
    if row["kind"] != "psn":
        made["PSN"] = {"kind": "psn"}
    if row["kind"] not in PARALLEL and not row["detach"]:
        made["detach_reset"] = {"detach": True}
    made["mean"] = {"read": "mean"}
    return {name: change for name, change in made.items() if {**row, **change} != row}


def cure(root: str) -> None:
    """cures.csv: of pulses that are told "vanishing through time" and fail, the accuracy with each change."""
    torch.set_num_threads(1)
    register, found = {row["id"]: row for row in read(REGISTER)}, read(CURES)
    done = {(row["id"], row["change"]) for row in found}
    told = [row for row in read(ROWS) if forgets(register[row["id"]], row) and row["fails"]]
    for known in sorted(told, key=lambda known: -register[known["id"]]["half"]):
        row = register[known["id"]]
        for name, change in cures_of(row).items() if row["family"] in PULSES else ():
            if (row["id"], name) not in done:
                accuracy, by_rate = best(row | change, root)
                made = {"id": row["id"], "change": name, "before": known["accuracy"]}
                found.append(made | {"accuracy": round(accuracy, 4), "by_rate": by_rate})
                write(CURES, found)
                print(found[-1], flush=True)


def counts(half: int, families: tuple[str, ...] = PULSES) -> dict[str, tuple[int, int]]:
    """Of the pulses of a half: how many were told of those that failed for time, and of those that learnt, by kind.

    A net fails for time where it learns a pulse at the end; of other tasks every failure counts.
    """
    register, found = {row["id"]: row for row in read(REGISTER)}, dict[str, tuple[int, int]]()
    for kind in ("states", "resets", "windows", ""):
        for outcome in ("fails", "learns"):
            told = many = 0
            for known in read(ROWS):
                row = register[known["id"]]
                if row["half"] != half or row["family"] not in families:
                    continue
                if remembers_by(row) != kind or known["arrives"] == "":
                    continue
                for_time = known["fails"] and (known["control"] == "" or known["control"] >= 0.4)
                if for_time if outcome == "fails" else not known["fails"]:
                    many, told = many + 1, told + forgets(row, known)
            found[f"{kind or 'not judged'}, {outcome}"] = (told, many)
    return found


def totals(half: int, families: tuple[str, ...], outcome: str, kinds: str = "") -> str:
    """Of the nets of a half that `fails` or `learns`, how many were told; of all kinds, or of one."""
    pairs = [
        pair
        for name, pair in counts(half, families).items()
        if name.endswith(outcome) and name.startswith(kinds)
    ]
    return share(sum(told for told, _ in pairs), sum(many for _, many in pairs))


def judge() -> Iterator[str]:
    """The tables of README.md."""
    yield 'Told "vanishing through time" before training, of the nets that fail for time, and of those that learn:'
    yield ""
    yield "| second half, which chose nothing | fail | learn: false alarms |"
    yield "| --- | ---: | ---: |"
    for what, families in (
        ("pulses", PULSES),
        ("spoken digits", ("digits",)),
        ("permuted pixels", ("pixels",)),
    ):
        found = [totals(2, families, outcome) for outcome in ("fails", "learns")]
        if any(found):
            yield f"| {what} | {' | '.join(found)} |"
    for kind in ("states", "resets", "windows", "not judged"):
        found = [totals(2, PULSES, outcome, kind) for outcome in ("fails", "learns")]
        yield f"| pulses: {kind} | {' | '.join(found)} |"
    found = [totals(1, PULSES, outcome) for outcome in ("fails", "learns")]
    yield f"| first half: pulses | {' | '.join(found)} |"
    first = [totals(1, ("digits",), outcome) for outcome in ("fails", "learns")]
    yield f"| first half, which chose nothing: spoken digits | {' | '.join(first)} |"
    yield ""
    yield from cured()


def cured() -> Iterator[str]:
    """What each change does to pulses that are told so, and fail."""
    found = read(CURES)
    told = {row["id"]: row["before"] for row in found}
    yield "| change of a pulse that was told so, and fails | above chance | median accuracy, % |"
    yield "| --- | ---: | ---: |"
    before = 100 * statistics.median(told.values())
    yield f"| as it is | 0 of {len(told)} | {before:.0f} |"
    for name in dict.fromkeys(row["change"] for row in found):
        after = [row["accuracy"] for row in found if row["change"] == name]
        above = share(sum(a >= FAILS["pulse"] for a in after), len(after))
        yield f"| {name} | {above} | {100 * statistics.median(after):.0f} |"
    helped = {r["id"] for r in found if r["change"] != "mean" and r["accuracy"] >= FAILS["pulse"]}
    yield f"| any but the mean | {share(len(helped), len(told))} |  |"


def share(part: int, whole: int) -> str:
    """`3 of 4 (30-95 %)`, with Wilson's interval of 95 %."""
    if not whole:
        return ""
    low, high = wilson(part, whole)
    return f"{part} of {whole} ({100 * low:.0f}-{100 * high:.0f} %)"


def between(text: str, name: str, lines: Iterable[str]) -> str:
    """The page with other lines between its markers of that name."""
    begin, end = f"<!-- {name}: begin -->\n", "<!-- end -->"
    before, _, rest = text.partition(begin)
    return before + begin + "\n".join(lines) + "\n" + end + rest.partition(end)[2]


def page(text: str) -> str:
    return between(text, "judged", judge())


def gradient_flow(text: str) -> str:
    """The tables of docs/gradient_flow.md."""
    told = [
        '| told "vanishing through time", of the | second half of the pulses | spoken digits, all |',
        "| --- | ---: | ---: |",
    ]
    for what, outcome in (("nets that fail for time", "fails"), ("nets that learn", "learns")):
        both = [counts(half, ("digits",)) for half in (1, 2)]
        pairs = [p for half in both for name, p in half.items() if name.endswith(outcome)]
        digits = share(sum(told for told, _ in pairs), sum(many for _, many in pairs))
        told.append(f"| {what} | {totals(2, PULSES, outcome)} | {digits} |")
    return between(between(text, f"{MADE}, credit", told), f"{MADE}, cures", cured())


def beyond(kind: str, half: int = 2) -> tuple[int, int]:
    """Of pulses of a half that are told, how many learnt, and how many there are."""
    register = {row["id"]: row for row in read(REGISTER)}
    told = [
        known
        for known in read(ROWS)
        if (row := register[known["id"]])["half"] == half
        and row["family"] in PULSES
        and remembers_by(row) == kind
        and forgets(row, known)
    ]
    return sum(not known["fails"] for known in told), len(told)


def chosen() -> float:
    """The limit of states by the first half: the highest recall with at most 5 % false alarms, the lowest such one."""
    register, pairs = {row["id"]: row for row in read(REGISTER)}, list[tuple[float, bool]]()
    for known in read(ROWS):
        row = register[known["id"]]
        mine = row["half"] == 1 and row["family"] in PULSES and remembers_by(row) == "states"
        if mine and (not known["fails"] or known["control"] >= 0.4):
            pairs.append((known["arrives"], known["fails"]))
    best = (0, 0.0)
    for limit in (0.0025 * n for n in range(1, 41)):
        fails = sum(arrives <= limit for arrives, failed in pairs if failed)
        learnt = sum(arrives <= limit for arrives, failed in pairs if not failed)
        if learnt <= 0.05 * sum(not failed for _, failed in pairs):
            best = max(best, (fails, -limit))
    return -best[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("draw", "train", "measure", "cure", "judge"))
    parser.add_argument("--root", default="data", help="folder of spoken_digits/ and mnist_src/")
    parser.add_argument("--only", default="", help="rows whose id begins so")
    args = parser.parse_args()
    if args.what == "draw":
        write(REGISTER, registered())
    elif args.what == "train":
        train(args.root, args.only)
    elif args.what == "measure":
        measure(args.root)
    elif args.what == "cure":
        cure(args.root)
    else:
        PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
        DOCS.write_text(gradient_flow(DOCS.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
