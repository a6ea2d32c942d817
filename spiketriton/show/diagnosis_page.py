"""The page of a diagnosis, for a terminal or a pipe."""

import numpy as np
from rich.console import Console
from rich.text import Text

from spiketriton.gradients.diagnosis import Diagnosis, two_digits
from spiketriton.gradients.measurement import Measurement
from spiketriton.gradients.variants import Variant
from spiketriton.gradients.verdict import in_percent, times
from spiketriton.show.screen import say, show_table, show_whole
from spiketriton.show.words import COLOURS

BLOCKS = " ▁▂▃▄▅▆▇█"
HEAD = ("", "gain", "layers", "steps", "reach", "firing", "image")
LEGEND = (
    "gain: growth of the gradient from a layer to the one before it; layers, steps: the gradient at "
    "the first one by that at the last; reach: neurons that the surrogate reaches; firing: spikes "
    "per neuron and time step; image: what the last layer keeps of an image (1: all, 0: nothing)"
)
BAR = 20  # columns of the longest bar of the depth profile


def show(found: Diagnosis, console: Console) -> None:
    """Prints the page."""
    measured, verdict = found.measured, found.verdict
    recipe = found.subject.recipe
    note = " (synthetic images)" if found.synthetic else ""
    say(console, f"{found.subject.title}: gradients of {found.images} images{note}")
    line = f"verdict: {verdict.line()} (for {recipe.train.optimizer})"
    say(console, line, style=f"bold {COLOURS[verdict.word]}", indent="  ")
    for sentence in verdict.sentences():
        say(console, f"  {sentence}", indent="  ")
    if note := found.opening():
        say(console, f"  {note}", indent="  ")
    console.print()
    heat_map(measured, console)
    console.print()
    say(
        console,
        f"surrogate: {recipe.neuron.surrogate.shape}, height "
        f"{recipe.neuron.surrogate.height:g}, width {found.width:.3g}; its neurons pass on "
        f"{in_percent(found.transmission)} of what they would if it were flat",
    )
    say(
        console,
        f"neurons fire {verdict.firing_rate:.3f} times per time step; a membrane's gradient keeps "
        f"{in_percent(verdict.time_factor)} from step to step",
    )
    console.print()
    as_is = Variant("as it is", "", measured, float(found.overlap[-1]))
    show_table(
        console,
        "one thing changed at a time",
        HEAD,
        [_row(variant) for variant in (as_is, *found.variants)],
        legend=LEGEND,
    )
    for cause in found.causes():
        say(console, cause)
    console.print()
    say(console, f"conclusion: {found.conclusion()}", style="bold", indent="  ")
    for cure in found.cures:
        show_whole(console, f"  {cure.change}")
        say(console, f"      {cure.reason}", indent="      ")


def _row(variant: Variant) -> tuple[str, ...]:
    """A row below `HEAD`."""
    shown = variant.measured
    depth, time = shown.depth_ratio, shown.time_ratio
    return (
        variant.change or variant.name,
        f"{shown.depth_gain:.3g}",
        "-" if depth is None else times(depth),
        "-" if time is None else times(time),
        in_percent(1 - shown.outside.mean()),
        f"{shown.firing.mean():.3f}",
        two_digits(variant.overlap),
    )


def heat_map(measured: Measurement, console: Console, most: int = 40) -> None:
    """Layer by time step on a log scale, with the depth profile at the right; the time profile below."""
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
    shown = -(-steps // skip)
    room = console.width - wide - 2 - len("  1.0e-05 ●")  # of the cells and the bar
    cell_width = 2 if 2 * shown + 6 <= room else 1
    bar_width = min(BAR, max(0, room - cell_width * shown))
    head = (
        "size of the gradient by layer and time step (root mean square, log scale); the input is at the top, "
        "time runs to the right"
    )
    say(console, head + (f"; 1 layer in {stride}" if stride > 1 else ""))

    def cells(values: np.ndarray) -> Text:
        line = Text()
        for value in values[::skip]:
            line.append_text(_cell(value, low, high, console, cell_width))
        return line

    profile = _log10(measured.depth_profile)
    for row, name in zip(range(0, layers, stride), names, strict=True):
        text = Text(f"{name:<{wide}}  ")
        text.append_text(cells(logs[row]))
        length = 0 if not np.isfinite(profile[row]) else (profile[row] - low) / (high - low)
        bar = "─" * max(0, round(bar_width * float(np.clip(length, 0, 1)))) + "●"
        text.append(f"  {measured.depth_profile[row]:8.1e} {bar}")
        console.print(text, soft_wrap=True)
    text = Text(f"{'time profile':<{wide}}  ")
    text.append_text(cells(_log10(measured.time_profile)))
    console.print(text, soft_wrap=True)
    scale = Text(f"{'scale':<{wide}}  {10**low:.1e} ")
    for level in np.linspace(low, high, 8):
        scale.append_text(_cell(level, low, high, console, 2))
    scale.append(f" {10**high:.1e}")
    console.print(scale, soft_wrap=True)


def _cell(value: float, low: float, high: float, console: Console, width: int) -> Text:
    """A colour on a terminal that has at least 256 of them, else a block of that height."""
    if not np.isfinite(value):
        return Text(("·" if value < 0 else "!") * width)
    level = float(np.clip((value - low) / (high - low), 0, 1))
    if console.no_color or console.color_system not in ("256", "truecolor"):
        return Text(BLOCKS[1 + round(level * (len(BLOCKS) - 2))] * width)
    return Text(" " * width, style=f"on rgb({','.join(str(c) for c in _colour(level))})")


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
