"""The page of a diagnosis, for a terminal or a pipe, and its JSON."""

import math
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from spiketriton.diagnose.ablations import Ablation, Change
from spiketriton.diagnose.diagnosis import Diagnosis
from spiketriton.diagnose.trials import Trials
from spiketriton.diagnose.words import WHY, change, tried
from spiketriton.gradients.measurement import TIME, Measurement
from spiketriton.gradients.verdict import CLOSED, Word
from spiketriton.show import verdict as words
from spiketriton.show.screen import Table, say, show_table, show_whole
from spiketriton.show.words import COLOURS, in_percent, times

BLOCKS = " ▁▂▃▄▅▆▇█"
HEAD = ("", "gain", "layers", "time", "reach", "firing", "signal")
LEGEND = (
    "gain: growth of the gradient from a layer to the one before it; layers, time: the gradient at the first "
    "layer (time step) divided by that at the last; reach: neurons within reach of the surrogate; firing: spikes "
    "per neuron and time step; signal: the forward signal at the last layer (1: preserved, 0: lost)"
)
BAR = 20  # columns of the longest bar of the depth profile


def show(found: Diagnosis, console: Console) -> None:
    measured, verdict = found.measured, found.verdict
    recipe = found.subject.recipe
    note = " (synthetic images)" if found.synthetic else ""
    say(console, f"{found.subject.title}: gradients of {found.images} images{note}")
    line = f"verdict: {words.line(verdict)} (for {recipe.train.optimizer})"
    say(console, line, style=f"bold {COLOURS[verdict.word]}", indent="  ")
    for sentence in words.sentences(verdict):
        say(console, f"  {sentence}", indent="  ")
    if sentence := opening(found):
        say(console, f"  {sentence}", indent="  ")
    console.print()
    heat_map(measured, console)
    console.print()
    fires = f"neurons fire {verdict.firing_rate:.3f} times per time step"
    kept = f"a membrane's gradient keeps {in_percent(verdict.time_factor)} from step to step"
    say(console, f"{surrogate(found)}; {fires}; {kept}")
    console.print()
    rows = [_row(ablation) for ablation in (*first_rows(found), *found.ablations)]
    show_table(console, "one thing changed at a time", Table(HEAD, rows, legend=LEGEND))
    if cause := causes(found):
        say(console, cause)
    console.print()
    say(console, f"conclusion: {conclusion(found)}", style="bold", indent="  ")
    if found.trials is not None:
        say(console, f"  {tried(found.trials)}", indent="  ")
        for cure, _ in found.trials.helped:
            show_whole(console, f"  {change(cure)}")
            say(console, f"      {WHY[cure.why]}", indent="      ")


def first_rows(found: Diagnosis) -> list[Ablation]:
    """The net as it is, and with its branches opened where the others are measured so."""
    kept = float(found.signal.overlap[-1])
    rows = [Ablation(Change.NOTHING, "", found.as_it_is, kept)]
    if found.opened:
        rows.append(Ablation(Change.OPENED, "", found.measured, kept))
    return rows


def surrogate(found: Diagnosis) -> str:
    if found.width is None:
        return "I-LIF passes gradients on where 0 <= membrane / threshold <= levels"
    recipe = found.subject.recipe
    given = recipe.neuron.surrogate
    shape = "" if ":" in recipe.model.name else f"{given.shape}, height {given.height:g}, "
    return f"surrogate: {shape}width {found.width:.3g}"


def opening(found: Diagnosis) -> str:
    """What was done to measure through zero-initialised branches; "" where there are none."""
    if not found.opened:
        return ""
    return (
        "the verdict is of the network as initialised; heat map, picture and changes are measured with its residual "
        f"branches at a gain of {CLOSED:g}, because at a smaller one little gradient enters them, and at zero none"
    )


def conclusion(found: Diagnosis) -> str:
    """What all of it comes to, in one sentence; `diagnose.words` says what to change."""
    verdict = found.verdict
    if verdict.word in (Word.FREE, Word.NOT_JUDGED):
        known = "no obstacle was found" if verdict.judged else "no row speaks of nets of this kind"
        return f"{known}; whether it learns shows in a training, after the warm-up"
    if verdict.word in (Word.EARLY, Word.FALLING):
        return words.EARLY if verdict.learned is None else words.learned(verdict.learned)
    if verdict.word in (Word.HEALTHY, Word.LEARNING):
        return f"nothing to change: {words.line(verdict)}"
    trouble = words.line(verdict)
    if found.trials is None:
        return f"{trouble}; no change was tried"
    return trouble + (
        "; these changes help:" if found.trials.helped else "; no change that was tried helps"
    )


def causes(found: Diagnosis) -> str:
    """The changes that bring the gradient's ratio nearest to 1; "" where that is no trouble."""
    if found.verdict.backward.word == Word.FREE:
        return ""
    best = ", ".join(f"{one.override or one.change} ({times(to)})" for one, to in found.causes())
    nearest = f"nearest to 1 with {best}" if best else "none of the changes tried reduces it"
    return f"depth: {times(found.measured.depth_ratio)}; {nearest}"


def as_json(found: Diagnosis) -> dict[str, Any]:
    """All of it, for `json_text`, which writes null for what is not finite."""
    verdict, measured = found.verdict, found.measured
    return {
        "subject": found.subject.title,
        "recipe": found.subject.recipe.name,
        "step": found.subject.step,
        "changes": list(found.subject.changes),
        "data": found.subject.recipe.data.name,
        "synthetic": found.synthetic,
        "images": found.images,
        "device": found.device,
        "time_steps": measured.grad_input_rms.shape[1],
        "optimizer": found.subject.recipe.train.optimizer,
        "verdict": {
            **asdict(verdict),
            "word": verdict.word,
            "credit": verdict.credit,
            "obstacles": list(verdict.obstacles),
            "line": words.line(verdict),
            "findings": words.findings(verdict),
            "sentences": words.sentences(verdict),
        },
        "opened": found.opened,
        "conclusion": conclusion(found),
        "width": found.width,
        "overlap": found.signal.overlap.tolist(),
        "arrives": found.signal.arrives,
        "chain": found.signal.chain,
        "depth_profile": measured.depth_profile.tolist(),
        "time_profile": measured.time_profile.tolist(),
        "causes": causes(found),
        "switches": [
            {
                "name": ablation.change,
                "change": ablation.override,
                "depth_gain": ablation.measured.depth_gain,
                "time_ratio": ablation.measured.time_ratio,
                "outside_share": float(ablation.measured.outside_share.mean()),
                "firing_rate": float(ablation.measured.firing_rate.mean()),
                "overlap": ablation.overlap,
                "depth_profile": ablation.measured.depth_profile.tolist(),
            }
            for ablation in found.ablations
        ],
        "trials": None if found.trials is None else trials(found.trials),
        "weights": measured.weights,
        "measured": {name: getattr(measured, name).tolist() for name in TIME},
        "rows": measured.rows(),
    }


def trials(tried: Trials) -> dict[str, Any]:
    helped = [cure for cure, _ in tried.helped]
    return {
        "steps": tried.steps,
        "images": tried.images,
        "loss": tried.as_it_is,
        "changes": [
            {
                "change": change(cure),
                "reason": WHY[cure.why],
                "loss": loss,
                "helped": cure in helped,
            }
            for cure, loss in tried.changed
        ],
    }


def two_digits(overlap: float) -> str:
    """Two digits; noise may take an overlap of nothing a little below 0."""
    return "-" if math.isnan(overlap) else f"{max(overlap, 0.0):.2f}"


def _row(ablation: Ablation) -> tuple[str, ...]:
    shown = ablation.measured
    return (
        ablation.override or ablation.change,
        f"{shown.depth_gain:.3g}",
        times(shown.depth_ratio),
        times(shown.time_ratio),
        in_percent(1 - shown.outside_share.mean()),
        f"{shown.firing_rate.mean():.3f}",
        two_digits(ablation.overlap),
    )


def heat_map(measured: Measurement, console: Console) -> None:
    """Layer by time step on a log scale, with the depth profile at the right; the time profile below."""
    grads = measured.grad_input_rms
    logs = _log10(grads)
    known = logs[np.isfinite(logs)]
    if not len(known):
        console.print(Text("no gradient arrives at any layer"))
        return
    low, high = float(known.min()), float(max(known.max(), known.min() + 1e-9))
    layers, steps = grads.shape
    stride, skip = -(-layers // 40), -(-steps // 32)
    names = [measured.names[i] for i in range(0, layers, stride)]
    wide = max(len("time profile"), *(len(name) for name in names))
    shown = -(-steps // skip)
    room = console.width - wide - 2 - len("  1.0e-05 ●")  # of the cells and the bar
    cell_width = 2 if 2 * shown + 6 <= room else 1
    bar_width = min(BAR, max(0, room - cell_width * shown))
    head = (
        "size of the gradient by layer and time step (root mean square, log scale); the input is at the top, "
        "time runs to the right"
    )
    say(console, head + (f"; 1 layer in {stride}" if stride > 1 else ""))

    def line(name: str, values: np.ndarray, width: int, behind: str = "") -> None:
        text = Text(f"{name:<{wide}}  ")
        for value in values:
            text.append_text(_cell(value, low, high, console, width))
        console.print(text.append(behind), soft_wrap=True)

    profile = measured.depth_profile
    lengths = np.nan_to_num((_log10(profile) - low) / (high - low), nan=0.0, posinf=0.0)
    for row, name in zip(range(0, layers, stride), names, strict=True):
        bar = "─" * round(bar_width * float(np.clip(lengths[row], 0, 1)))
        line(name, logs[row, ::skip], cell_width, f"  {profile[row]:8.1e} {bar}●")
    line("time profile", _log10(measured.time_profile)[::skip], cell_width)
    line("scale", np.linspace(low, high, 8), 2, f" from {10**low:.1e} to {10**high:.1e}")


def _cell(value: float, low: float, high: float, console: Console, width: int) -> Text:
    """A colour on a terminal that has at least 256 of them, else a block of that height."""
    if not np.isfinite(value):
        return Text(("·" if value < 0 else "!") * width)
    level = float(np.clip((value - low) / (high - low), 0, 1))
    if console.no_color or console.color_system not in ("256", "truecolor"):
        return Text(BLOCKS[1 + round(level * (len(BLOCKS) - 2))] * width)
    from matplotlib import colormaps  # a second, which the picture takes anyway

    red, green, blue, _ = colormaps["viridis"](level, bytes=True)
    return Text(" " * width, style=f"on rgb({red},{green},{blue})")


def _log10(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log10(values)
