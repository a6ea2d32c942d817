"""A subject measured as it is and with one thing changed at a time, all else equal."""

import contextlib
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

from spiketriton.config import PlainNet, Recipe
from spiketriton.config import replace as change
from spiketriton.data import Data, build_data
from spiketriton.errors import UserError, one_line
from spiketriton.gradients.block_start import BlockStart
from spiketriton.gradients.calibration import (
    BATCHES,
    Calibration,
    WidthProber,
    calibrate,
    geometric_mean,
    opened,
    opens,
    probe_batches,
    wants_calibration,
)
from spiketriton.gradients.holding import hold, may_outgrow
from spiketriton.gradients.measurement import Measurement
from spiketriton.gradients.probing import Prober, cut_time
from spiketriton.gradients.subject import Subject
from spiketriton.gradients.verdict import lost_at
from spiketriton.models import Network, build_model
from spiketriton.training.losses import build_loss
from spiketriton.training.placement import Placement
from spiketriton.training.randomness import seed_everything


@dataclass(frozen=True)
class Variant:
    """One thing changed, and what was measured then.

    change: the recipe line that does it; "" for what no recipe can do.
    overlap: what the last layer keeps of an image (`Prober.overlap`).
    """

    name: str
    change: str
    measured: Measurement
    overlap: float


class Experiment:
    """Measures a subject and its variants on the same images, from the same weights.

    Networks are placed, cast and calibrated by the code that trains them, on the images that
    training calibrates on. `batches`: how many of them are measured.
    """

    def __init__(self, subject: Subject, batches: int = 1) -> None:
        self.subject, self.recipe = subject, subject.recipe
        recipe = self.recipe
        self.placement = Placement.set_up(recipe.train)
        self.data = _data(recipe)
        self.loss = build_loss(recipe.loss, self.data.facts.class_counts)
        model = self.build(recipe)
        first = probe_batches(self.data, model, self.placement.device, max(batches, BATCHES))
        self.batches, self._calibrated_on = first[:batches], first[:BATCHES]
        self.calibration = subject.calibration
        if wants_calibration(recipe) and self.calibration is None:
            self.calibration = self._calibrate(recipe, model)
        # a width for each layer, which every variant keeps unless the width is what it changes
        width = recipe.neuron.surrogate.width
        names = [name for name, _ in model.spiking_layers()]
        self.widths = (
            self.calibration.widths if self.calibration else {n: float(width) for n in names}
        )
        self.width = math.exp(np.mean(np.log(list(self.widths.values()))))
        self.overlap = self.prober().overlap()

    @property
    def images(self) -> int:
        return sum(len(labels) for _, labels in self.batches)

    def auto(self) -> Calibration:
        """What training from these weights takes with neuron.surrogate.width = "auto"."""
        known, fresh = self.calibration, self.subject.calibration is None
        if known and fresh and known.mode == "auto":
            return known
        recipe = change(self.recipe, "neuron.surrogate.width=auto")
        return self._calibrate(recipe, self.build(recipe))

    def held(self) -> Calibration | None:
        """What holding the width makes of the run's own at these weights; None where it fits, or for a recipe."""
        found, step = self.calibration, self.subject.step
        if not step or found is None or not may_outgrow(self.recipe, found):
            return None
        model, threshold = self.prober().model, self.recipe.neuron.v_threshold
        batches, autocast = self._calibrated_on, self.placement.autocast
        return hold(model, found, step, threshold, batches, self.loss, autocast)

    def _calibrate(self, recipe: Recipe, model: Network) -> Calibration:
        autocast = self.placement.autocast
        return calibrate(recipe, model, self._calibrated_on, self.loss, autocast)

    def build(self, recipe: Recipe) -> Network:
        """The net at the subject's weights; those that the variant has no use for are left out."""
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
        return self.placement.place(model)

    def prober(self, *changes: str, scale: float = 1.0) -> Prober:
        """Of the net with changes of the recipe, widths times `scale`."""
        recipe = change(self.recipe, *changes)
        model = self.build(recipe)
        blocks = self._blocks(recipe)
        if blocks is not None:
            blocks.apply(model)
        if self.calibration and self.calibration.layers and self.subject.state is None:
            self.calibration.layers.apply(model)
        for name, layer in model.spiking_layers():
            width = self.widths.get(name, self.width)  # other blocks may have other layers
            layer.surrogate = replace(layer.surrogate, width=width * scale)
        return Prober(model, self.batches, self.loss, self.placement.autocast)

    @property
    def opens(self) -> bool:
        """Whether gradients are measured with the blocks opened, see `measure`."""
        return self.subject.state is None and opens(self.recipe, self._blocks(self.recipe))

    def measure(self, prober: Prober, *changes: str) -> Measurement:
        """The gradients of the net that `prober(*changes)` made.

        Into a residual block that starts closed no gradient enters, which says nothing about training:
        fresh ones are opened for this, as they soon are and as `calibrate` does.
        """
        with self._opened(change(self.recipe, *changes), prober.model):
            return prober.measure()

    def _opened(self, recipe: Recipe, model: Network) -> AbstractContextManager[None]:
        if self.subject.state is not None:
            return contextlib.nullcontext()
        return opened(recipe, model, self._blocks(recipe))

    def _blocks(self, recipe: Recipe) -> BlockStart | None:
        """The start that was measured; None for a run, for other blocks, and without a norm."""
        mine = self.recipe.model
        same = (recipe.model.block, recipe.model.norm) == (mine.block, mine.norm)
        fresh = self.subject.state is None
        return self.calibration.blocks if self.calibration and fresh and same else None

    def transmission(self) -> float:
        """What the neurons pass on of the gradient, relative to a flat surrogate: 0 to 1."""
        prober = self.prober()
        net = WidthProber(prober, self.recipe.neuron.v_threshold)
        with self._opened(self.recipe, prober.model):
            return geometric_mean(net.transmission(np.array(list(self.widths.values()))))

    def scaled(self, name: str, scale: float) -> Variant:
        """All widths times `scale`."""
        widths = {width * scale for width in self.widths.values()}
        line = f"neuron.surrogate.width={widths.pop():.3g}" if len(widths) == 1 else ""
        return self._backward(name, line, self.prober(scale=scale))

    def _backward(self, name: str, line: str, prober: Prober) -> Variant:
        """A variant that changes no spike."""
        return Variant(name, line, self.measure(prober), float(self.overlap[-1]))

    def _forward(self, name: str, line: str) -> Variant:
        """A variant that changes the spikes."""
        prober = self.prober(line)
        kept = float(prober.overlap()[-1])
        return Variant(name, line, self.measure(prober, line), kept)

    def variants(self) -> list[Variant]:
        """All of them, one change each."""
        model, neuron = self.recipe.model, self.recipe.neuron
        made = [
            self.scaled("surrogate half as wide", 0.5),
            self.scaled("surrogate twice as wide", 2.0),
        ]
        if neuron.surrogate.height != 1:
            line = "neuron.surrogate.height=1"
            made.append(self._backward("surrogate height 1", line, self.prober(line)))
        if neuron.reset != "none":
            detached = neuron.detach_reset
            name = "gradient through the reset" if detached else "no gradient through the reset"
            line = f"neuron.detach_reset={str(not detached).lower()}"
            made.append(self._backward(name, line, self.prober(line)))
            made.append(self._forward("no reset", "neuron.reset=none"))
        if neuron.kind == "if":
            made.append(self._forward("a leak (tau 2)", "neuron.kind=lif"))
        else:
            made.append(self._forward("no leak", "neuron.kind=if"))
        if self.subject.state is None:  # other norms and blocks have other weights
            if model.norm == "none":
                made.append(self._forward("batch norm", "model.norm=bn"))
            else:
                made.append(self._forward("no norm", "model.norm=none"))
            lost = lost_at(self.overlap) is not None
            if lost and model.block == "plain" and model.name not in get_args(PlainNet):
                made.append(self._forward("spikes added (SEW)", "model.block=sew"))
                made.append(self._forward("membrane shortcut (MS)", "model.block=ms"))
        prober = self.prober()
        with cut_time(prober.model):
            made.append(self._backward("no gradient from step to step", "", prober))
        return made


def _data(recipe: Recipe) -> Data:
    """The data as training has them; a batch larger than a small data set is reduced to it."""
    changes = ["data.workers=0"]
    if 0 < recipe.data.train_images < recipe.train.batch_size:
        few = recipe.data.train_images
        changes += [f"train.batch_size={few}", "train.accumulate=1", "train.micro_batch=0"]
    return build_data(change(recipe, *changes))
