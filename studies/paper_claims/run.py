"""Two claims of arXiv 2006.04436, before training: the table and the picture of log.md.

    python studies/paper_claims/run.py --root data       # CIFAR-10's images are in data/cifar10; five minutes of a core

(b) the surrogate's width decides how the gradient changes through depth; (c) the way of the gradient through the
membrane, from step to step, makes it explode. Measured: plain ResNet-56 of 8 channels from the usual start, on 64
training images of 16x16, three seeds. `cut` is the same
neuron, by cut.py beside this file, whose gradient does not pass from step to step.
"""

import argparse
import csv
import io
import math
import statistics
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from spiketriton.config import load_recipe
from spiketriton.data import build_data
from spiketriton.gradients.prober import Prober
from spiketriton.gradients.verdict import last_layers
from spiketriton.models import build_model
from spiketriton.plugins.tasks import build_loss
from spiketriton.runs.rows import replace_file
from spiketriton.show.figures import BLUE, GREEN, ORANGE, STYLE
from studies.pages import filled

HERE = Path(__file__).parent
ROWS, PAGE, PICTURE = HERE / "rows.csv", HERE / "log.md", HERE / "paper_claims.png"
IMAGES, SEEDS = 64, (0, 1, 2)
NET = (
    "data.name=cifar10",
    "data.image_size=16",
    "model.name=resnet56",
    "model.shortcut_gradient=surrogate",
    "time_steps=10",
    f"plugins.modules=['{HERE / 'cut.py'}']",
)
USUAL = ("model.residual_gain=1", "model.residual_bias=0")
OURS = (
    "model.residual_gain=0.5",
    "model.residual_bias=auto",
    "model.shortcut_gradient=straight_through",
)
CELLS: tuple[tuple[str, tuple[str, ...]], ...] = (
    *((f"width {width}", (f"neuron.surrogate.width={width}",)) for width in ("0.1", "0.3", "1", "3")),
    ("width 1, T = 1", ("neuron.surrogate.width=1", "time_steps=1")),
    ("width 1, T = 4", ("neuron.surrogate.width=1", "time_steps=4")),
    ("width 1, tau 1 (no memory)", ("neuron.surrogate.width=1", "neuron.tau=1")),
    ("width 1, tau 10", ("neuron.surrogate.width=1", "neuron.tau=10")),
    ("width 1, cut", ("neuron.surrogate.width=1", "neuron.kind=cut")),
    ("width 1, reset in the gradient", ("neuron.surrogate.width=1", "neuron.detach_reset=false")),
    ("width 1, no norm", ("neuron.surrogate.width=1", "model.norm=none")),
    ("width 1, tdBN", ("neuron.surrogate.width=1", "model.norm=tdbn")),
    ("width 1, TEBN", ("neuron.surrogate.width=1", "model.norm=tebn")),
    ("width 1, ours, branches at 0.5", ("neuron.surrogate.width=1", *OURS)),
    ("width 0.3, ours, branches at 0.5", ("neuron.surrogate.width=0.3", *OURS)),
)  # fmt: skip
COLUMNS = ("cell", "seed", "by_layer", "by_step", "outside")


def measure(changes: tuple[str, ...], seed: int, root: str) -> dict[str, str]:
    """The gradient by block, whose last layers are compared, and by time step."""
    start = () if "model.norm=none" in changes else USUAL
    given = (*NET, *start, *changes, f"seed={seed}", f"data.root={root}")
    recipe = load_recipe(HERE / "net.toml", given)
    data = build_data(recipe)
    x, y = next(data.train.from_step(0))
    batch = [(x[:IMAGES], y[:IMAGES])]
    torch.manual_seed(seed)
    net = build_model(recipe, classes=10, channels=3, image_size=data.image_size)
    prober = Prober(net, batch, build_loss(recipe.loss))
    found = prober.measure()
    ends = found.of_layers(last_layers(found.names))
    return {
        "by_layer": written(ends.depth_profile),
        "by_step": written(ends.time_profile),
        "outside": f"{found.outside_share.mean():.3f}",
    }


def written(values: np.ndarray) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def read() -> list[dict[str, str]]:
    with ROWS.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def growth(texts: list[str]) -> str:
    """The first value by the last one, the geometric mean of several; empty of a single one."""
    each = [[float(value) for value in text.split()] for text in texts]
    if len(each[0]) == 1:
        return ""
    if not all(math.isfinite(first) for first, *_ in each):
        return "overflow"
    found = statistics.geometric_mean(values[0] / values[-1] for values in each)
    return f"{found:.3g}" if 0.01 < found < 1000 else f"{found:.0e}"


def table(rows: list[dict[str, str]]) -> str:
    """Of each cell the geometric mean over the seeds."""
    head = "plain ResNet-56, T = 10 | first block / last | first step / last | neurons outside the surrogate"
    lines = [f"| {head} |", "| --- | ---: | ---: | ---: |"]
    for cell, _ in CELLS:
        mine = [row for row in rows if row["cell"] == cell]
        depth, steps = (growth([row[name] for row in mine]) for name in ("by_layer", "by_step"))
        outside = statistics.mean(float(row["outside"]) for row in mine)
        lines.append(f"| {cell} | {depth} | {steps} | {100 * outside:.0f} % |")
    return "\n".join(lines) + "\n"


def page(text: str, rows: list[dict[str, str]]) -> str:
    return filled(text, "made by studies/paper_claims/run.py", table(rows), PAGE)


SHOWN = (
    ("width 0.1", GREEN, "-"), ("width 0.3", BLUE, "-"), ("width 1", ORANGE, "-"), ("width 1, cut", ORANGE, ":"),
    ("width 1, ours, branches at 0.5", ORANGE, "--"),
)  # fmt: skip


def draw(rows: list[dict[str, str]]) -> None:
    """The gradient by block and by time step, as a share of the last one's, geometric means over the seeds."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
        for axes, name in zip(panels, ("by_layer", "by_step"), strict=True):
            for cell, colour, line in SHOWN:
                values = [list(map(float, r[name].split())) for r in rows if r["cell"] == cell]
                if np.isfinite(values).all():
                    logs = np.log(values).mean(0)
                    axes.semilogy(
                        range(1, len(logs) + 1),
                        np.exp(logs - logs[-1]),
                        line,
                        color=colour,
                        label=cell,
                    )
        panels[0].set_title("Through depth, the width decides")
        panels[0].set_xlabel("block; the gradient runs from right to left")
        panels[0].set_ylabel("gradient, as a multiple of the last one's")
        panels[1].set_title("Through time, of ten steps")
        panels[1].set_xlabel("time step")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        figure.savefig(PICTURE, dpi=150)
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--root", help="where cifar10 is: measures again; else from the file as it is"
    )
    given = parser.parse_args()
    if given.root is not None:
        text = io.StringIO()
        out = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        out.writeheader()
        for cell, changes in CELLS:
            for seed in SEEDS:
                out.writerow({"cell": cell, "seed": seed} | measure(changes, seed, given.root))
            print(cell, flush=True)
        replace_file(ROWS, text.getvalue())
    rows = read()
    replace_file(PAGE, page(PAGE.read_text("utf-8"), rows))
    draw(rows)


if __name__ == "__main__":
    main()
