"""A subject measured as it is and with one thing changed at a time, all else equal."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from torch import nn

from spiketriton.config import replace as change
from spiketriton.config.names import BLOCK_NETS, PARALLEL
from spiketriton.data import build_data
from spiketriton.diagnose.diagnosed import Subject
from spiketriton.gradients.measurement import Measurement
from spiketriton.gradients.prober import Prober, probe_batches
from spiketriton.gradients.through_time import cut_time
from spiketriton.gradients.verdict import CLOSED, starts_closed
from spiketriton.models import Network, build_model
from spiketriton.models.blocks import BlockNetwork
from spiketriton.neurons import Norm
from spiketriton.plugins.tasks import build_loss
from spiketriton.system.errors import UserError, one_line
from spiketriton.training.placement import Placement
from spiketriton.training.randomness import seed_everything


class Change(StrEnum):
    """What an ablation changes."""

    NOTHING = "as it is"
    OPENED = "branches opened"
    HALF_WIDTH = "surrogate half as wide"
    TWICE_WIDTH = "surrogate twice as wide"
    HEIGHT = "surrogate height 1"
    SHORTCUT = "the other gradient of shortcuts"
    RESET_ATTACHED = "gradient through the reset"
    RESET_DETACHED = "no gradient through the reset"
    NO_RESET = "no reset"
    LEAK = "a leak (tau 2)"
    NO_LEAK = "no leak"
    NORM = "batch norm"
    NO_NORM = "no norm"
    SEW = "spikes added (SEW)"
    MS = "membrane shortcut (MS)"
    CUT_TIME = "no gradient from step to step"


CHANGES_SPIKES = (
    *(Change.NO_RESET, Change.LEAK, Change.NO_LEAK),
    *(Change.NORM, Change.NO_NORM, Change.SEW, Change.MS),
)


@dataclass(frozen=True)
class Ablation:
    """One thing changed, and what was measured then.

    override: the recipe line that does it; "" for what no recipe can do.
    overlap: what the last layer keeps of an image (`Prober.overlap`).
    """

    change: Change
    override: str
    measured: Measurement
    overlap: float


class Experiment:
    """Measures a subject and its ablations on the same images, from the same weights.

    Networks are placed and cast by the code that trains them. `batches`: how many are measured.
    """

    def __init__(self, subject: Subject, batches: int = 1) -> None:
        self.subject, self.recipe = subject, subject.recipe
        recipe = self.recipe
        self.placement = Placement.set_up(recipe.train)
        changes, few = ["data.workers=0"], recipe.data.train_images
        if 0 < few < recipe.train.batch_size:  # a batch larger than a small data set
            changes += [f"train.batch_size={few}", "train.accumulate=1", "train.micro_batch=0"]
        self.data = build_data(change(recipe, *changes))
        self.loss = build_loss(recipe.loss, self.data.facts.class_counts)
        model = self.build()
        if not model.spiking_layers():
            left = "; ".join(f"{name} ({why})" for name, why in model.unmeasured.items())
            raise UserError(
                f"{subject.title}: nothing to measure: {left or 'the network has no spiking neuron'}"
            )
        self.batches = probe_batches(self.data, model, self.placement.device, batches)
        # a width for each layer, which every ablation keeps unless the width is what it changes
        self.widths = {name: layer.surrogate.width for name, layer in model.spiking_layers()}
        self.width = math.exp(np.mean(np.log([float(w) for w in self.widths.values()])))
        self.has_surrogate = any(layer.kind != "ilif" for _, layer in model.spiking_layers())
        self.signal = self.prober().signal()

    @property
    def images(self) -> int:
        return sum(len(batch[1]) for batch in self.batches)

    def build(self, *changes: str) -> Network:
        """The net at the subject's weights; those that the ablation has no use for are left out."""
        seed_everything(self.recipe.seed)
        model = build_model(change(self.recipe, *changes), **self.data.facts.sizes)
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
        model = self.build(*changes)
        for name, layer in model.spiking_layers():
            width = self.widths.get(name, self.width)  # other blocks may have other layers
            layer.surrogate = replace(layer.surrogate, width=width * scale)
        return Prober(model, self.batches, self.loss, self.placement.autocast)

    def opens(self, *changes: str) -> bool:
        """Whether the gradients of the net with these changes are measured with its blocks opened, see `measure`."""
        return self.subject.state is None and starts_closed(change(self.recipe, *changes).model)

    def measure(self, prober: Prober, *changes: str, time: bool = False) -> Measurement:
        """The gradients of the net that `prober(*changes)` made.

        Into a residual block that starts closed little gradient enters, at a gain of 0 none, which says nothing
        about training: fresh ones are opened for this, as they soon are.
        """
        norms = last_norms(prober.model) if self.opens(*changes) else []
        gains = [norm.weight.detach().clone() for norm in norms]
        for norm in norms:
            norm.weight.data.clamp_(min=CLOSED)
        try:
            return prober.measure(time=time)
        finally:
            for norm, gain in zip(norms, gains, strict=True):
                norm.weight.data.copy_(gain)

    def ablations(self) -> list[Ablation]:
        """All of them, one change each."""
        made = []
        own = ":" in self.recipe.model.name  # such a network's neurons have widths of their own
        if self.has_surrogate:
            for kind, scale in ((Change.HALF_WIDTH, 0.5), (Change.TWICE_WIDTH, 2.0)):
                widths = {float(width) * scale for width in self.widths.values()}
                named = len(widths) == 1 and not own
                line = f"neuron.surrogate.width={widths.pop():.3g}" if named else ""
                made.append(self._ablated(kind, line, self.prober(scale=scale)))
        if not own:
            made += [self._ablated(kind, line) for kind, line in self._of_recipe()]
        prober = self.prober()
        assert isinstance(prober.model, Network)
        with cut_time(prober.model):
            made.append(self._ablated(Change.CUT_TIME, "", prober))
        return made

    def _ablated(self, kind: Change, line: str, prober: Prober | None = None) -> Ablation:
        """`line`: the change of the recipe, "" for what no recipe can do. `prober`: of a net that has it otherwise."""
        changes = [] if prober else [line]
        prober = prober or self.prober(*changes)
        signal = prober.signal() if kind in CHANGES_SPIKES else self.signal
        return Ablation(kind, line, self.measure(prober, *changes), float(signal.overlap[-1]))

    def _of_recipe(self) -> Iterator[tuple[Change, str]]:
        """What may be changed in the recipe, and by which line."""
        model, neuron = self.recipe.model, self.recipe.neuron
        if neuron.surrogate.height != 1 and self.has_surrogate:
            yield Change.HEIGHT, "neuron.surrogate.height=1"
        blocks = model.name in BLOCK_NETS
        if blocks and model.block == "plain":
            around = model.shortcut_gradient == "straight_through"
            other = "surrogate" if around else "straight_through"
            yield Change.SHORTCUT, f"model.shortcut_gradient={other}"
        if neuron.resets_by != "none":
            kind = Change.RESET_ATTACHED if neuron.detach_reset else Change.RESET_DETACHED
            yield kind, f"neuron.detach_reset={str(not neuron.detach_reset).lower()}"
            if neuron.kind in ("if", "lif", "plif"):
                yield Change.NO_RESET, "neuron.reset=none"
        if neuron.kind == "if":
            yield Change.LEAK, "neuron.kind=lif"
        elif neuron.kind not in PARALLEL:  # which has other weights
            yield Change.NO_LEAK, "neuron.kind=if"
        if self.subject.state is None:  # other norms and blocks have other weights
            if model.norm == "none":
                yield Change.NORM, "model.norm=bn"
            else:
                yield Change.NO_NORM, "model.norm=none"
            if blocks and model.block == "plain":
                yield Change.SEW, "model.block=sew"
                yield Change.MS, "model.block=ms"


def last_norms(model: nn.Module) -> list[Norm]:
    """The last norm of each residual block."""
    blocks = model.blocks() if isinstance(model, BlockNetwork) else []
    found = [block.stages()[-1][1] for _, block in blocks]
    return [norm for norm in found if isinstance(norm, Norm)]
