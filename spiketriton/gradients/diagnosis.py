"""What `diagnose` measures: a net as it is, and with one thing changed at a time."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from spiketriton.config import PlainNet, Recipe, load_recipe
from spiketriton.config import replace as change
from spiketriton.data import Data, build_data
from spiketriton.errors import UserError, one_line
from spiketriton.gradients.calibration import (
    FLAT,
    Calibration,
    aim_of,
    calibrate,
    probe_batches,
    transmission,
    wants_calibration,
)
from spiketriton.gradients.probing import Batch, Prober
from spiketriton.gradients.verdict import (
    Cure,
    Measurement,
    Verdict,
    cures,
    depth_gain,
    judge,
    times,
)
from spiketriton.models import Network, build_model
from spiketriton.neurons import Norm, SpikingNeuron
from spiketriton.runs.checkpoint import Checkpoints
from spiketriton.runs.folder import RunFolder
from spiketriton.training import environment
from spiketriton.training.losses import build_loss
from spiketriton.training.randomness import seed_everything

MOST = 32  # images of a batch
FORGOTTEN = 0.1  # overlap below which a layer tells nothing of an image


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
    overlap: what the last layer still tells of an image (`Prober.overlap`).
    """

    name: str
    change: str
    measured: Measurement
    overlap: float

    @property
    def gain(self) -> float:
        return depth_gain(self.measured)


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
        self.batches: list[Batch] = probe_batches(self.data, model, self.device, batches, MOST)
        self.calibration = subject.calibration
        if wants_calibration(recipe) and self.calibration is None:
            self.calibration = calibrate(recipe, model, self.batches, self.loss)
        # a width for each layer, which every variant keeps unless the width is what it changes
        width = recipe.neuron.surrogate.width
        names = [name for name, _ in model.spiking_layers()]
        self.widths = (
            self.calibration.widths if self.calibration else {n: float(width) for n in names}
        )
        self.width = float(np.exp(np.mean(np.log(list(self.widths.values())))))
        self.overlap = self.prober().overlap()

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

    def prober(
        self, *changes: str, scale: float = 1.0, prepare: Callable[[Network], None] | None = None
    ) -> Prober:
        """With changes of the recipe, widths times `scale`, and whatever else `prepare` does."""
        model = self.build(change(self.subject.recipe, *changes))
        for name, layer in model.spiking_layers():
            width = self.widths.get(name, self.width)  # other blocks may have other layers
            layer.surrogate = replace(layer.surrogate, width=width * scale)
        if prepare:
            prepare(model)
        return Prober(model, self.batches, self.loss)

    def measure(
        self,
        *changes: str,
        scale: float = 1.0,
        prepare: Callable[[Network], None] | None = None,
        tame: bool = False,
    ) -> Measurement:
        """The gradients of `prober`'s net; `tame` as in Prober.measure."""
        return self.prober(*changes, scale=scale, prepare=prepare).measure(tame)

    def with_width(self, name: str, scale: float) -> Switch:
        """All widths times `scale`."""
        widths = {width * scale for width in self.widths.values()}
        line = f"neuron.surrogate.width={widths.pop():.3g}" if len(widths) == 1 else ""
        return self.backward(name, line, self.measure(scale=scale))

    def backward(self, name: str, line: str, measured: Measurement) -> Switch:
        """What leaves the spikes as they are."""
        return Switch(name, line, measured, float(self.overlap[-1]))

    def forward(self, name: str, line: str) -> Switch:
        """What changes the spikes."""
        prober = self.prober(line)
        return Switch(name, line, prober.measure(), float(prober.overlap()[-1]))

    def switches(self) -> list[Switch]:
        """Everything that can be switched, one at a time."""
        model, neuron = self.subject.recipe.model, self.subject.recipe.neuron
        made = [
            self.with_width("surrogate half as wide", 0.5),
            self.with_width("surrogate twice as wide", 2.0),
        ]
        if neuron.surrogate.height != 1:
            line = "neuron.surrogate.height=1"
            made.append(self.backward("surrogate height 1", line, self.measure(line)))
        if neuron.reset != "none":
            detached = neuron.detach_reset
            name = "gradient through the reset" if detached else "no gradient through the reset"
            line = f"neuron.detach_reset={str(not detached).lower()}"
            made.append(self.backward(name, line, self.measure(line)))
            made.append(self.forward("no reset", "neuron.reset=none"))
        if neuron.kind == "if":
            made.append(self.forward("a leak (tau 2)", "neuron.kind=lif"))
        else:
            made.append(self.forward("no leak", "neuron.kind=if"))
        if self.subject.state is None:  # other norms and blocks have other weights
            if model.norm == "none":
                made.append(self.forward("batch norm", "model.norm=bn"))
            else:
                made.append(self.forward("no norm", "model.norm=none"))
            lost = forgets_at(self.overlap) is not None
            if lost and model.block == "plain" and model.name not in get_args(PlainNet):
                made.append(self.forward("spikes added (SEW)", "model.block=sew"))
                made.append(self.forward("membrane shortcut (MS)", "model.block=ms"))
        made.append(
            self.backward("no gradient from step to step", "", self.measure(prepare=cut_time))
        )
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
    overlap: np.ndarray  # [layers], see Prober.overlap
    width: float  # the geometric mean over layers
    transmission: float
    better_width: float | None
    cures: list[Cure]
    images: int
    synthetic: bool
    device: str

    def forgotten(self) -> str:
        """What becomes of the image through depth, in a sentence."""
        first, last = two_digits(self.overlap[0]), two_digits(self.overlap[-1])
        text = f"an image with 5 % noise overlaps with itself by {first} at the first layer and by "
        text += f"{last} at the last"
        lost = forgets_at(self.overlap)
        if lost is not None:
            text += f"; from {self.measured.names[lost]} on it is as unlike as another image"
        return text

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
                "overlap": self.overlap.tolist(),
                "forgotten": self.forgotten(),
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
                        "overlap": switch.overlap,
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
    flat = clinic.measure(prepare=_flatten, tame=True).transmission
    detached = [] if recipe.neuron.reset == "none" else ["neuron.detach_reset=true"]
    aim = aim_of(recipe)

    @cache
    def passed(scale: float) -> float:
        return transmission(clinic.measure(*detached, scale=scale, tame=True), flat)

    def goal(scale: float) -> float:
        """What the calibration aims at, with all widths times `scale`, by what it should be."""
        if not aim.by_gain:
            return passed(scale) / aim.target
        there = measured if scale == 1 else clinic.measure(scale=scale)
        return depth_gain(there) / aim.target

    factor = _root(goal)
    better = None if factor is None else clinic.width * factor
    found = cures(verdict, recipe) + remembering(clinic, switches)
    far = factor is not None and not 0.5 < factor < 2
    if factor is not None and far:
        switches.insert(2, clinic.with_width("surrogate as wide as it should be", factor))
    if far and not isinstance(recipe.neuron.surrogate.width, str):
        found = [cure for cure in found if not cure.change.startswith("neuron.surrogate.width")]
        found.insert(0, Cure("neuron.surrogate.width=auto", f"about {better:.2g}: {aim.why}"))
    return Diagnosis(
        subject=subject,
        measured=measured,
        verdict=verdict,
        switches=switches,
        overlap=clinic.overlap,
        width=clinic.width,
        transmission=passed(1.0),
        better_width=better,
        cures=found,
        images=clinic.images,
        synthetic=clinic.data.synthetic,
        device=clinic.device.type,
    )


def two_digits(overlap: float) -> str:
    """Two digits; what is left of nothing may come out a little below it."""
    return "-" if math.isnan(overlap) else f"{max(overlap, 0.0):.2f}"


def forgets_at(overlap: np.ndarray) -> int | None:
    """The layer from which on nothing is told of an image any more; None if the last one tells."""
    telling = np.flatnonzero(~(overlap < FORGOTTEN))
    after = int(telling[-1]) + 1 if len(telling) else 0
    return after if after < len(overlap) else None


def remembering(clinic: Clinic, switches: Sequence[Switch]) -> list[Cure]:
    """What lets the last layer see the image, where it does not before training."""
    lost, model = forgets_at(clinic.overlap), clinic.subject.recipe.model
    if lost is None or clinic.subject.state is not None:
        return []
    if model.name in get_args(PlainNet):
        if lost < 2:
            return []
        why = "the layers behind see nothing of the image; a resnet with model.block=sew does"
        return [Cure(f"model.depth={lost}", why)]
    blocks = [switch for switch in switches if switch.change.startswith("model.block=")]
    best = max(blocks, key=lambda switch: switch.overlap, default=None)
    if best is None or not best.overlap >= FORGOTTEN:
        return []
    why = f"the last layer then sees the image (overlap {best.overlap:.2f})"
    return [Cure(best.change, why)]


def _flatten(model: Network) -> None:
    """A surrogate without edge, and the reset detached: all that the neurons could pass on."""
    for _, layer in model.spiking_layers():
        width = FLAT * layer.v_threshold
        layer.surrogate = replace(layer.surrogate, width=width)
        layer.detach_reset = True


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


def _plain(value: Any) -> Any:
    """JSON has no word for what is not finite: null. Tuples become lists."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
