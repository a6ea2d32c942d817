"""The claims of arXiv 2006.04436: the tables and the picture of log.md.

    python studies/paper_claims/run.py                   # from the rows as they are
    python studies/paper_claims/run.py --root data       # measures; CIFAR-10 is in data/cifar10; five minutes of a core

The claims are told by rows of three files: what was measured here before training (rows.csv), the accuracy of trained
nets (../results/rows.csv), and what a command of the product said of these (measured.csv, with that command).

Before training: (b) the surrogate's width decides how the gradient changes through depth; (c) the way of the gradient
through the membrane, from step to step, makes it explode. Measured: plain ResNet-56 of 8 channels from the usual start,
on 64 training images of 16x16, three seeds. `cut` is the same neuron, by cut.py beside this file, whose gradient does
not pass from step to step.
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
TRAINED, MEASURED = HERE.parent / "results" / "rows.csv", HERE / "measured.csv"
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


def read(path: Path = ROWS) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
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


# A claim, whether it holds here, and what was measured: a cell of rows.csv, or `FILE: name` of another file's row.
CLAIMS = (
    ("(a) Nets of 50 layers train directly", "yes, from another start", (
        ("MS blocks of LIF, ten steps, Imagenette: accuracy, %", "trained: r50im_t10"),
        ("the same, CIFAR-100: accuracy, %", "trained: c100r50_two_t10"),
        ("from scratch with ten steps, two epochs, Imagenette: accuracy, %", "trained: paper_ms"),
        ("plain blocks, from our start: accuracy, %", "trained: paper_plain"),
        ("plain blocks, from the usual start: accuracy, %", "trained: paper_usual"),
        ("plain blocks of I-LIF, one step, 30 epochs: accuracy, %", "trained: imagenette_r50_64_plain_30"),
    )),
    ("(b) The surrogate's width cures exploding and vanishing gradients", "before training; then in part", (
        ("first block's gradient by the last one's, width 0.1", "cell: width 0.1"),
        ("width 0.3", "cell: width 0.3"),
        ("width 1", "cell: width 1"),
        ("plain ResNet-50, usual start, two epochs, width 0.1: accuracy, %", "trained: paper_usual_narrow"),
        ("width 0.3", "trained: paper_usual"),
        ("width 1", "trained: paper_usual_wide"),
        ("from our start, width 0.3", "trained: paper_plain"),
        ("ResNet-56 trained at the best of four widths: held-out accuracy, %", "measured: trained width"),
        ("ResNet-56 from our start: test accuracy, %", "measured: trained default"),
    )),
    ("(c) Recurrence through time makes it explode", "in part", (
        ("width 1, no gradient from step to step", "cell: width 1, cut"),
        ("width 1, one step", "cell: width 1, T = 1"),
    )),
    ("(d) Batch norm on the currents is needed", "it helps, and is not enough", (
        ("plain ResNet-56, usual start, tdBN, at chance: accuracy, %", "measured: tdbn"),
        ("plain ResNet-20 without a norm: accuracy, %", "measured: no norm plain"),
        ("the same with norms: accuracy, %", "measured: no norm default plain"),
        ("plain ResNet-50, ten steps, our start, without norms: accuracy, %", "trained: paper_plain_nonorm"),
        ("the same with norms: accuracy, %", "trained: paper_plain"),
        ("from the usual start, without norms: accuracy, %", "trained: paper_usual_nonorm"),
        ("the same with norms: accuracy, %", "trained: paper_usual"),
    )),
    ("(e) Ten steps are enough", "yes", (
        ("Imagenette, trained with one step: accuracy, %", "trained: r50im_t1"),
        ("then with four: accuracy, %", "trained: r50im_t4"),
        ("then with ten: accuracy, %", "trained: r50im_t10"),
        ("CIFAR-100, trained with one step: accuracy, %", "trained: c100r50_t1"),
        ("then with four: accuracy, %", "trained: c100r50_t4"),
        ("then with ten: accuracy, %", "trained: c100r50_t10"),
        ("CIFAR-100, two levels in one step: accuracy, %", "trained: c100r50_two"),
        ("then spikes of 0 and 1 in four: accuracy, %", "trained: c100r50_two_t4"),
        ("then in ten: accuracy, %", "trained: c100r50_two_t10"),
    )),
    ("(f) A converted net needs about a thousand", "no: about as many as the direct net", (
        ("directly trained, ten steps, 256 of the images: accuracy, %", "measured: direct ten same"),
        ("ResNet-50 with ReLU, the same images", "measured: twin same"),
        ("converted from it, eight steps, the same images", "measured: converted eight"),
        ("ten steps", "measured: converted ten"),
        ("sixteen steps", "measured: converted sixteen"),
        ("64 steps", "measured: converted 64"),
        ("256 steps", "measured: converted 256"),
        ("sixteen steps, energy by operations: share of the twin's", "measured: converted sixteen energy"),
    )),
    ("(g) The ANN is more accurate", "yes", (
        ("ResNet-50 with ReLU, Imagenette: accuracy, %", "trained: r50im_ann"),
        ("after two epochs: accuracy, %", "trained: paper_ann"),
        ("LIF with ten steps after two epochs: accuracy, %", "trained: paper_ms"),
        ("ResNet-50 with ReLU, CIFAR-100: accuracy, %", "trained: c100r50_ann_29"),
        ("LIF with ten steps there: accuracy, %", "trained: c100r50_two_t10"),
    )),
    ("(h) Energy is saved", "by operations, where shortcuts read spikes", (
        ("ten steps, shortcuts of currents, by operations: share of the twin's", "measured: energy ten"),
        ("ten steps, with the movement of data", "measured: energy ten data"),
        ("its first four steps, by operations", "measured: energy four"),
        ("its first four steps, with the movement of data", "measured: energy four data"),
        ("ten steps, shortcuts of spikes: accuracy, %", "trained: r50sp_t10"),
        ("by operations: share of the twin's", "measured: energy spikes ten"),
        ("with the movement of data", "measured: energy spikes ten data"),
        ("its first four steps, by operations", "measured: energy spikes four"),
    )),
)  # fmt: skip


def value_of(source: str, rows: list[dict[str, str]]) -> str:
    """What a line of CLAIMS names. KeyError: no file has it."""
    kind, _, name = source.partition(": ")
    if kind == "cell":
        return growth([row["by_layer"] for row in rows if row["cell"] == name])
    path, column = {"trained": (TRAINED, "accuracy"), "measured": (MEASURED, "value")}[kind]
    found = {row["name"]: row[column] for row in read(path)}
    return f"{float(found[name]):.1f}" if kind == "trained" else found[name]


def claims(rows: list[dict[str, str]]) -> str:
    """Claim by claim, a number a line."""
    lines = ["| claim | does it hold here? | measured | number |", "| --- | --- | --- | ---: |"]
    for claim, held, measured in CLAIMS:
        for number, (what, source) in enumerate(measured):
            first = (claim, held) if number == 0 else ("", "")
            lines.append(f"| {' | '.join((*first, what, value_of(source, rows)))} |")
    return "\n".join(lines) + "\n"


def page(text: str, rows: list[dict[str, str]]) -> str:
    text = filled(text, "claims by studies/paper_claims/run.py", claims(rows), PAGE)
    return filled(text, "made by studies/paper_claims/run.py", table(rows), PAGE)


SHOWN = (
    ("width 0.1", GREEN, "-."), ("width 0.3", BLUE, "o-"), ("width 1", ORANGE, "-"), ("width 1, cut", ORANGE, ":"),
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
