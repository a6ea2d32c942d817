"""What a recipe leaves to be measured before training: the surrogate's width, the start of weights.

model.residual_gain = "auto" (`block_start`) and model.start = "auto" (`layer_start`) are settled
first, because they decide how images get through; then
neuron.surrogate.width = "auto" | "auto_per_layer", which decides how gradients return.

What a width is judged by stands in `aims`. It is measured on a few batches of the training images,
always the same, in training mode. The forward pass does not depend on the width, so that all goals
are smooth, growing functions of it. Widths in steps of four from 1.28 thresholds are tried until two
have the target between them; regula falsi on log(width) finds the rest. Nothing is random.

"auto_per_layer" starts from there and lets each layer meet the target by itself: of a depth gain
the ratio of its dL/dx to the next layer's, of a transmission its own.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch

from spiketriton.config import Recipe
from spiketriton.data import Data
from spiketriton.gradients.aims import OPENED, Aim, Goal, aim_of
from spiketriton.gradients.block_start import BlockStart, find_block_start, wants_block_start
from spiketriton.gradients.layer_start import LayerStart, find_layer_start, wants_layer_start
from spiketriton.gradients.measurement import Measurement, gain_through
from spiketriton.gradients.monitor import elements_per_image
from spiketriton.gradients.probing import Batch, Loss, Prober, cut_time
from spiketriton.models import Network
from spiketriton.plain import of_plain
from spiketriton.training.losses import build_loss

TOLERANCE = 0.01  # relative, of the target
# widths are in units of the threshold
SCAN = tuple(0.02 * 4.0**k for k in range(8))  # those tried first ...
START = 3  # ... beginning with this one
FLAT = 1e5  # as good as no edge
# each layer stays within this factor of the common width
LAYER_RANGE = 8.0
LAYER_ROUNDS = 16
BATCHES = 2
# images of a batch: as many as keep (neurons x time steps) within the budget, from FEWEST to MOST;
# where not even FEWEST do, they are cropped, to a multiple of CROP
BUDGET = {"cpu": 24e6, "cuda": 4e9}
FEWEST, MOST = 4, {"cpu": 32, "cuda": 64}
CROP = 32


@dataclass(frozen=True)
class Calibration:
    """What was chosen and why; plain data, saved with the run.

    goal, target, why: the Aim; `reached` is the value of the goal at the widths.
    width: the common one; `widths`: that of each spiking layer.
    met: whether the target was reached within the tolerance (of "auto_per_layer": by all layers).
    scan: (width, value of the goal) of the widths tried first, from narrow to wide.
    missed: the layers that are off the target by more than 5 %.
    blocks: what residual blocks start at, where the recipe leaves that to be measured.
    layers: the same of layers without skip connections.
    held: (step, block gain that was found, width since then) of each time that the widths were
        narrowed during training (`holding`).
    """

    mode: str
    goal: Goal | None
    why: str
    target: float
    reached: float
    width: float
    widths: dict[str, float]
    met: bool
    images: int
    scan: tuple[tuple[float, float], ...]
    missed: tuple[str, ...] = ()
    blocks: BlockStart | None = None
    layers: LayerStart | None = None
    held: tuple[tuple[int, float, float], ...] = ()

    def start(self, model: Network) -> None:
        """Makes a network with fresh weights start as was found."""
        if self.blocks is not None:
            self.blocks.apply(model)
        if self.layers is not None:
            self.layers.apply(model)
        self.apply(model)

    def apply(self, model: Network) -> None:
        """Sets the widths of the spiking layers of `model`, whatever its weights."""
        for name, layer in model.spiking_layers():
            layer.surrogate = replace(layer.surrogate, width=self.widths[name])

    def state_dict(self) -> dict[str, Any]:
        """Plain data, for JSON and for checkpoints."""
        scan, held = ([list(row) for row in rows] for rows in (self.scan, self.held))
        return {**asdict(self), "scan": scan, "missed": list(self.missed), "held": held}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> "Calibration":
        """ValueError: it is no calibration."""
        if not isinstance(state, dict):
            raise ValueError("it is no object")
        return of_plain(cls, state | {"goal": state.get("goal") or None})

    def lines(self) -> list[str]:
        """What was chosen and why, for the user."""
        start = [found.line() for found in (self.blocks, self.layers) if found]
        if self.mode == GIVEN:
            return start
        per_layer = self.mode == "auto_per_layer"
        chosen = f"{self.width:.4g}"
        if per_layer:
            low, high = min(self.widths.values()), max(self.widths.values())
            chosen = f"{low:.4g} to {high:.4g} by layer (one for all: {chosen})"
        lines = [
            *start,
            f"surrogate width: {chosen}; {self.goal} {self.reached:.3g}, target "
            f"{self.target:g}: {self.why} ({self.images} images)",
        ]
        if not self.met and not per_layer:
            low, high = (min(v for _, v in self.scan), max(v for _, v in self.scan))
            lines.append(
                f"no width reaches a {self.goal} of {self.target:g}: from {self.scan[0][0]:g} to "
                f"{self.scan[-1][0]:g} it goes from {low:.3g} to {high:.3g}; the nearest is taken"
            )
        elif not self.met:
            lines.append(
                f"no width between 1/{LAYER_RANGE:g} and {LAYER_RANGE:g} times the common one "
                f"reaches the target in {len(self.missed)} of {len(self.widths)} layers: "
                f"{', '.join(self.missed[:4])}{' ...' if len(self.missed) > 4 else ''}"
            )
        return lines


def aim_after(recipe: Recipe, found: Calibration | None) -> Aim:
    """The aim of the recipe's width, with what was found before training, if anything was."""
    return aim_of(recipe) if found is None else _aim(recipe, found.blocks, found.layers)


def _aim(recipe: Recipe, blocks: BlockStart | None, layers: LayerStart | None) -> Aim:
    return aim_of(
        recipe,
        gain=None if blocks is None else blocks.gain,
        identity=None if layers is None else layers.identity,
    )


def wants_calibration(recipe: Recipe) -> bool:
    """Whether the recipe asks for one; the ANN twin has no surrogate, and its blocks start at 0."""
    width = isinstance(recipe.neuron.surrogate.width, str) and recipe.neuron.kind != "relu"
    return width or wants_block_start(recipe) or wants_layer_start(recipe)


def probe_batches(
    data: Data, model: Network, device: torch.device, count: int = BATCHES
) -> list[Batch]:
    """The first `count` batches of the training stream, each cut to a few images.

    As many as are quick to measure with `model` on `device`, and only their middles where few large
    ones would be slow: what a network of convolutions makes of a gradient depends little on the size
    of its images. Always the same ones for a recipe, its seed and a kind of device, on every rank.
    """
    size = data.image_size
    neurons = sum(elements_per_image(model, (data.channels, size, size), device))
    fit = BUDGET[device.type] / (neurons * model.time_steps)
    if model.takes_any_size and fit < FEWEST:
        size = min(size, max(2 * CROP, int(size * math.sqrt(fit / FEWEST)) // CROP * CROP))
        fit *= (data.image_size / size) ** 2
    images, margin = min(MOST[device.type], max(FEWEST, int(fit))), (data.image_size - size) // 2
    middle = slice(margin, margin + size)
    stream_of_all = replace(data.train, rank=0, world_size=1)
    with contextlib.closing(stream_of_all.from_step(0)) as stream:
        found = []
        for x, y in islice(stream, count):
            few = min(images, len(y))
            cropped = x.narrow(-4, 0, few)[..., middle, middle].contiguous()
            found.append((cropped.to(device), y[:few].to(device)))
        return found


def calibrate(
    recipe: Recipe,
    model: Network,
    batches: Sequence[Batch],
    loss: Loss | None = None,
    autocast: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
) -> Calibration:
    """Finds what `recipe` leaves to be measured and sets it in `model`.

    Both the trainer and `diagnose` call it, with the batches of `probe_batches`: what `diagnose`
    recommends is what training takes.

    Args:
        recipe: one for which `wants_calibration` is true.
        model: the recipe's network, at the weights that training starts from.
        batches: what to measure on, on the model's device; see `probe_batches`.
        loss: the recipe's, unless given.
        autocast: the precision of the forward pass.
    """
    loss = build_loss(recipe.loss) if loss is None else loss
    prober = Prober(model, batches, loss, autocast)
    blocks = find_block_start(recipe, model, prober) if wants_block_start(recipe) else None
    layers = find_layer_start(model, prober) if wants_layer_start(recipe) else None
    width = recipe.neuron.surrogate.width
    if isinstance(width, str):
        with opened(recipe, model, blocks):
            aim = _aim(recipe, blocks, layers)
            found = _find_widths(recipe, aim, prober, width, model.last_of_blocks())
    else:
        widths = dict.fromkeys(prober.names, width)
        found = Calibration(
            mode=GIVEN, goal=None, why="", target=0.0, reached=0.0, width=width, widths=widths,
            met=True, images=0, scan=(),
        )  # fmt: skip
    images = sum(len(labels) for _, labels in batches)
    found = replace(found, blocks=blocks, layers=layers, images=images)
    found.apply(model)
    return found


GIVEN = "given"  # the mode of a calibration that had no width to find


def opens(recipe: Recipe, blocks: BlockStart | None) -> bool:
    """Whether residual blocks start so closed that gradients are measured with them opened."""
    gain, _ = _start(recipe, blocks)
    return not isinstance(gain, str) and gain < OPENED


@contextlib.contextmanager
def opened(recipe: Recipe, model: Network, blocks: BlockStart | None) -> Iterator[None]:
    """Residual blocks that start closed, opened to OPENED in here."""
    gain, bias = _start(recipe, blocks)
    if isinstance(gain, str) or gain >= OPENED:
        yield
        return
    model.start_blocks(OPENED, bias)
    try:
        yield
    finally:
        model.start_blocks(gain, bias)


def _start(recipe: Recipe, blocks: BlockStart | None) -> tuple[float | str, float]:
    """The gain and bias of blocks, as measured or else as the recipe has them."""
    if blocks is not None:
        return blocks.gain, blocks.bias
    gain, bias = recipe.model.residual_gain, recipe.model.residual_bias
    return gain, 0.0 if isinstance(bias, str) else bias


def _find_widths(
    recipe: Recipe, aim: Aim, prober: Prober, mode: str, ends: Sequence[str]
) -> Calibration:
    """Without the number of images, which `calibrate` adds."""
    net = WidthProber(prober, recipe.neuron.v_threshold)
    search = Search(aim, net, ends)
    width, value, met = search.common_width()
    widths = np.full(len(net.names), width)
    missed: tuple[str, ...] = ()
    if mode == "auto_per_layer":
        widths, value, missed = search.layer_widths(width)
        met = not missed
    return Calibration(
        mode=mode,
        goal=aim.goal,
        why=aim.why,
        target=aim.target,
        reached=value,
        width=float(width),
        widths={name: float(w) for name, w in zip(net.names, widths, strict=True)},
        met=met,
        images=0,
        scan=tuple(search.scan),
        missed=missed,
    )


class WidthProber:
    """Measures a network with any widths of its surrogates, and leaves them set.

    Args:
        prober: of the network.
        threshold: of its neurons.
    """

    def __init__(self, prober: Prober, threshold: float) -> None:
        self.prober, self.layers, self.names = prober, prober.layers, prober.names
        self.threshold = threshold

    def gradients(
        self, widths: float | np.ndarray, rescaled: bool = False, in_step: bool = False
    ) -> Measurement:
        """The gradients with one width for all layers, or one each [layers].

        in_step: what comes back within a time step: membranes carry no gradient.
        """
        each = np.broadcast_to(widths, len(self.layers))
        for (_, layer), width in zip(self.layers, each, strict=True):
            layer.surrogate = replace(layer.surrogate, width=float(width))
        with cut_time(self.prober.model) if in_step else contextlib.nullcontext():
            return self.prober.measure(rescaled)

    def transmission(self, widths: float | np.ndarray) -> np.ndarray:
        """What each layer passes on of the gradient, relative to a flat surrogate, [layers].

        With the reset detached, and rescaled: flat surrogates make deep nets leave float32.
        """
        all_of_it, passed = self._flat, self._passed(widths)
        return np.divide(passed, all_of_it, out=np.zeros_like(passed), where=all_of_it > 0)

    @cached_property
    def _flat(self) -> np.ndarray:
        return self._passed(FLAT * self.threshold)

    def _passed(self, widths: float | np.ndarray) -> np.ndarray:
        with self._detached_reset():
            return self.gradients(widths, rescaled=True).transmission

    @contextlib.contextmanager
    def _detached_reset(self) -> Iterator[None]:
        kept = [layer.detach_reset for _, layer in self.layers]
        for _, layer in self.layers:
            layer.detach_reset = True
        try:
            yield
        finally:
            for (_, layer), detach in zip(self.layers, kept, strict=True):
                layer.detach_reset = detach


class Search:
    """Finds the widths at which a network meets an aim.

    Args:
        ends: of `Network.last_of_blocks`.
        relative: the width of each layer by the common one, [layers] or one for all.
    """

    def __init__(
        self,
        aim: Aim,
        net: WidthProber,
        ends: Sequence[str],
        relative: float | np.ndarray = 1.0,
    ) -> None:
        self.aim, self.net, self.relative = aim, net, relative
        self.places = np.arange(len(net.names))  # of the layers between which gains are counted
        if aim.goal.startswith("block gain"):
            self.places = np.array([net.names.index(name) for name in ends])
        self.scan: list[tuple[float, float]] = []

    def goal(self, widths: float | np.ndarray) -> tuple[float, np.ndarray]:
        """The value of the goal for all layers together, and for each, [layers].

        0 when nothing arrives, inf when it overflows. The last layer has no gain of its own and
        counts as on target.
        """
        widths = widths * self.relative
        if self.aim.goal == "transmission":
            each = self.net.transmission(widths)
            value = geometric_mean(each)
        else:
            in_step = self.aim.goal == "block gain in a step"
            profile = self.net.gradients(widths, in_step=in_step).depth_profile[self.places]
            value = gain_through(profile)
            nearer = np.append(profile[1:], profile[-1] / self.aim.target)
            each = np.full(len(self.net.names), self.aim.target)  # others keep the common width
            each[self.places] = np.divide(
                profile, nearer, out=np.zeros_like(profile), where=nearer > 0
            )
        return value if math.isfinite(value) else math.inf, each

    def common_width(self) -> tuple[float, float, bool]:
        """One width for all layers, the goal there, and whether that is the target."""
        up = self._scan(START) < self.aim.target
        for place in range(START + 1, len(SCAN)) if up else range(START - 1, -1, -1):
            value = self._scan(place)
            if value >= self.aim.target if up else value <= self.aim.target:
                low, high = self.scan[-2:] if up else self.scan[:2]
                return self._between(*low, *high)
        distance = [abs(math.log(max(v, 1e-300) / self.aim.target)) for _, v in self.scan]
        return *self.scan[int(np.argmin(distance))], False

    def _scan(self, place: int) -> float:
        """The goal at a place of SCAN; infinity counts as too wide."""
        width = SCAN[place] * self.net.threshold
        value, _ = self.goal(width)
        self.scan = sorted([*self.scan, (width, value)])
        return value

    def _between(
        self, low: float, below: float, high: float, above: float
    ) -> tuple[float, float, bool]:
        """Where the goal is met between two widths: regula falsi in logarithms, the Illinois way.

        It halves where a value has no logarithm.
        """
        left, right = math.log(low), math.log(high)
        short, excess = _distance(below, self.aim.target), _distance(above, self.aim.target)
        width = value = math.nan
        side = 0
        for _ in range(24):
            place = (left + right) / 2
            if math.isfinite(short) and math.isfinite(excess):
                place = (left * excess - right * short) / (excess - short)
            width = math.exp(place)
            value, _ = self.goal(width)
            if abs(value / self.aim.target - 1) < TOLERANCE:
                return width, value, True
            missing = _distance(value, self.aim.target)
            if missing < 0:
                left, short = place, missing
                excess *= 0.5 if side < 0 else 1.0
                side = -1
            else:
                right, excess = place, missing
                short *= 0.5 if side > 0 else 1.0
                side = 1
        return width, value, False

    def layer_widths(self, common: float) -> tuple[np.ndarray, float, tuple[str, ...]]:
        """A width for each layer, the goal there, and the names of layers that miss the target.

        A layer's value depends on its own width and hardly on the others', so all change at once, by
        a power of what is missing, damped where a layer oscillates.
        """
        logs = np.full(len(self.net.names), math.log(common))
        low, high = logs - math.log(LAYER_RANGE), logs + math.log(LAYER_RANGE)
        stride, before = np.full(len(logs), 1.3), np.zeros(len(logs))
        best = (math.inf, logs, 0.0, np.zeros(len(logs)))
        for _ in range(LAYER_ROUNDS):
            value, each = self.goal(np.exp(logs))
            error = np.log(np.maximum(each, 1e-6) / self.aim.target)
            worst = float(np.abs(error).max())
            if worst < best[0]:
                best = (worst, logs, value, error)
            if worst < TOLERANCE:
                break
            stride = np.where(error * before < 0, 0.6 * stride, stride)
            before = error
            logs = np.clip(logs - stride * error, low, high)
        _, logs, value, error = best
        names = np.array(self.net.names)
        return np.exp(logs), value, tuple(str(name) for name in names[np.abs(error) > 0.05])


def _distance(value: float, target: float) -> float:
    """In logarithms; infinite for 0 and for infinity."""
    return math.log(value / target) if value > 0 else -math.inf


def geometric_mean(each: np.ndarray) -> float:
    """0 as soon as one of them is."""
    return float(np.exp(np.log(each).mean())) if (each > 0).all() else 0.0
