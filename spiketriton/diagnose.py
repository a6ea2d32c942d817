"""python -m spiketriton.diagnose RECIPE|RUN [key=value ...] [--json] [--out DIR] [--batches N]"""

import argparse
import contextlib
import json
import sys
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spiketriton.commandline import Parser
from spiketriton.errors import EXIT_DONE, UserError, one_line, run_command
from spiketriton.gradients.calibration import aim_of
from spiketriton.gradients.diagnosis import Diagnosis, Switch, diagnose, find_subject, two_digits
from spiketriton.gradients.verdict import COLOURS, Measurement, judge, times
from spiketriton.show.diagnosis_picture import draw

EPILOG = """\
examples:
  python -m spiketriton.diagnose recipes/quickstart.toml
  python -m spiketriton.diagnose recipes/imagenette_r50.toml data.name=synthetic
  python -m spiketriton.diagnose runs/quickstart-20250101-120000 --json

Nothing is trained. A recipe is measured at the weights that training starts from, a run at those of
its newest checkpoint. Exit codes: 0 whatever the verdict, 2 a mistake in the command or the recipe,
1 anything else."""

BLOCKS = " ▁▂▃▄▅▆▇█"


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("diagnose", EPILOG)
    parser.add_argument("target", metavar="RECIPE|RUN", help="recipe file (TOML) or run folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe")
    parser.add_argument("--json", action="store_true", help="print JSON only, complete")
    parser.add_argument("--out", metavar="DIR", help="folder of diagnosis.json and diagnosis.png")
    parser.add_argument("--batches", default="1", metavar="N", help="batches to measure (1)")
    args = parser.parse_intermixed_args(arguments)
    if not args.batches.isdigit() or not 1 <= int(args.batches) <= 1000:
        parser.error(f"--batches {args.batches}: accepted: an integer from 1 to 1000")
    args.batches = int(args.batches)
    return args


def show(found: Diagnosis, console: Console) -> None:
    """The page."""
    measured, verdict = found.measured, found.verdict
    recipe = found.subject.recipe
    note = " (synthetic images)" if found.synthetic else ""
    console.print(
        Text(f"{found.subject.title}: gradients of {found.images} images{note}"), soft_wrap=True
    )
    words = Text("verdict: ")
    words.append(verdict.line(), style=f"bold {COLOURS[verdict.word]}")
    words.append(f" (for {recipe.train.optimizer})")
    console.print(words)
    for finding in verdict.findings():
        console.print(Text(f"  {finding}"), soft_wrap=True)
    console.print()
    heat_map(measured, console)
    console.print()
    for axis in verdict.axes:
        if axis.gain is not None:
            what = "layer" if axis.name == "depth" else "time step"
            console.print(
                Text(
                    f"{axis.name} gain {axis.gain:.3g}, spread x/÷ {axis.spread:.2f}: "
                    f"first {what} {times(axis.ratio)} the last"
                )
            )
    console.print(
        Text(
            f"surrogate: {recipe.neuron.surrogate.shape}, height "
            f"{recipe.neuron.surrogate.height:g}, width {found.width:.3g}; passes "
            f"{found.transmission:.0%} of the gradient; {verdict.dead_share:.0%} of the neurons "
            "are out of its reach"
        )
    )
    if found.better_width is not None:
        aim = aim_of(recipe)
        console.print(
            Text(
                f"a width of about {found.better_width:.2g} suits "
                f"({aim.goal} {aim.target:g}: {aim.why})"
            ),
            soft_wrap=True,
        )
    console.print(
        Text(
            f"firing rate {verdict.firing_rate:.3f}; a membrane's gradient keeps "
            f"{verdict.time_factor:.0%} from step to step"
        )
    )
    console.print(Text(found.forgotten()), soft_wrap=True)
    console.print()
    table = Table(
        title="one thing changed at a time",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", no_wrap=True)
    for name in ("gain", "layers", "steps", "reach", "firing", "image"):
        table.add_column(name, justify="right", no_wrap=True)
    as_is = Switch("as it is", "", measured, float(found.overlap[-1]))
    for switch in (as_is, *found.switches):
        judged = judge(switch.measured, recipe.train.optimizer)
        table.add_row(
            switch.change or switch.name,
            f"{switch.gain:.3g}",
            times(judged.depth.ratio) if judged.depth.ratio is not None else "-",
            times(judged.time.ratio) if judged.time.ratio is not None else "-",
            f"{1 - judged.dead_share:.0%}",
            f"{judged.firing_rate:.3f}",
            two_digits(switch.overlap),
        )
    console.print(table)
    console.print(
        Text(
            "gain: through depth; layers, steps: dL/dx of the first by that of the last; reach: "
            "neurons that the surrogate reaches; image: what the last layer tells of it"
        )
    )
    for cause in found.causes():
        console.print(Text(cause), soft_wrap=True)
    console.print()
    if found.cures:
        console.print(Text("what to change:"))
        for cure in found.cures:
            console.print(Text(f"  {cure.change}    # {cure.reason}"), soft_wrap=True)
    else:
        console.print(Text("nothing to change"))


def heat_map(measured: Measurement, console: Console, most: int = 40) -> None:
    """Layer by time step on a log scale, beside the depth profile; the time profile below."""
    grads = measured.grad_input
    logs = _log10(grads)
    known = logs[np.isfinite(logs)]
    if not len(known):
        console.print(Text("no gradient arrives at any layer"))
        return
    low, high = float(known.min()), float(max(known.max(), known.min() + 1e-9))
    layers, steps = grads.shape
    stride, skip = -(-layers // most), -(-steps // 32)
    names = [measured.names[i] for i in range(0, layers, stride)]
    wide = max(len("time profile"), *(len(name) for name in names))
    head = "RMS of dL/dx, log scale; the input is at the top, time runs to the right"
    console.print(Text(head + (f"; every {stride}th layer" if stride > 1 else "")))

    def cells(values: np.ndarray) -> Text:
        line = Text()
        for value in values[::skip]:
            line.append_text(_cell(value, low, high, console))
        return line

    profile = _log10(measured.depth_profile)
    for row, name in zip(range(0, layers, stride), names, strict=True):
        text = Text(f"{name:<{wide}}  ")
        text.append_text(cells(logs[row]))
        length = 0 if not np.isfinite(profile[row]) else (profile[row] - low) / (high - low)
        bar = "─" * max(0, round(20 * float(np.clip(length, 0, 1)))) + "●"
        text.append(f"  {measured.depth_profile[row]:8.1e} {bar}")
        console.print(text, soft_wrap=True)
    text = Text(f"{'time profile':<{wide}}  ")
    text.append_text(cells(_log10(measured.time_profile)))
    console.print(text, soft_wrap=True)
    scale = Text(f"{'scale':<{wide}}  {10**low:.1e} ")
    for level in np.linspace(low, high, 8):
        scale.append_text(_cell(level, low, high, console))
    scale.append(f" {10**high:.1e}")
    console.print(scale, soft_wrap=True)


def _cell(value: float, low: float, high: float, console: Console) -> Text:
    """Two columns: a colour on a terminal that has them, else a block of that height."""
    if not np.isfinite(value):
        return Text("··" if value < 0 else "!!")
    level = float(np.clip((value - low) / (high - low), 0, 1))
    if console.color_system is None:
        return Text(BLOCKS[1 + round(level * (len(BLOCKS) - 2))] * 2)
    return Text("  ", style=f"on rgb({','.join(str(c) for c in _colour(level))})")


# of matplotlib's viridis, at equal distances
_VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


def _colour(level: float) -> list[int]:
    place = level * (len(_VIRIDIS) - 1)
    left = min(int(place), len(_VIRIDIS) - 2)
    share = place - left
    pairs = zip(_VIRIDIS[left], _VIRIDIS[left + 1], strict=True)
    return [round(a + share * (b - a)) for a, b in pairs]


def _log10(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log10(values)


def main(arguments: list[str]) -> int:
    args = parse(arguments)

    def warn(text: str) -> None:
        print(f"warning: {one_line(text)}", file=sys.stderr)

    subject = find_subject(args.target, args.overrides, warn)
    found = diagnose(subject, args.batches)
    text = json.dumps(found.as_json(), indent=2)
    if args.json:
        print(text)
    else:
        console = Console(highlight=False)
        show(found, console)
    if args.out or not args.json:
        folder = Path(args.out or f"runs/diagnose-{subject.recipe.name}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "diagnosis.json").write_text(text + "\n", "utf-8")
            draw(found, folder / "diagnosis.png")
        except OSError as error:
            raise UserError(f"--out {folder} cannot be written: {error.strerror}") from None
        with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):
            print(f"\n{folder / 'diagnosis.png'}\n{folder / 'diagnosis.json'}")
    return EXIT_DONE


if __name__ == "__main__":
    run_command(main)
