"""Runs docs/first_steps.md block by block, writes each output below its block and draws the page's pictures.

python studies/pictures/first_steps.py
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from spiketriton.show.figures import BLUE, GREEN, GREY, ORANGE, new_figure, save
from spiketriton_kernels import Surrogate

PAGE = Path(__file__).parents[2] / "docs" / "first_steps.md"
BLOCK = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)


def run_page(text: str) -> tuple[dict[str, Any], list[str]]:
    """The names that the blocks leave behind, and what each printed; files are made in the present folder."""
    names: dict[str, Any] = {}
    outputs = []
    for block in BLOCK.finditer(text):
        line = text[: block.start()].count("\n") + 1
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile("\n" * line + block[1], str(PAGE), "exec"), names)
        outputs.append(printed.getvalue())
    return names, outputs


def membrane(names: dict[str, Any]) -> Figure:
    figure = new_figure(9, 2.8)
    axes = figure.subplots()
    after = names["membrane"][:, 0]
    before = names["current"][:, 0] + 0.5 * torch.cat([after.new_zeros(1), after[:-1]])
    axes.step(range(60), before, where="mid", color=BLUE)
    axes.step(range(60), names["current"][:, 0], where="mid", color=GREY, lw=2.2, ls=":")
    fired = names["spikes"][:, 0].nonzero()[:, 0]
    axes.plot(fired, [1.45] * len(fired), "|", color="black", markersize=10)
    axes.axhline(1.0, linestyle="--", color=ORANGE)
    axes.text(8, 0.63, "membrane", color=BLUE)
    axes.text(8, 0.17, "current", color=GREY)
    axes.text(8, 1.03, "threshold", color=ORANGE)
    axes.text(8, 1.41, "spikes")
    axes.set(
        xlabel="time step",
        ylabel="membrane, current",
        ylim=(-0.05, 1.6),
        title="One neuron, three currents",
    )
    return figure


def surrogate(names: dict[str, Any]) -> Figure:
    figure = new_figure(9, 3)
    left, right = figure.subplots(1, 2)
    u = torch.linspace(-2, 2, 4001)
    places = ((-1.9, -0.11), (0.4, 0.5), (-1.9, 1.04))
    looks = zip(names["by_width"], (ORANGE, BLUE, GREY), places, strict=True)
    for width, colour, place in looks:
        left.plot(u, Surrogate("atan", width=width).slope(u), color=colour)
        left.text(*place, f"width {width:g}", color=colour)
    left.set(xlabel="membrane - threshold", ylim=(-0.15, 1.2), title="Surrogate gradient")
    widths = [f"{width:g}" for width in names["by_width"]]
    right.bar(widths, list(names["by_width"].values()), color=(ORANGE, BLUE, GREY), width=0.6)
    right.set_axisbelow(True)
    right.grid(False, axis="x")
    right.set(xlabel="surrogate width", ylim=(0, 100), title="Test accuracy, %")
    return figure


def time(names: dict[str, Any]) -> Figure:
    figure = new_figure(5, 2.8)
    axes = figure.subplots()
    axes.plot(list(names["by_steps"]), list(names["by_steps"].values()), "o-", color=BLUE)
    axes.set_xticks(list(names["by_steps"]))
    axes.set(xlabel="time steps, T", ylabel="test accuracy, %", title="Trained at T = 4")
    return figure


def depth(names: dict[str, Any]) -> Figure:
    figure = new_figure(7, 3)
    axes = figure.subplots()
    looks = ((ORANGE, 0.13), (GREEN, 0.9))
    for (name, signal), (colour, high) in zip(names["signal"].items(), looks, strict=True):
        axes.plot(range(len(signal)), signal, "o-", color=colour)
        axes.text(12, high, name, color=colour)
    axes.set(
        xlabel="layer",
        ylabel="similarity (1: same)",
        ylim=(0, 1.05),
        title="Forward signal before training",
    )
    return figure


def credit(names: dict[str, Any]) -> Figure:
    figure = new_figure(7, 3)
    axes = figure.subplots()
    looks = ((ORANGE, 1e-7), (GREEN, 6e-3))
    for (tau, share), (colour, high) in zip(names["credit"].items(), looks, strict=True):
        share = share[:-1]  # nothing reaches the last step by way of time
        axes.semilogy(range(len(share)), share, "o-", color=colour)
        axes.text(21, high, f"tau {tau:.0f}", color=colour)
    axes.axvspan(-0.5, 3.5, color=GREY, alpha=0.2)
    axes.text(1.5, 1e-6, "the pulse", color=GREY, rotation=90, ha="center", va="center")
    axes.set(
        xlabel="time step", ylabel="share", title="Gradient by way of time, by the last step's"
    )
    return figure


def main() -> None:
    text = PAGE.read_text("utf-8")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        names, outputs = run_page(text)
    after = iter(outputs)
    filled = BLOCK.sub(lambda m: f"```python\n{m[1]}```\n\n```text\n{next(after)}```", text)
    PAGE.write_text(filled, "utf-8")
    pictures = (membrane, surrogate, time, depth, credit)
    draw = {f"first_steps_{p.__name__}.png": lambda p=p: p(names) for p in pictures}
    save(PAGE.parent / "img", draw)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
