"""What the verdict says of untrained chains of all kinds of neurons, without norms and with high thresholds.

python studies/untrained/run.py draw       register.csv, from a seed: before any training
python studies/untrained/run.py train      rows.csv: measures and trains what is not there yet, one thread
python studies/untrained/run.py judge      the tables of README.md and of docs/gradient_flow.md
"""

import argparse
import csv
import math
import random
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spiketriton.config import Recipe, load_recipe
from spiketriton.data import build_data
from spiketriton.gradients.measurement import COLUMNS, Measurement, Signal
from spiketriton.gradients.prober import Prober
from spiketriton.gradients.verdict import Word
from spiketriton.gradients.verdict import judge as judge_net
from spiketriton.models import Network, build_model
from spiketriton.plugins.tasks import build_loss
from spiketriton.system.errors import UserError
from spiketriton.training.optim import build_optimizer, clipped_norm
from studies.pages import filled, interval

HERE = Path(__file__).parent
REGISTER, ROWS = HERE / "register.csv", HERE / "rows.csv"
PAGES = HERE / "README.md", HERE.parents[1] / "docs" / "gradient_flow.md"
MADE = "made by studies/untrained/run.py"
SEEN = 47  # rows that were there when limits were chosen
Row = dict[str, str]
FAMILIES = ("psn", "masked_psn", "sliding_psn", "clif", "alif", "cuba", "plif", "no norm", "high")
KINDS = ("if", "lif", "plif", "clif", "alif", "cuba", "psn", "masked_psn", "sliding_psn")
EACH, STEPS, FAILS = 12, 200, 0.2  # nets of a family; of a training; test accuracy, of ten classes
COMMON = "data.image_size=8 data.workers=0 train.precision=fp32 train.batch_size=32 train.lr=auto"


def draw() -> list[Row]:
    """Halves in turn; what a recipe refuses is drawn again."""
    dice, made = random.Random(6203), list[Row]()
    for index in range(EACH):
        for family in FAMILIES:
            while True:
                settings = _at_random(family, dice)
                try:
                    recipe_of(settings)
                except UserError:
                    continue
                break
            half = str(1 + (index + FAMILIES.index(family)) % 2)
            made.append({"id": f"{family}-{index}", "half": half, "settings": settings})
    return made


def _at_random(family: str, dice: random.Random) -> str:
    kind = family if family in KINDS else dice.choice(KINDS)
    name = dice.choice(("mlp", "mlp", "plain"))
    depth = dice.choice((4, 10, 20, 30, 45) if name == "mlp" else (6, 12, 18))
    width = dice.choice((32, 64) if name == "mlp" else (8,))
    norm = "none" if family == "no norm" or (family == "high" and dice.random() < 0.5) else "bn"
    threshold = dice.choice((2, 4, 6, 10)) if family == "high" else 1
    words = [f"model.name={name} model.depth={depth} model.width={width} model.norm={norm}"]
    words += [f"model.start={'identity' if dice.random() < 0.3 else 'kaiming'}"]
    words += [f"neuron.kind={kind} time_steps={dice.choice((2, 4))} neuron.v_threshold={threshold}"]
    words += [f"neuron.surrogate.width={dice.choice((0.1, 0.3, 0.3, 0.3, 1)) * threshold:g}"]
    words += [f"train.optimizer={'adamw' if dice.random() < 0.75 else 'sgd'}"]
    return " ".join([*words, f"seed={dice.randrange(1000)}"])


def recipe_of(settings: str) -> Recipe:
    return load_recipe("quickstart", [*COMMON.split(), *settings.split()])


def answer(row: Row) -> Row:
    """Measures a net untrained, trains it, and tests it. Training ends early where it learns."""
    recipe, started = recipe_of(row["settings"]), time.process_time()
    data = build_data(recipe)
    torch.manual_seed(recipe.seed)
    net = build_model(recipe, **data.facts.sizes)
    loss_of, stream = build_loss(recipe.loss, data.facts.class_counts), data.train.from_step(0)
    found = measured(net, next(stream), loss_of)
    optimizer = build_optimizer(recipe.train, net.train(), recipe.peak_lr)
    losses = list[float]()
    for (x, y), _ in zip(stream, range(STEPS), strict=False):
        loss = loss_of(net(x), y)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]) or np.mean(losses[-20:]) < 0.5 * math.log(10):
            break
        loss.backward()
        clipped_norm([*net.parameters()], recipe.clipping)
        optimizer.step()
        optimizer.zero_grad()
    found |= {"steps": str(len(losses)), "loss": f"{np.mean(losses[-20:]):.4f}"}
    found |= {"accuracy": f"{accuracy(net, data):.4f}"}
    found |= {"seconds": f"{time.process_time() - started:.1f}"}
    return row | found


def measured(net: Network, batch: Any, loss_of: Any) -> Row:
    """kept, ratio, rate, arrives: of the verdict. Also by layer what is kept, the rate, and the gradient."""
    prober = Prober(net, [batch], loss_of)
    found, signal = prober.measure(), prober.signal()
    by_layer = {
        "kept": signal.overlap,
        "rate": found.firing_rate.mean(1),
        "gradient": found.depth_profile,
    }
    made = {name: " ".join(f"{value:.3g}" for value in values) for name, values in by_layer.items()}
    return made | {"arrives": str(signal.arrives)}


@torch.no_grad()
def accuracy(net: Network, data: Any) -> float:
    net.eval()
    right, shown = 0, 0
    for x, y in data.test.rounds(torch.device("cpu")):
        right, shown = right + int((net(x).mean(0).argmax(1) == y).sum()), shown + len(y)
    return right / shown


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def train() -> None:
    torch.set_num_threads(1)
    words = ["git", "rev-parse", "--short=9", "HEAD"]
    commit = subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=True)
    rows = read(ROWS)
    known = {row["id"] for row in rows}
    for row in read(REGISTER):
        if row["id"] not in known:
            rows.append(answer(row) | {"commit": commit.stdout.strip()})
            write(ROWS, rows)
            print(
                {k: v for k, v in rows[-1].items() if k not in ("kept", "rate", "gradient")},
                flush=True,
            )


def said(row: Row) -> Word:
    """The verdict's word on the untrained net."""
    recipe = recipe_of(row["settings"])
    each = np.ones(recipe.time_steps)
    kept, rate, gradient = (
        np.array(row[name].split(), float)[:, None] * each for name in ("kept", "rate", "gradient")
    )
    others = dict.fromkeys(COLUMNS, np.ones_like(rate)) | {"nonfinite": np.zeros_like(rate)}
    fields = others | {"firing_rate": rate, "grad_input_rms": gradient}
    names = tuple(f"layers.{index}.neuron" for index in range(len(rate)))
    signal = Signal(kept[:, 0], row["arrives"] == "True")
    return judge_net(Measurement(names, **fields), recipe, signal).word


def nets(which: str = "") -> list[tuple[str, Word, bool]]:
    """Of each trained net: its family, what was said of it untrained, whether it fails.

    which: "fitted", the nets that were there when limits were chosen, "new", the others.
    """
    found = []
    for number, row in enumerate(read(ROWS)):
        if which and (number < SEEN) != (which == "fitted"):
            continue
        found.append((row["id"].rpartition("-")[0], said(row), float(row["accuracy"]) < FAILS))
    return found


UNNAMED = (Word.FREE, Word.NOT_JUDGED, Word.ASLEEP)
"""Words that foretell no failure."""


def judge(families: Iterable[str] = ()) -> Iterator[str]:
    """The table of docs/gradient_flow.md, and with each family that of README.md."""
    yield (
        "| untrained nets | which | how many | an obstacle is named | % | 95 % from | to | asleep | not judged |"
    )
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    of_family = [(name, lambda net, name=name: net[0] == name) for name in families]
    for name, which, mine in (
        ("**after the limits were chosen**", "new", lambda net: True),
        ("before", "fitted", lambda net: True),
        ("all", "", lambda net: True),
        *((f"all, {name}", "", chosen) for name, chosen in of_family),
    ):
        for fate, fails in (("fail", True), ("learn", False)):
            found = [net for net in nets(which) if mine(net)]
            said = [word for _, word, failed in found if failed == fails]
            if said:
                named = sum(word not in UNNAMED for word in said)
                others = f"{said.count(Word.ASLEEP)} | {said.count(Word.NOT_JUDGED)}"
                cells = f"{len(said)} | {named} | {interval(named, len(said))} | {others}"
                yield f"| {name} | {fate} | {cells} |"


def page(text: str) -> str:
    """A page with the table between its marks, or that of each family."""
    whole = f"<!-- {MADE}, families: begin -->" in text
    return filled(text, f"{MADE}, families" if whole else MADE, judge(FAMILIES if whole else ()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("draw", "train", "judge"))
    what = parser.parse_args().what
    if what == "draw":
        write(REGISTER, draw())
    elif what == "train":
        train()
    else:
        for path in PAGES:
            path.write_text(page(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
