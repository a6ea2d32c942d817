"""From measured numbers to a verdict: does the image get through, does the gradient come back, does the net learn?

forward     Each layer must fire, and the last one must still tell an image from others (`Prober.overlap`,
            which needs a pass of its own: `diagnose` measures it, training does not).
backward    The RMS of dL/dx over all time steps, at the first layer by that at the last; of residual nets, at
            the last layers of the blocks.
learning    What training has shown. A net that learns in spite of an obstacle learns; one that is at chance is never
            healthy; "healthy" is one that learns and has no obstacle.

`LIMITS` are those by which 74 trainings of 37 random nets were told apart (docs/reading.md). Everything here is a
record; `show.verdict` has the words.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, get_args

import numpy as np

from spiketriton.config import LossConfig, ModelConfig, Recipe
from spiketriton.config.rules import BLOCK_NETS, VGG, PlainNet
from spiketriton.gradients.measurement import Measurement


class Word(StrEnum):
    """What a net is, or what stands in its way."""

    HEALTHY = "healthy"
    LEARNING = "learning"
    CHANCE = "at chance"
    FREE = "no obstacle found"
    VANISHING = "vanishing"
    EXPLODING = "exploding"
    SILENT = "silent"
    LOST = "lost"
    NOT_FINITE = "not finite"


class LIMITS:
    """What tells nets that learn from others."""

    # of the ratio first / last by optimizer; vanishing below, exploding above. AdamW divides each gradient by its
    # size, so that it may be as small as it likes, but for 0
    depth: ClassVar[dict[str, tuple[float, float]]] = {"sgd": (1e-3, 1e3), "adamw": (0.0, 1e12)}
    kept = 0.25  # of an image, by the last layer (`Prober.overlap`)
    rate = 1e-3  # spikes per neuron and time step of every layer that should fire
    loss = 0.95  # in training, by that of answering with the shares of the classes, ...
    steps = 50  # ... the mean over as many steps, ...
    since = 100  # ... from this step on
    deviations = 3.0  # of a test's accuracy from that of the largest class, in standard deviations


DEAD_SHARE = 0.9  # of a layer's neurons, outside the surrogate's reach: worth a sentence
CLOSED = 0.5  # blocks that start with a smaller gain pass little gradient into their branches
WIDTH = 0.3  # of the threshold: the default


@dataclass(frozen=True)
class Learned:
    """What a training knows of what the net can do.

    loss: in training; None where it says nothing, as that of a loss whose value for guessing is not known.
    accuracy, images: of the last test; None and 0 before it.
    guess_loss, guess_accuracy: of always answering with the shares of the classes, and with the largest class.
    """

    loss: float | None
    accuracy: float | None
    images: int
    guess_loss: float
    guess_accuracy: float

    @classmethod
    def of(
        cls,
        config: LossConfig,
        counts: Sequence[int],
        loss: float | None,
        accuracy: float | None = None,
        images: int = 0,
    ) -> "Learned | None":
        """`counts`: images of each class; None where they are not known, and where nothing is known yet."""
        loss = loss if config.kind == "cross_entropy" else None
        if not sum(counts) or (loss is None and accuracy is None):
            return None
        shares = np.array(counts, float) / sum(counts)
        known = shares[shares > 0]
        entropy = float(-(known * np.log(known)).sum())
        if config.class_weights == "balanced":
            entropy = math.log(len(counts))
        return cls(loss, accuracy, images, entropy, float(shares.max()))

    @property
    def at_chance(self) -> bool:
        """Whether it does no better than guessing; the test counts for more than the loss."""
        if self.accuracy is not None:
            share = self.guess_accuracy
            noise = math.sqrt(share * (1 - share) / self.images)
            return self.accuracy <= share + LIMITS.deviations * noise
        return self.loss is not None and not self.loss < LIMITS.loss * self.guess_loss


@dataclass(frozen=True)
class Forward:
    """What gets through to the last layer.

    quietest, rate: the layer (index) that fires least of those that should, and its spikes per
        neuron and time step.
    kept: what the last layer keeps of an image, 0 to 1; None where it was not measured.
    lost_from: the layer (index) from which on nothing is kept, or None.
    """

    quietest: int
    rate: float
    kept: float | None
    lost_from: int | None

    @property
    def word(self) -> Word:
        if self.rate < LIMITS.rate:
            return Word.SILENT
        return Word.FREE if self.lost_from is None else Word.LOST


@dataclass(frozen=True)
class Backward:
    """The gradient through depth, walking backward.

    limits: what `ratio` is judged against.
    places: how many layers were compared; 0 while residual blocks are closed, and no gradient enters them.
    ratio: first / last; 0 when the gradient dies on the way, infinite when it overflows; None with fewer than two
        places, or where nothing arrives at the last.
    steepest: layer (index) entered by the largest step in the direction of the word.
    extreme: place (layer, time step) of the largest gradient when it explodes, else the smallest.
    nonfinite: (layer, time step) where dL/dx first was not finite on the way back, or None.
    """

    word: Word
    limits: tuple[float, float]
    places: int
    ratio: float | None
    steepest: int
    extreme: tuple[int, int]
    nonfinite: tuple[int, int] | None


@dataclass(frozen=True)
class Verdict:
    """Forward, backward and learning, and what else is worth saying.

    time_ratio: the gradient of the first time step by that of the last; None where there is nothing to compare.
    dead_share: neurons outside the surrogate's reach, over all layers and time steps.
    dead_layer: the worst layer (index) if most of its neurons are out of reach, or None.
    below_eps: weights whose gradient is smaller than AdamW's eps, so that their steps are, too.
    learned: None where nothing has been trained, or not long enough.
    """

    names: tuple[str, ...]
    optimizer: str
    forward: Forward
    backward: Backward
    time_ratio: float | None
    dead_share: float
    dead_layer: int | None
    firing_rate: float
    time_factor: float
    below_eps: tuple[str, ...] = ()
    learned: Learned | None = None

    @property
    def obstacles(self) -> tuple[Word, ...]:
        """What stands in the net's way, the backward one first."""
        found = (self.backward.word, self.forward.word)
        return tuple(word for word in found if word != Word.FREE)

    @property
    def word(self) -> Word:
        """One word for all: what training has shown, before that the first obstacle."""
        if self.backward.word == Word.NOT_FINITE:
            return Word.NOT_FINITE
        if self.learned is None:
            return self.obstacles[0] if self.obstacles else Word.FREE
        if self.learned.at_chance:
            return Word.CHANCE
        return Word.LEARNING if self.obstacles else Word.HEALTHY


def judge(
    measured: Measurement,
    of: Recipe | str = "sgd",
    overlap: np.ndarray | None = None,
    learned: Learned | None = None,
) -> Verdict:
    """The verdict on a measurement, the same for `train`, `diagnose` and the report.

    of: the recipe, or of a net without one the optimizer. overlap: what each layer keeps of an image, [layers]; None
    where it was not measured. learned: what the training knows, if there was one.
    """
    names, optimizer, eps = measured.names, of, 0.0
    compared: Sequence[int] = range(len(names))
    silent: list[int] = []
    if isinstance(of, Recipe):
        optimizer, eps = of.train.optimizer, of.train.eps
        compared, silent = _compared(measured, of.model), _may_be_silent(names, of.model)
    outside, firing = measured.outside.mean(1), measured.firing.mean(1)
    should_fire = [i for i in range(len(names)) if i not in silent] or range(len(names))
    quietest = min(should_fire, key=lambda i: firing[i])
    small = [n for n, rms in measured.weights.items() if optimizer == "adamw" and 0 < rms < eps]
    return Verdict(
        names=names,
        optimizer=str(optimizer),
        forward=Forward(
            quietest=quietest,
            rate=float(firing[quietest]),
            kept=None if overlap is None else float(overlap[-1]),
            lost_from=None if overlap is None else lost_at(overlap),
        ),
        backward=_backward(measured, compared, str(optimizer)),
        time_ratio=measured.time_ratio,
        dead_share=float(measured.outside.mean()),
        dead_layer=int(outside.argmax()) if outside.max() > DEAD_SHARE else None,
        firing_rate=float(measured.firing.mean()),
        time_factor=float(measured.time_factor.mean()),
        below_eps=tuple(small),
        learned=learned,
    )


def lost_at(overlap: np.ndarray) -> int | None:
    """The layer from which on nothing is kept of an image; None if the last one keeps some."""
    keeping = np.flatnonzero(~(overlap < LIMITS.kept))
    after = int(keeping[-1]) + 1 if len(keeping) else 0
    return after if after < len(overlap) else None


def starts_closed(model: ModelConfig) -> bool:
    """Whether the net has residual blocks that start with little or no gain."""
    blocks = model.name in BLOCK_NETS and model.block != "preact" and model.norm != "none"
    return blocks and (model.residual_gain == "auto" or model.residual_gain < CLOSED)


def _compared(measured: Measurement, model: ModelConfig) -> Sequence[int]:
    """The layers whose gradients are compared: all, or of residual nets the last ones of their blocks.

    Inside a block that starts closed the gradient is as small as the block's gain, at any depth. Before anything is
    learnt, none may be reached at all: there is nothing to compare yet. Values that are not finite are looked for
    in all layers.
    """
    ends = last_layers(measured.names)
    if model.name not in BLOCK_NETS or model.block == "preact" or not ends:
        return range(len(measured.names))
    closed = starts_closed(model) and not measured.grad_spike[ends].any()
    return [] if closed and not measured.nonfinite.any() else ends


def last_layers(names: Sequence[str]) -> list[int]:
    """The last spiking layer (index) of each residual block, and of whatever stands before them."""
    # not those behind the blocks
    places = (re.fullmatch(r"(.*\.)?neuron\d*", name) for name in names)
    return list({place[1]: index for index, place in enumerate(places) if place}.values())


def _may_be_silent(names: Sequence[str], model: ModelConfig) -> list[int]:
    """Layers whose spikes nobody needs: the branches of SEW blocks that start closed."""
    closed = model.block == "sew" and starts_closed(model)
    return [i for i in last_layers(names) if "." in names[i]] if closed else []


def _backward(measured: Measurement, among: Sequence[int], optimizer: str) -> Backward:
    limits, last = LIMITS.depth[optimizer], len(measured.names) - 1
    bad = np.argwhere(measured.nonfinite > 0)
    nonfinite = (int(bad[-1][0]), int(bad[-1][1])) if len(bad) else None
    if not among:
        return Backward(Word.FREE, limits, 0, None, last, (last, 0), None)
    shown = measured.of_layers(among)
    profile, ratio = shown.depth_profile, shown.depth_ratio
    finite = np.where(np.isfinite(profile), profile, np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        jumps = -np.diff(np.log(finite))  # from a layer to the one before it, walking backward
    word = Word.FREE
    if nonfinite is not None:
        word = Word.NOT_FINITE
    elif np.isinf(finite).any() or (ratio is not None and ratio > limits[1]):
        word = Word.EXPLODING
    elif len(profile) > 1 and (not ratio or ratio < limits[0]):
        word = Word.VANISHING
    towards = np.where(np.isnan(jumps), -np.inf, -jumps if word == Word.VANISHING else jumps)
    grads = np.where(np.isfinite(shown.grad_input), shown.grad_input, np.inf)
    extreme = grads.argmin() if word == Word.VANISHING else grads.argmax()
    layer, step = map(int, np.unravel_index(extreme, grads.shape))
    steepest = among[int(towards.argmax()) if len(towards) else 0]
    place = (int(among[layer]), step)
    return Backward(word, limits, len(profile), ratio, steepest, place, nonfinite)


class Why(StrEnum):
    """Why a change of the recipe may help; `show.verdict` has the sentences."""

    BLOCKS_START_CLOSED = "blocks start closed"
    GOES_AROUND = "the gradient goes around neurons"
    IDENTITY = "layers start as the identity"
    WIDTH = "the default width"
    NORM = "batch norm"
    MEMBRANES = "membrane shortcuts"
    RATE = "a lower learning rate"


@dataclass(frozen=True)
class Cure:
    """A change of the recipe and why."""

    key: str
    value: float | str
    why: Why


def cures(recipe: Recipe, verdict: Verdict, fresh: bool = True) -> list[Cure]:
    """The defaults that the recipe does not take, where the verdict found an obstacle or nothing was learnt.

    They are what won the race of docs/gradient_flow.md. `fresh`: the net may still be another; of a run with
    weights only what leaves them alone is offered.
    """
    model, found = recipe.model, []
    stuck = verdict.word == Word.CHANCE
    if verdict.word in (Word.FREE, Word.HEALTHY, Word.LEARNING):
        return []
    slower = Cure("train.lr", float(f"{recipe.peak_lr / 3:.2g}"), Why.RATE)
    blocks = model.name in BLOCK_NETS and model.block != "preact"
    if model.name not in (*BLOCK_NETS, *get_args(PlainNet), *get_args(VGG)):  # somebody's own
        return [slower] if stuck else []
    if fresh and model.norm == "none":
        found.append(Cure("model.norm", "bn", Why.NORM))
    elif fresh and blocks and not starts_closed(model):
        found.append(Cure("model.residual_gain", 0.0, Why.BLOCKS_START_CLOSED))
    if fresh and model.name in get_args(PlainNet) and model.start != "identity":
        found.append(Cure("model.start", "identity", Why.IDENTITY))
    if stuck or verdict.backward.word != Word.FREE:
        around = model.shortcut_gradient == "straight_through"
        if blocks and model.block == "plain" and not around:
            found.append(Cure("model.shortcut_gradient", "straight_through", Why.GOES_AROUND))
        usual = WIDTH * recipe.neuron.v_threshold
        own = recipe.neuron.kind == "ilif"  # its gradient has no width
        if not own and not 0.5 < recipe.neuron.surrogate.width / usual < 2:
            found.append(Cure("neuron.surrogate.width", float(f"{usual:.3g}"), Why.WIDTH))
    if stuck:
        found.append(slower)
        if fresh and blocks and model.block == "plain":
            found.append(Cure("model.block", "ms", Why.MEMBRANES))
    return found


def mean_loss(rows: Sequence[tuple[int, float]]) -> float | None:
    """Of (step, mean loss since the row before), the mean over the last steps; None where it is too early to tell."""
    if not rows or rows[-1][0] < LIMITS.since:
        return None
    last = [loss for step, loss in rows if step > rows[-1][0] - LIMITS.steps]
    return float(np.mean(last))
