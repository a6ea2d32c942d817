"""python -m spiketriton.evaluate RUN [--steps 1,2,4] [--against RUN ...] [--json] [--out DIR]"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from spiketriton.commandline import Parser
from spiketriton.errors import UserError, run_command
from spiketriton.runs.folder import make_writable
from spiketriton.trained.energy import BREAK_EVEN_RATES, MAC_PJ, WORD_PJ
from spiketriton.trained.evaluation import Evaluation, evaluate
from spiketriton.trained.run import Run, load_run

EPILOG = """\
examples:
  python -m spiketriton.evaluate runs/fashion
  python -m spiketriton.evaluate runs/fashion --steps 8,16 --against runs/ann runs/converted
  python -m spiketriton.evaluate runs/fashion data.root=/data --json > answer.json

Writes evaluation.json and pictures to DIR (RUN/evaluation). The answer after t steps is the mean
current of the first t, for every t from one pass. docs/evaluation.md says what is counted and how.
Exit codes: 0 done, 2 a mistake in the command or the run, 130 interrupted."""

ALL_STEPS = 16  # windows up to here are shown step by step, longer ones in powers of two


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("evaluate", "Accuracy, spikes, operations and energy of a run.", EPILOG)
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as data.root=/data")
    parser.add_argument("--steps", metavar="1,2,4", help="time steps to show; beyond T too")
    parser.add_argument("--against", nargs="+", default=[], metavar="RUN", help="runs to compare")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--out", metavar="DIR", help="where files go (RUN/evaluation)")
    parser.add_argument("--images", metavar="N", help="a fixed subset of the test images")
    parser.add_argument("--batch-size", metavar="N", help="images at once (the recipe's)")
    parser.add_argument("--checkpoint", choices=("last", "best"), default="last")
    args = parser.parse_intermixed_args(arguments)
    args.steps = [count(n, "--steps") for n in args.steps.split(",")] if args.steps else []
    args.images = None if args.images is None else count(args.images, "--images")
    args.batch_size = 0 if args.batch_size is None else count(args.batch_size, "--batch-size")
    return args


def count(text: str, option: str) -> int:
    """A number of at least 1. UserError."""
    if not (text.strip().isdecimal() and 1 <= int(text) <= 10**6):
        raise UserError(f"{option} {text!r}: accepted: integers from 1 to 1000000")
    return int(text)


def main(arguments: list[str]) -> None:
    args = parse(arguments)
    runs = [
        load_run(path, *args.overrides, checkpoint=args.checkpoint, test_images=args.images)
        for path in [args.run, *args.against]
    ]
    refuse_other_tests(runs)
    folder = output_folder(args.out or Path(args.run) / "evaluation")
    steps = max(args.steps, default=0)
    evaluations = [evaluate(run, steps, args.batch_size) for run in runs]
    written = write(folder, evaluations)
    if args.json:
        print(json.dumps([asdict(one) for one in evaluations], indent=1))
        return
    console = Console(width=None if sys.stdout.isatty() else 118, highlight=False)
    show(console, evaluations, args.steps)
    console.print("\n".join(f"  {path}" for path in written), soft_wrap=True)


def write(folder: Path, evaluations: list[Evaluation]) -> list[Path]:
    """evaluation.json of the first run, comparison.json of all, and the pictures."""
    from spiketriton.show.evaluation_pictures import draw_evaluations  # matplotlib takes a second

    paths = [folder / "evaluation.json"]
    paths[0].write_text(evaluations[0].to_json(), "utf-8")
    if len(evaluations) > 1:
        paths.append(folder / "comparison.json")
        paths[1].write_text(json.dumps([asdict(one) for one in evaluations], indent=1) + "\n")
    return paths + draw_evaluations(folder, evaluations)


def output_folder(path: str | Path) -> Path:
    """The folder, made if need be. UserError: it cannot be written."""
    folder = Path(path)
    try:
        make_writable(folder)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror}; --out takes another folder"
        ) from None
    return folder


def refuse_other_tests(runs: list[Run]) -> None:
    """UserError: a run was trained for other test images than the first."""
    first = runs[0].data
    for run in runs[1:]:
        data = run.data
        if (data.name, data.classes) != (first.name, first.classes):
            raise UserError(
                f"{run.folder.path} is of {data.name} with {len(data.classes)} classes, and "
                f"{runs[0].folder.path} of {first.name} with {len(first.classes)}; accepted by "
                "--against: runs of the same data"
            )
        if not np.array_equal(data.test.members, first.test.members):
            raise UserError(
                f"{run.folder.path} is tested on {data.test.images:,} images, and "
                f"{runs[0].folder.path} on {first.test.images:,}; --images N gives both the same"
            )


def show(console: Console, evaluations: list[Evaluation], asked: list[int]) -> None:
    """The tables."""
    first = evaluations[0]
    note = ", synthetic images: the accuracy means nothing" if first.synthetic else ""
    console.print(f"{first.images:,} test images of {first.data}{note}; {first.device}")
    if first.checkpoint == "best":
        console.print("checkpoint: best, chosen by these very test images, which flatters it")
    console.print(by_steps(evaluations, asked))
    console.print(by_layer(first))
    for one in evaluations:
        console.print(verdict(one, evaluations))


def by_steps(evaluations: list[Evaluation], asked: list[int]) -> Table:
    """A row for each run and chosen number of time steps."""
    table = Table(box=box.SIMPLE_HEAD, title="Accuracy and cost of one image", title_justify="left")
    table.add_column("run", overflow="fold")
    for head in ("T", "accuracy %", "95 %", "AC M", "MAC M", "µJ", "µJ with data", "images/s"):
        table.add_column(head, justify="right", no_wrap=True)
    for one in evaluations:
        for t in chosen_steps(one, asked):
            low, high = one.interval[t - 1]
            own = t == one.time_steps
            updates = one.neurons * t * (one.kind != "ann")
            table.add_row(
                one.label,
                f"{t}",
                f"{100 * one.accuracy[t - 1]:.2f}",
                f"{100 * low:.1f}-{100 * high:.1f}",
                f"{(one.synaptic_operations[t - 1] + updates * (not one.leaky)) / 1e6:.3f}",
                f"{(one.macs_once + one.macs_per_step * t + updates * one.leaky) / 1e6:.3f}",
                f"{one.energy_uj[t - 1]:.2f}",
                f"{one.energy_with_data_uj[t - 1]:.2f}",
                f"{one.images_per_s:.0f}" if own else "",
                style="bold" if own else "",
                end_section=t == chosen_steps(one, asked)[-1],
            )
    return table


def chosen_steps(one: Evaluation, asked: list[int]) -> list[int]:
    """The time steps worth a row: those asked for and T; else all, or powers of two."""
    if asked:
        steps = {*asked, one.time_steps}
    elif one.steps <= ALL_STEPS:
        steps = set(range(1, one.steps + 1))
    else:
        steps = {1 << n for n in range(one.steps.bit_length())} | {one.time_steps, one.steps}
    return sorted(t for t in steps if t <= one.steps)


def by_layer(one: Evaluation) -> Table:
    """Activity of each layer of the first run."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"Layers of {one.label} within T = {one.time_steps}",
        title_justify="left",
    )
    table.add_column("layer", overflow="fold")
    active = "active %" if one.kind == "ann" else "rate %"
    for head in ("neurons", active, "first step", "last step", "never %", "always %", "AC M"):
        table.add_column(head, justify="right", no_wrap=True)
    for layer in one.layers:
        rate = layer.rate[: one.time_steps]
        table.add_row(
            layer.name,
            f"{layer.neurons:,}",
            f"{100 * sum(rate) / len(rate):.2f}",
            f"{100 * rate[0]:.2f}",
            f"{100 * rate[-1]:.2f}",
            f"{100 * layer.dead / layer.neurons:.1f}",
            f"{100 * layer.saturated / layer.neurons:.1f}",
            f"{layer.synaptic_operations / 1e6:.3f}",
        )
    return table


def verdict(one: Evaluation, evaluations: list[Evaluation]) -> str:
    """A run in sentences: its energy against its ANN's, and when it reaches the others.

    The first run is compared with all, each other one with the first and with ANNs.
    """
    at = one.time_steps - 1
    if one.kind == "ann":
        return f"{one.label}: {one.ann_macs / 1e6:.3f} M MAC, {one.energy_uj[0]:.2f} µJ an image."
    low, high = (100 * rate for rate in BREAK_EVEN_RATES)
    ann_uj, ann_data_uj = ann_energy_uj(one)
    text = (
        f"{one.label}: at T = {one.time_steps} it takes {one.energy_uj[at] / ann_uj:.3f} of its "
        f"ANN twin's energy by operations, {one.energy_with_data_uj[at] / ann_data_uj:.3f} with "
        f"data movement; mean rate {100 * one.mean_rate:.1f} % (break-even by Yan et al. 2024 at "
        f"T = 5: {low:.1f} to {high:.1f} %)."
    )
    first = evaluations[0]
    others = [e for e in evaluations if e is not one and (first in (one, e) or e.kind == "ann")]
    return " ".join([text, *(overtakes(one, other) for other in others)])


def overtakes(one: Evaluation, other: Evaluation) -> str:
    """At how many steps a run reaches the accuracy of another one at its own T, in a sentence."""
    goal = other.accuracy[other.time_steps - 1]
    name = f"{other.label} ({100 * goal:.2f} %)"
    for allowance, words in ((0.0, "reaches"), (0.01, "comes within 1 point of")):
        for t, accuracy in enumerate(one.accuracy, 1):
            if accuracy >= goal - allowance - 1e-12:
                return f"It {words} {name} at {t} step{'s' * (t > 1)}."
    return f"It stays more than 1 point below {name} in {one.steps} steps."


def ann_energy_uj(one: Evaluation) -> tuple[float, float]:
    """Energy of the ANN twin of a run, by operations and with data movement."""
    return one.ann_macs * MAC_PJ * 1e-6, one.ann_macs * (MAC_PJ + 2 * WORD_PJ) * 1e-6


if __name__ == "__main__":
    run_command(main)
