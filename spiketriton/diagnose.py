"""python -m spiketriton.diagnose RECIPE|RUN [key=value ...] [--json] [--out DIR] [--batches N]"""

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from spiketriton import environment
from spiketriton.calibration import (
    FLAT,
    TARGET_GAIN,
    TARGET_TRANSMISSION,
    Calibration,
    calibrate,
    probe_batches,
    wants_calibration,
)
from spiketriton.checkpoint import Checkpoints
from spiketriton.commandline import Parser
from spiketriton.config import Recipe, load_recipe
from spiketriton.config import replace as change
from spiketriton.data import Data, build_data
from spiketriton.errors import EXIT_DONE, UserError, one_line, run_command
from spiketriton.gradients import elements_per_image
from spiketriton.losses import build_loss
from spiketriton.models import Network, build_model
from spiketriton.neurons import Norm, SpikingNeuron
from spiketriton.probing import Batch, Prober
from spiketriton.randomness import seed_everything
from spiketriton.runfolder import RunFolder
from spiketriton.verdict import COLOURS, Cure, Measurement, Verdict, cures, depth_gain, judge, times

EPILOG = """\
examples:
  python -m spiketriton.diagnose recipes/quickstart.toml
  python -m spiketriton.diagnose recipes/imagenette_r50.toml data.name=synthetic
  python -m spiketriton.diagnose runs/quickstart-20250101-120000 --json

Nothing is trained. A recipe is measured at the weights that training starts from, a run at those of
its newest checkpoint. Exit codes: 0 whatever the verdict, 2 a mistake in the command or the recipe,
1 anything else."""

# neurons x time steps x images of one batch: how much is measured at a time
BUDGET = {"cpu": 24e6, "cuda": 400e6}
FEWEST, MOST = 2, 32
BLOCKS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Subject:
    """What is diagnosed: a recipe with fresh weights, or a run with those of a checkpoint.

    The calibration is the run's own; None where the width is a number or is still to be measured.
    """

    recipe: Recipe
    title: str
    state: dict[str, Tensor] | None = None
    calibration: Calibration | None = None
    step: int = 0


@dataclass(frozen=True)
class Switch:
    """One thing changed, all else equal, and what was measured then.

    change: the recipe line that does it; "" for what no recipe can do.
    """

    name: str
    change: str
    measured: Measurement

    @property
    def gain(self) -> float:
        return depth_gain(self.measured)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("diagnose", "Measure gradients through depth and time, and say why.", EPILOG)
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


def find_subject(target: str, overrides: Sequence[str], warn: Callable[[str], None]) -> Subject:
    """UserError: there is neither a recipe nor a run, or it has no spiking layers."""
    path = Path(target)
    if not path.is_dir():
        subject = Subject(load_recipe(path, overrides), f"recipe {path}")
    else:
        folder = RunFolder(path)
        if not folder.recipe.is_file():
            raise UserError(
                f"{path} holds no run (no recipe.toml); accepted: a recipe file or a run folder"
            )
        recipe = change(folder.load_recipe(), *overrides)
        state = Checkpoints(folder.checkpoints, recipe.checkpoint.keep, warn).load()
        if state is None:
            raise UserError(f"{path} holds no checkpoint yet; diagnose its recipe instead")
        kept = state.get("calibration")
        subject = Subject(
            recipe,
            f"run {path}, after step {state['step']}",
            state["model"],
            Calibration.of_state(kept) if kept and wants_calibration(recipe) else None,
            state["step"],
        )
    if subject.recipe.neuron.kind == "relu":
        raise UserError(
            'neuron.kind = "relu": an ANN has neither time nor a surrogate to diagnose; accepted: "if", "lif" or "plif"'
        )
    return subject


class Clinic:
    """Measures the subject and its variants on the same images, from the same weights."""

    def __init__(self, subject: Subject, batches: int) -> None:
        self.subject = subject
        recipe = subject.recipe
        self.device = environment.choose_device(recipe.train.device).value
        environment.set_up(recipe.train, self.device)
        probe = change(
            recipe,
            f"train.batch_size={MOST}",
            "train.accumulate=1",
            "data.workers=0",
            "data.augment=none",
        )
        if recipe.data.train_images:
            few = min(MOST, recipe.data.train_images)
            probe = change(probe, f"train.batch_size={few}")
        self.data: Data = build_data(probe)
        self.loss = build_loss(recipe.loss)
        model = self.build(recipe)
        shape = (self.data.channels, self.data.image_size, self.data.image_size)
        neurons = sum(elements_per_image(model, shape, self.device))
        fit = int(BUDGET[self.device.type] / (neurons * recipe.time_steps))
        images = min(MOST, max(FEWEST, fit))
        self.batches: list[Batch] = probe_batches(self.data, self.device, batches, images)
        self.calibration = subject.calibration
        if wants_calibration(recipe) and self.calibration is None:
            self.calibration = calibrate(recipe, model, self.batches, self.loss)
        # a width for each layer, which every variant keeps unless the width is what it changes
        width = recipe.neuron.surrogate.width
        names = [name for name, _ in model.spiking_layers()]
        self.widths = (
            self.calibration.widths if self.calibration else {n: float(width) for n in names}
        )

    @property
    def images(self) -> int:
        return sum(len(images) for images, _ in self.batches)

    def build(self, recipe: Recipe) -> Network:
        """The net at the subject's weights; what the variant has no use for is left out."""
        seed_everything(recipe.seed)
        data = self.data
        model = build_model(
            recipe, classes=len(data.classes), channels=data.channels, image_size=data.image_size
        )
        if self.subject.state is not None:
            try:
                model.load_state_dict(self.subject.state, strict=False)
            except RuntimeError as error:
                raise UserError(
                    f"the run's weights do not fit this recipe: {one_line(error)[:160]}"
                ) from None
        return model.to(self.device)

    def measure(
        self, *changes: str, scale: float = 1.0, prepare: Callable[[Network], None] | None = None
    ) -> Measurement:
        """With changes of the recipe, widths times `scale`, and whatever else `prepare` does."""
        model = self.build(change(self.subject.recipe, *changes))
        for name, layer in model.spiking_layers():
            layer.surrogate = replace(layer.surrogate, width=self.widths[name] * scale)
        if prepare:
            prepare(model)
        return Prober(model, self.batches, self.loss).measure()

    def with_width(self, name: str, scale: float) -> Switch:
        """All widths times `scale`."""
        widths = {width * scale for width in self.widths.values()}
        line = f"neuron.surrogate.width={widths.pop():.3g}" if len(widths) == 1 else ""
        return Switch(name, line, self.measure(scale=scale))

    def switches(self) -> list[Switch]:
        """Everything that can be switched, one at a time."""
        recipe, neuron = self.subject.recipe, self.subject.recipe.neuron
        found: list[tuple[str, str]] = []
        if neuron.surrogate.height != 1:
            found.append(("surrogate height 1", "neuron.surrogate.height=1"))
        if neuron.reset != "none":
            detached = neuron.detach_reset
            name = "gradient through the reset" if detached else "no gradient through the reset"
            found.append((name, f"neuron.detach_reset={str(not detached).lower()}"))
            found.append(("no reset", "neuron.reset=none"))
        if neuron.kind == "if":
            found.append(("a leak (tau 2)", "neuron.kind=lif"))
        else:
            found.append(("no leak", "neuron.kind=if"))
        if self.subject.state is None:  # other norms have other weights
            off = recipe.model.norm != "none"
            found.append(("no norm", "model.norm=none") if off else ("batch norm", "model.norm=bn"))
        made = [
            self.with_width("surrogate half as wide", 0.5),
            self.with_width("surrogate twice as wide", 2.0),
        ]
        made += [Switch(name, line, self.measure(line)) for name, line in found]
        made.append(Switch("no gradient from step to step", "", self.measure(prepare=cut_time)))
        return made


def cut_time(model: Network) -> None:
    """Cuts the membrane's gradient between time steps; spikes stay as they are."""
    for module in model.modules():
        if isinstance(module, Norm):
            module.fused = False  # so that the neuron is called by itself
    for _, layer in model.spiking_layers():
        layer.forward = _Stepwise(layer)  # type: ignore[method-assign]


class _Stepwise:
    """Calls a neuron one time step after the other, the membrane detached in between."""

    def __init__(self, neuron: SpikingNeuron) -> None:
        self.neuron, self.call = neuron, neuron.forward

    def __call__(self, x: Tensor) -> Tensor:
        neuron, whole = self.neuron, self.neuron.probe
        if neuron.stateful:  # neurons are being counted
            return self.call(x)
        neuron.stateful, spikes = True, []
        try:
            for t in range(len(x)):
                neuron.probe = None if whole is None else whole[t : t + 1]
                spikes.append(self.call(x[t : t + 1]))
                neuron.detach()
        finally:
            neuron.stateful, neuron.probe = False, whole
            neuron.reset()
        return torch.cat(spikes)


@dataclass(frozen=True)
class Diagnosis:
    """All that was found; `as_json` is complete."""

    subject: Subject
    measured: Measurement
    verdict: Verdict
    switches: list[Switch]
    width: float  # the geometric mean over layers
    transmission: float
    better_width: float | None
    cures: list[Cure]
    images: int
    synthetic: bool
    device: str

    def causes(self) -> list[str]:
        """For each axis that is not healthy, the switches that bring it nearest to even."""
        told = []
        for axis in self.verdict.axes:
            if not axis.limits_reached or not axis.ratio:
                continue
            tried = []
            for switch in self.switches:
                judged = judge(switch.measured, self.subject.recipe.train.optimizer)
                ratio = (judged.depth if axis.name == "depth" else judged.time).ratio
                if ratio and abs(math.log(ratio)) < 0.9 * abs(math.log(axis.ratio)):
                    tried.append((abs(math.log(ratio)), switch.change or switch.name, ratio))
            best = [f"{name} ({times(ratio)})" for _, name, ratio in sorted(tried)[:3]]
            told.append(
                f"{axis.name}: {times(axis.ratio)}; nearest to even with {', '.join(best)}"
                if best
                else f"{axis.name}: {times(axis.ratio)}; nothing that was switched lessens it"
            )
        return told

    def as_json(self) -> dict[str, Any]:
        verdict = self.verdict
        return _plain(
            {
                "subject": self.subject.title,
                "recipe": self.subject.recipe.name,
                "step": self.subject.step,
                "data": self.subject.recipe.data.name,
                "synthetic": self.synthetic,
                "images": self.images,
                "device": self.device,
                "time_steps": self.measured.grad_input.shape[1],
                "optimizer": self.subject.recipe.train.optimizer,
                "verdict": {
                    **asdict(verdict),
                    "word": verdict.word,
                    "line": verdict.line(),
                    "findings": verdict.findings(),
                },
                "width": self.width,
                "transmission": self.transmission,
                "better_width": self.better_width,
                "depth_profile": self.measured.depth_profile.tolist(),
                "time_profile": self.measured.time_profile.tolist(),
                "causes": self.causes(),
                "switches": [
                    {
                        "name": switch.name,
                        "change": switch.change,
                        "depth_gain": switch.gain,
                        "time_ratio": judge(switch.measured).time.ratio,
                        "outside_share": float(switch.measured.outside.mean()),
                        "firing_rate": float(switch.measured.firing.mean()),
                        "depth_profile": switch.measured.depth_profile.tolist(),
                    }
                    for switch in self.switches
                ],
                "cures": [asdict(cure) for cure in self.cures],
                "rows": self.measured.rows(),
            }
        )


def diagnose(subject: Subject, batches: int = 1) -> Diagnosis:
    """Measures the subject as it is and with each thing switched in turn."""
    clinic = Clinic(subject, batches)
    recipe = subject.recipe
    measured = clinic.measure()
    verdict = judge(measured, recipe.train.optimizer)
    switches = clinic.switches()
    flat = clinic.measure(prepare=_flatten).transmission
    detached = [] if recipe.neuron.reset == "none" else ["neuron.detach_reset=true"]
    by_gain = recipe.train.optimizer == "sgd"

    def goal(scale: float) -> float:
        """What the calibration aims at, with all widths times `scale`, by what it should be."""
        if by_gain:
            return depth_gain(clinic.measure(scale=scale)) / TARGET_GAIN
        return _share(clinic.measure(*detached, scale=scale), flat) / TARGET_TRANSMISSION

    factor = _root(goal)
    width = float(np.exp(np.mean(np.log(list(clinic.widths.values())))))
    better = None if factor is None else width * factor
    found = cures(verdict, recipe)
    far = factor is not None and not 0.5 < factor < 2
    if factor is not None and far:
        switches.insert(2, clinic.with_width("surrogate as wide as it should be", factor))
    if far and not isinstance(recipe.neuron.surrogate.width, str):
        why = (
            f"a depth gain of {TARGET_GAIN:g}, which SGD needs"
            if by_gain
            else f"{100 * TARGET_TRANSMISSION:.0f} % of the gradient passed on by each layer, which suits AdamW"
        )
        found = [cure for cure in found if not cure.change.startswith("neuron.surrogate.width")]
        found.insert(0, Cure("neuron.surrogate.width=auto", f"about {better:.2g}: {why}"))
    return Diagnosis(
        subject=subject,
        measured=measured,
        verdict=verdict,
        switches=switches,
        width=width,
        transmission=_share(clinic.measure(*detached), flat),
        better_width=better,
        cures=found,
        images=clinic.images,
        synthetic=clinic.data.synthetic,
        device=clinic.device.type,
    )


def _flatten(model: Network) -> None:
    """A surrogate without edge, and the reset detached: all that the neurons could pass on."""
    for _, layer in model.spiking_layers():
        width = FLAT * layer.v_threshold
        layer.surrogate = replace(layer.surrogate, width=width)
        layer.detach_reset = True


def _share(measured: Measurement, flat: np.ndarray) -> float:
    shares = np.divide(measured.transmission, flat, out=np.zeros_like(flat), where=flat > 0)
    return float(np.exp(np.log(shares).mean())) if (shares > 0).all() else 0.0


def _root(goal: Callable[[float], float], rounds: int = 5) -> float | None:
    """The scale at which goal(scale) is 1, by secants in logarithms; None when it is not found.

    A few rounds, each a measurement, are enough for two digits.
    """
    x, slope = 0.0, 0.6  # that of most nets not far from their target
    before: tuple[float, float] | None = None
    for _ in range(rounds):
        value = goal(math.exp(x))
        if not 0 < value < math.inf:
            # nothing arrives, or too much: half a decade on
            x += 1.2 if value == 0 else -1.2
            before = None
            continue
        y = math.log(value)
        if abs(y) < 0.05:
            return math.exp(x)
        if before is not None:
            slope = max(0.2, (y - before[1]) / (x - before[0]))
        before = (x, y)
        x -= float(np.clip(y / slope, -2.5, 2.5))
    return math.exp(x) if before is not None and abs(before[1]) < 0.25 else None


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
        goal = (
            f"depth gain {TARGET_GAIN:g}"
            if recipe.train.optimizer == "sgd"
            else f"{100 * TARGET_TRANSMISSION:.0f} % of the gradient passed"
        )
        told = (
            f"for {recipe.train.optimizer} a width of about {found.better_width:.2g} suits ({goal})"
        )
        console.print(Text(told))
    console.print(
        Text(
            f"firing rate {verdict.firing_rate:.3f}; a membrane's gradient keeps "
            f"{verdict.time_factor:.0%} from step to step"
        )
    )
    console.print()
    table = Table(title="one thing changed at a time", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for name in ("gain", "layers", "steps", "reach", "firing"):
        table.add_column(name, justify="right", no_wrap=True)
    for switch in (Switch("as it is", "", measured), *found.switches):
        judged = judge(switch.measured, recipe.train.optimizer)
        table.add_row(
            switch.change or switch.name,
            f"{switch.gain:.3g}",
            times(judged.depth.ratio) if judged.depth.ratio is not None else "-",
            times(judged.time.ratio) if judged.time.ratio is not None else "-",
            f"{1 - judged.dead_share:.0%}",
            f"{judged.firing_rate:.3f}",
        )
    console.print(table)
    console.print(
        Text(
            "gain: through depth; layers, steps: dL/dx of the first by that of the last; reach: "
            "neurons that the surrogate reaches"
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


def draw(found: Diagnosis, path: Path) -> None:
    """Heat map, depth profile with the surrogate halved and doubled, and time profile, as PNG."""
    import matplotlib
    from matplotlib.ticker import MaxNLocator

    from spiketriton.pictures import BLUE, GREY, ORANGE, STYLE, _figure, _heat_map

    measured = found.measured
    note = " (synthetic images)" if found.synthetic else ""
    with matplotlib.rc_context(STYLE):
        figure = _figure(13, 3.4 + 0.13 * max(len(measured.names), 14))
        heat, depth, time = figure.subplots(1, 3, width_ratios=[1.2, 1, 0.8])
        title = f"{found.subject.recipe.name}{note}: {found.verdict.line()}"
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        logs = _log10(measured.grad_input)
        logs = np.where(np.isfinite(logs), logs, np.nan)
        names = list(measured.names)
        _heat_map(heat, logs, names, "viridis", "RMS of dL/dx", "log10 of the RMS of dL/dx")
        lines = [("as it is", measured, BLUE)]
        for switch in found.switches:
            if switch.name.startswith("surrogate half"):
                lines.append(("half as wide", switch.measured, GREY))
            if switch.name.startswith("surrogate twice"):
                lines.append(("twice as wide", switch.measured, ORANGE))
        for label, shown, colour in lines:
            for axes, profile, flip in (
                (depth, shown.depth_profile, True),
                (time, shown.time_profile, False),
            ):
                positive = np.where(profile > 0, profile, np.nan)
                places = range(len(profile))
                x, y = (positive, places) if flip else (places, positive)
                axes.plot(x, y, color=colour, marker="o", ms=3, lw=1.3, label=label)
        depth.set_xscale("log")
        depth.set_ylim(heat.get_ylim())
        depth.yaxis.set_major_locator(MaxNLocator(integer=True))
        depth.set_ylim(heat.get_ylim())
        gain = found.verdict.depth.gain
        depth.set(title=f"Depth, gain {gain:.3g}" if gain else "Depth", xlabel="RMS of dL/dx")
        depth.legend(fontsize=8)
        time.set_yscale("log")
        gain = found.verdict.time.gain
        time.set(title=f"Time, gain {gain:.3g}" if gain else "Time", xlabel="time step")
        time.set_ylabel("RMS of dL/dx, mean over layers")
        figure.savefig(path)


def _plain(value: Any) -> Any:
    """JSON has no word for what is not finite: null. Tuples become lists."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
