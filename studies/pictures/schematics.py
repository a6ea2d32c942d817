"""Draws the schematics of docs/img: surrogate.png, blocks.png, traffic.png and rooms.png.

python studies/pictures/schematics.py
"""

from __future__ import annotations

import ast
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from spiketriton.show.figures import BLUE, GREY, STYLE, new_figure, write
from spiketriton_kernels import Surrogate

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "img"
LIGHT = "#edf2f7"
DEFAULT = Surrogate("atan", height=1.0, width=0.3)
OTHERS = {
    "fast sigmoid, slope 25 (snnTorch)": Surrogate.fast_sigmoid(25),
    "sigmoid, alpha 4 (SpikingJelly)": Surrogate.sigmoid(4),
    "ATan, alpha 2 (SpikingJelly, snnTorch)": Surrogate.atan(2),
    "rectangle of full width 1 (STBP)": Surrogate.rectangle(1),
    "triangle, gamma 1 (TET)": Surrogate.triangle(1),
}


def surrogate() -> Figure:
    """The step, its stand-in in the backward pass, and how wide the usual ones are."""
    import torch

    figure = new_figure(
        10, 4.4, "The backward pass replaces the derivative of a spike by a bump: the surrogate"
    )
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    u = torch.linspace(-1.5, 1.5, 1201)
    left.plot(u, (u >= 0).float(), color="black")
    left.plot(u, DEFAULT.slope(u), color=BLUE)
    left.plot([0, DEFAULT.width], [0.5, 0.5], color=BLUE, marker="|", markersize=10)
    left.annotate("width 0.3", (DEFAULT.width, 0.5), (0.42, 0.49), color=BLUE, fontsize=11)
    left.plot([0, 0], [0, 1], color=GREY, ls=":")
    left.annotate("height 1", (0, 1), (-0.95, 0.97), color=BLUE, fontsize=11)
    left.set(xlabel="membrane potential - threshold", ylabel="spike; surrogate", ylim=(-0.04, 1.2))
    left.text(0.35, 0.82, "forward:\nthe spike, a step", fontsize=9.5)
    left.text(-1.5, 0.5, "backward:\nthe surrogate\n(ATan)", color=BLUE, fontsize=9.5)
    left.set_title("What replaces what")
    names = [*OTHERS, "default here: ATan, 0.3"]
    widths = [one.width for one in OTHERS.values()] + [DEFAULT.width]
    order = np.argsort(widths)[::-1]
    colours = [BLUE if names[i].startswith("default") else GREY for i in order]
    right.barh([names[i] for i in order], [widths[i] for i in order], color=colours, height=0.6)
    for place, i in enumerate(order):
        right.text(widths[i] + 0.015, place, f"{widths[i]:.3g}", va="center", fontsize=10)
    right.set_axisbelow(True)
    right.grid(False, axis="y")
    right.set(xlabel="surrogate width, in units of the membrane", xlim=(0, 1.12))
    right.set_title("Defaults of other libraries, in this unit")
    return figure


def box(axes: Axes, x: float, y: float, text: str, colour: str, ink: str, bold: bool) -> None:
    edge = {"ec": "black", "lw": 2.2} if bold else {"ec": GREY, "lw": 1}
    axes.add_patch(
        FancyBboxPatch(
            (x - 0.75, y - 0.24),
            1.5,
            0.48,
            boxstyle="round,pad=0.04",
            fc=colour,
            zorder=2.5,
            **edge,
        )
    )
    weight = "bold" if bold else "normal"
    given = {"ha": "center", "va": "center", "fontsize": 10.5, "zorder": 3}
    axes.text(x, y, text, color=ink, fontweight=weight, **given)


def arrow(
    axes: Axes, *points: tuple[float, float], colour: str = "black", style: str = "-"
) -> None:
    x, y = zip(*points, strict=True)
    axes.plot(x, y, color=colour, lw=1.5, ls=style)
    axes.annotate(
        "",
        points[-1],
        points[-2],
        arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.5, "ls": style},
        zorder=2,
    )


def plus(axes: Axes, y: float) -> None:
    axes.plot(0, y, "o", color="white", markeredgecolor="black", markersize=17, zorder=3)
    axes.text(0, y - 0.01, "+", ha="center", va="center", fontsize=14, zorder=4)


ZERO = "norm, weight 0"
BLOCKS = {
    "plain": (["conv", "norm", "neuron", "conv", ZERO, "+", "neuron"], "shortcut: spikes"),
    "SEW": (["conv", "norm", "neuron", "conv", "norm", "neuron", "+"], "shortcut: spikes"),
    "MS": (["neuron", "conv", "norm", "neuron", "conv", ZERO, "+"], "shortcut: currents"),
}


def blocks() -> Figure:
    """Three residual blocks from the input (bottom) to the output (top)."""
    figure = new_figure(
        10, 6.2, "Branches of plain and MS blocks start at zero: each block starts as its shortcut"
    )
    for axes, (name, (parts, shortcut)) in zip(figure.subplots(1, 3), BLOCKS.items(), strict=True):
        axes.set(xlim=(-1.3, 2.5), ylim=(-0.9, 7.5))
        axes.axis("off")
        axes.set_title(f'{name}: model.block = "{name.lower()}"')
        heights = [0.55 + 0.9 * i for i in range(len(parts))]
        arrow(axes, (0, -0.85), (0, heights[0] - 0.3))
        for i, (part, y) in enumerate(zip(parts, heights, strict=True)):
            if part == "+":
                plus(axes, y)
                arrow(axes, (0, -0.35), (1.35, -0.35), (1.35, y), (0.2, y))
                axes.text(1.45, 3.0, shortcut, rotation=90, va="center", fontsize=10.5)
            else:
                colour, ink = (BLUE, "white") if part == "neuron" else (LIGHT, "black")
                box(axes, 0, y, part, "white" if part == ZERO else colour, ink, part == ZERO)
            above = heights[i + 1] if i + 1 < len(parts) else 7.45
            into = 0.18 if i + 1 < len(parts) and parts[i + 1] == "+" else 0.3
            start = y + (0.18 if part == "+" else 0.3)
            arrow(axes, (0, start), (0, above - (into if i + 1 < len(parts) else 0)))
        if name == "plain":
            arrow(axes, (0.1, 7.1), (2.0, 7.1), (2.0, -0.6), (0.1, -0.6), style="--")
            axes.text(
                2.1, 3.0, "its gradient: around the neuron", rotation=90, va="center", fontsize=10.5
            )
    figure.supxlabel(
        "blue: spiking neuron; bold: starts at weight 0; dashed: straight-through path, in the backward pass only",
        fontsize=10.5, color="#4a5568",
    )  # fmt: skip
    return figure


def traffic() -> Figure:
    """What each pass of the fused unit reads and writes."""
    figure = new_figure(
        10,
        3.9,
        "Batch norm and neuron as one operator: 8 tensors of memory traffic in a training step",
    )
    axes = figure.subplots()
    axes.set(xlim=(0, 10), ylim=(0, 3.6))
    axes.axis("off")
    steps = [
        ("statistics", ["read y"], []),
        ("normalise, charge,\nspike, reset", ["read y"], ["write s"]),
        ("recompute;\nsums for the norm", ["read y", "read ds"], []),
        ("recompute;\ninput gradient", ["read y", "read ds"], ["write dy"]),
    ]
    for i, (what, reads, writes) in enumerate(steps):
        x = 1.35 + 2.45 * i
        axes.add_patch(
            FancyBboxPatch((x - 0.95, 1.3), 1.9, 0.85, boxstyle="round,pad=0.05", fc=BLUE, ec=BLUE)
        )
        axes.text(x, 1.72, what, ha="center", va="center", color="white", fontsize=10.5)
        for k, text in enumerate(reads):
            place = x + (k - (len(reads) - 1) / 2) * 0.95
            arrow(axes, (place, 2.95), (place, 2.24), colour=GREY)
            axes.text(place, 3.0, text, ha="center", fontsize=10.5)
        for text in writes:
            arrow(axes, (x, 1.21), (x, 0.5), colour=GREY)
            axes.text(x, 0.2, text, ha="center", fontsize=10.5)
    axes.plot([4.98, 4.98], [0.15, 3.3], color=GREY, ls=":")
    axes.text(2.57, 3.4, "forward: 3", ha="center", fontweight="bold")
    axes.text(7.47, 3.4, "backward: 5", ha="center", fontweight="bold")
    figure.supxlabel(
        "y: output of the convolution, s: spikes, ds, dy: gradients; each [T, B, C, H, W]. Only y is saved.",
        fontsize=10.5, color="#4a5568",
    )  # fmt: skip
    return figure


CODE = ROOT / "spiketriton"
ROOMS = ("diagnose", "evaluate", "export", "convert", "sweep", "report", "doctor", "events")
CORE = {  # the core's folders and where they stand; what is low is imported by what is above it
    "training": (5.0, 4.0),
    "show": (5.0, 3.15),
    "gradients": (5.0, 2.3),
    "data": (2.5, 1.3),
    "models": (5.0, 1.45),
    "runs": (7.5, 1.3),
    "neurons": (5.0, 0.6),
    "plugins": (1.25, -0.25),
    "config": (3.75, -0.25),
    "system": (6.25, -0.25),
}


def imported() -> set[tuple[str, str]]:
    """Pairs of folders of the engine of which the first imports the second, anywhere in its files."""
    found = set()
    for file in CODE.rglob("*.py"):
        above = file.relative_to(CODE).parts[0]
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if module and module.startswith("spiketriton."):
                found.add((above, module.split(".")[1]))
    return {(above, below) for above, below in found if above != below}


def shortest(pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Without those of which the first imports the second by way of another, too."""
    far = set(pairs)
    for _ in CORE:
        far |= {(a, d) for a, b in far for c, d in far if b == c}
    return {(a, b) for a, b in pairs if not any((a, c) in far and (c, b) in far for c in CORE)}


def rooms() -> Figure:
    """The folders of the engine: rooms above, the core below, an arrow for what a folder of the core imports."""
    figure = new_figure(10, 6.2, "Rooms stand on the core, and training imports none of them")
    axes = figure.subplots()
    axes.set(xlim=(0, 10), ylim=(-0.6, 6.2))
    axes.axis("off")
    pairs = imported()
    assert not {pair for pair in pairs if pair[0] in CORE and pair[1] in ROOMS}, pairs
    for i, name in enumerate(ROOMS):
        place = (1.25 + 2.5 * (i % 4), 5.85 - 0.65 * (i // 4))
        box(axes, *place, name, "white", "black", False)
    axes.plot([0.1, 9.9], [4.5, 4.5], color=GREY, ls=":")
    axes.text(0.1, 4.6, "rooms: a folder for each command", fontsize=10.5, color=GREY)
    axes.text(0.1, 4.22, "core", fontsize=10.5, color=GREY)
    layers = CORE.keys() - {"plugins", "config", "system"}
    for above, below in sorted(shortest({pair for pair in pairs if {*pair} <= layers})):
        (x0, y0), (x1, y1) = CORE[above], CORE[below]
        arrow(axes, (x0, y0 - 0.26), (x1, y1 + 0.26), colour=GREY)
    for name, (x, y) in CORE.items():
        box(
            axes,
            x,
            y,
            name,
            BLUE if name == "training" else LIGHT,
            "white" if name == "training" else "black",
            False,
        )
    axes.text(7.3, -0.25, "imported by all of them", fontsize=10.5, color=GREY, va="center")
    said = "an arrow: the upper folder\nimports the lower one, and\nmay import what comes later"
    axes.text(0.1, 3.4, said, fontsize=10.5, color=GREY, va="center")
    return figure


if __name__ == "__main__":
    with matplotlib.rc_context(STYLE):
        for draw in (surrogate, blocks, traffic, rooms):
            write(draw(), IMAGES / f"{draw.__name__}.png")
