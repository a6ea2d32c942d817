"""From measured numbers to a verdict: does the image get through, does the gradient come back, does the net learn?

forward     The image must reach the outputs, and the last layer must still tell it from others (`Prober.signal`).
backward    The RMS of dL/dx over all time steps, at the first layer by that at the last; of residual nets, at
            the last layers of the blocks.
through     Of nets that are shown something new at each step, which part of the first layer's gradient reaches the
time        steps that tell classes apart, with none through resets (`gradients.through_time`).
learning    What training has shown, once it can be known (`tells_from`). A net that learns in spite of an obstacle
            learns; one that is at chance is never healthy; "healthy" is one that learns, by a test, and has no
            obstacle. Before the first test no more is said than whether the loss falls.

An obstacle is named only where the rows of studies/gradient_flow/rows.csv say that it predicts: `LIMITS`, which
`python studies/gradient_flow/run.py --judge` counts again. Elsewhere the number is shown without a word. Everything
here is a record; `show.verdict` has the words.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np

from spiketriton.config import LossConfig, ModelConfig, Recipe, TrainConfig
from spiketriton.config.names import BLOCK_NETS, CHAINS, PARALLEL
from spiketriton.gradients.measurement import Measurement, Signal
from spiketriton.plugins.tasks import Score, task_of


class Word(StrEnum):
    """What a net is, or what stands in its way."""

    HEALTHY = "healthy"
    LEARNING = "learning"
    FALLING = "the loss falls"
    FLAT = "the loss has hardly fallen"
    CHANCE = "at chance"
    EARLY = "too early to tell"
    FREE = "no obstacle found"
    EXPLODING = "exploding"
    SILENT = "silent"
    ASLEEP = "asleep"
    LOST = "lost"
    NOT_FINITE = "not finite"
    FORGETS = "vanishing through time"
    BURSTS = "exploding through time"
    NOT_JUDGED = "not judged"


class Predicts(NamedTuple):
    """A limit, and what became of the trainings beyond it: how many there were, and how many learnt.

    layers, kinds: spiking layers from which on, and neurons with which it was tried; of others it says nothing.
    """

    limit: float
    learnt: int
    trainings: int
    layers: int
    kinds: tuple[str, ...]


class Remembers(NamedTuple):
    """A limit of what reaches time steps, and what became of the registered nets beyond it that did not choose it: how
    many there were, and how many learnt.

    layers: up to how many these nets had. In deeper ones a gradient that does not reach back is an obstacle, too; one
        that does tells nothing.
    """

    limit: float
    learnt: int
    trainings: int
    layers: int = 6


class LIMITS:
    """What tells nets that learn from others. The first five are of nets that training has not changed yet."""

    # in nets without skip connections: the ratio first / last under SGD without a limit on the gradient's norm, at a
    # rate of 0.03 or more. A smaller ratio told nothing, nor AdamW's or a limited one
    growth, lr = Predicts(1e3, 0, 9, 48, ("if", "lif")), 0.03
    # of an image, kept by the last layer, in chains and in plain blocks whose gradient passes all neurons, where the
    # ratio is not above `large`; in other nets, and without norms, it told nothing
    chain, large = Predicts(0.25, 0, 10, 20, ("lif",)), 1e4
    plain = Predicts(0.1, 0, 21, 48, ("if", "lif", "plif"))
    # chains of other neurons, by the rows of studies/untrained
    others = Predicts(
        *(2 / 3, 0, 13, 18),
        ("if", "plif", "clif", "alif", "cuba", "psn", "masked_psn", "sliding_psn"),
    )
    # of the last layer's gradient at the first one, in chains whose outputs are the same for all images: with less, one
    # of 12 woke
    asleep = Remembers(1e-4, 4, 8)
    # through time, by the rows of studies/through_time: what part of the first layer's gradient reaches the steps that
    # tell classes apart, by what a net remembers by (`Signal.memory`); of windows nothing, where none goes back so far,
    # and of recurrent nets the smallest share of a layer there of what reaches the last step, on all ways
    memory = {  # noqa: RUF012
        "states": Remembers(0.03, 5, 50),
        "windows": Remembers(0.0, 0, 12),
        "feedback": Remembers(5e-4, 1, 19, 3),
    }
    # of recurrent nets that are read at the last step alone, also what membranes keep there by the whole gradient,
    # where that is not more than `memory["states"]` of what they keep of all steps
    kept = Remembers(5e-10, 0, 1, 3)
    # the largest share of a layer at any step, where the last one alone is read, without a limit on the gradient's norm
    burst = {"states": Remembers(1e19, 1, 10), "feedback": Remembers(1e12, 4, 20, 3)}  # noqa: RUF012
    window, longest = 8, 200  # steps of which these were tried, and of one step no other limit
    rate = 1e-3  # spikes per neuron and time step of every layer that should fire
    loss = 0.95  # in training, by that of answering with the shares of the classes, ...
    chance = 0.99  # ... and in a test, below which no net is at chance
    steps = 50  # ... the mean over as many steps, ...
    since = 100  # ... from this step on, and after the warm-up
    stuck = 1000  # steps, or half of a training: before them none is, for two in five learnt
    # of a test's score from that of guessing, in standard deviations: above it, and up to which one is at chance
    deviations, near = 3.0, 2.0
    # a score that no untrained net has, by guessing's (or halfway to 1): of 24, one had 11.2 % in CIFAR-10's test
    times = 2.0


DEAD_SHARE = 0.9  # of a layer's neurons, outside the surrogate's reach: worth a sentence
FAINT = 0.01  # of what reaches the last step: less does not count as arriving
CLOSED = 0.5  # blocks that start with a smaller gain pass little gradient into their branches


def tells_from(train: TrainConfig, steps: int) -> int:
    """The step from which on a training of `steps` steps shows whether the net learns.

    Not before step 100, and not before the mean loss is one of steps behind the warm-up.
    """
    warm = math.ceil(train.warmup * steps) + LIMITS.steps
    return max(LIMITS.since, min(warm, steps))


def planned_steps(train: TrainConfig, images: int) -> int:
    """Optimizer steps of a training on so many images."""
    steps = train.epochs * (images // train.batch_size)
    return min(steps, train.max_steps or steps)


@dataclass(frozen=True)
class Learned:
    """What a training knows of what the net can do.

    loss, guess_loss: in training since the test, and that of guessing; None where it says nothing, as that of a loss
        whose value for guessing is not known.
    score, images: of the last test, with the score of guessing where it is known; None and 0 before it.
    test_loss: of the same images.
    early: whether too little was trained before that test to call a net stuck.
    """

    loss: float | None
    guess_loss: float | None
    score: Score | None = None
    images: int = 0
    test_loss: float | None = None
    early: bool = False

    @classmethod
    def of(
        cls,
        config: LossConfig,
        counts: Sequence[int],
        loss: float | None,
        test: Mapping[str, Any] | None = None,
        early: bool = False,
    ) -> "Learned | None":
        """`counts`: training images of each class; `test`: a row of metrics.jsonl. None where nothing is known."""
        guess = task_of(config).guess_loss(tuple(counts))
        loss = loss if guess is not None else None
        score = None if test is None else Score.of_row(test)
        if test is not None and score is not None:
            return cls(loss, guess, score, test["test_images"], test.get("test_loss"), early)
        return None if loss is None else cls(loss, guess)

    @property
    def known(self) -> bool:
        """Whether it is known what guessing would have."""
        losses = self.guess_loss is not None and (self.loss, self.test_loss) != (None, None)
        return losses or (self.score is not None and self.score.chance is not None)

    @property
    def learns(self) -> bool | None:
        """Whether it does better than guessing and than an untrained net; None while that is open.

        That it does only a test shows: a loss in training also falls by images learnt by heart, and by the statistics
        of each batch, which no test has. A score may be above guessing's in an untrained net.
        """
        falls = self._below(self.loss) or self._below(self.test_loss, LIMITS.chance)
        if self.score is None:
            return None
        guess, spread = self.score.chance, self.score.spread
        above = self._below(self.test_loss)  # where the score of guessing is not known
        above = above if guess is None else self.score.beats(guess, LIMITS.deviations * spread)
        near = guess is None or not self.score.beats(guess, LIMITS.near * spread)
        if not above:
            return False if near and self.known and not (falls or self.early) else None
        if self.loss is not None and self.guess_loss is not None and not self._below(self.loss, 1):
            return None  # it has got worse since
        return True if self._doubles() or self._below(self.test_loss) else None

    @property
    def word(self) -> Word:
        """What training has shown, whatever stands in the net's way."""
        if self.score is None:
            return Word.FALLING if self._below(self.loss) else Word.FLAT
        if self.learns is None:
            return Word.EARLY
        return Word.LEARNING if self.learns else Word.CHANCE

    def _below(self, loss: float | None, limit: float = LIMITS.loss) -> bool:
        if loss is None or self.guess_loss is None:
            return False
        return loss < limit * self.guess_loss

    def _doubles(self) -> bool:
        """Whether no untrained net would have the score."""
        found = self.score
        if found is None or found.chance is None:
            return False
        if not found.share:
            return found.beats(found.chance, (1 - LIMITS.loss) * abs(found.chance))
        value, guess = found.value, found.chance
        if not found.higher_is_better:  # a share of errors
            value, guess = 1 - value, 1 - guess
        return value >= min(LIMITS.times * guess, (1 + guess) / 2)


def learned_by(
    rows: Iterable[Mapping[str, Any]], recipe: Recipe, counts: Sequence[int], steps: int
) -> Learned | None:
    """What rows of metrics.jsonl show of a training of `steps` steps; None while it is too early to tell.

    The last test, and the mean loss of the last 50 steps where all of them came after it.
    """
    known = [row for row in rows if row["kind"] in ("train", "eval")]
    if not known or known[-1]["step"] < tells_from(recipe.train, steps):
        return None
    tests = [row for row in known if row["kind"] == "eval"]
    # the file keeps no NaN
    losses = [
        (row["step"], math.nan if row["loss"] is None else row["loss"])
        for row in known
        if row["kind"] == "train"
    ]
    loss = mean_loss(losses)
    if tests and losses and losses[-1][0] < tests[-1]["step"] + LIMITS.steps:
        loss = None
    early = bool(tests) and tests[-1]["step"] < min(LIMITS.stuck, steps / 2)
    return Learned.of(recipe.loss, counts, loss, tests[-1] if tests else None, early)


@dataclass(frozen=True)
class Forward:
    """What gets through to the last layer, and to the outputs.

    quietest, rate: the layer (index) that fires least of those that should, and its spikes per
        neuron and time step.
    arrives: False where the outputs are the same for all images, and nothing of an image is left at the last layer;
        None where it was not measured.
    wakes: whether enough of the gradient arrives at the first layer that training may wake one that is silent.
    kept: what the last layer keeps of an image, 0 to 1; None where it was not measured.
    judged: the limit of `kept`; None where it tells nothing of nets of this kind.
    lost_from: the layer (index) from which on less than that is kept, or None.
    """

    quietest: int
    rate: float
    arrives: bool | None = None
    wakes: bool = True
    kept: float | None = None
    judged: Predicts | None = None
    lost_from: int | None = None

    @property
    def word(self) -> Word:
        if self.arrives is False:
            still = Word.SILENT if self.rate < LIMITS.rate else Word.LOST
            return Word.ASLEEP if self.wakes else still
        return Word.FREE if self.lost_from is None else Word.LOST


@dataclass(frozen=True)
class Backward:
    """The gradient through depth, walking backward.

    judged: what `ratio` is judged against; None where it tells nothing.
    places: how many layers were compared; 0 while residual blocks are closed, and no gradient enters them.
    ratio: first / last; 0 when the gradient dies on the way, infinite when it overflows; None with fewer than two
        places, or where nothing arrives at the last.
    steepest: layer (index) entered by the largest growth of the gradient.
    extreme: place (layer, time step) of the largest gradient.
    nonfinite: (layer, time step) where dL/dx first was not finite on the way back, or None.
    """

    word: Word
    judged: Predicts | None
    places: int
    ratio: float | None
    steepest: int
    extreme: tuple[int, int]
    nonfinite: tuple[int, int] | None


@dataclass(frozen=True)
class Through:
    """What of the gradient reaches the first time step.

    judged: what it is judged against; None where nothing is known of nets of this kind.
    credit: the smallest share of a layer, by way of time, of what reaches the last step that is read; None where it
        was not measured.
    arrives: of the first layer, where no gradient goes through resets, by the norm over all of its steps: other steps
        are noise, which adds up so. More than `LIMITS.longest` count as so many. NaN where it was not measured. It is
        the mean over the steps that tell classes apart, or the first step where none is known to. Of a recurrent net it
        is the smallest share of a layer there, on all ways, of what reaches the last step.
    memory: as `Signal.memory`; "" where the input stands still, and of a net that training has changed.
    apart: whether that is known.
    kept: of a recurrent net, what of the first layer's whole gradient reaches these steps by what membranes keep, with
        none through resets or returning spikes, by the norm over all steps. NaN where no row speaks of it.
    own: the same by what membranes keep of all steps, as `arrives` of a net without recurrence.
    largest: share of a layer at any step, of its last one, by way of time.
    first, strongest: layers (index) of these two.
    steps: T.
    back: steps before the last one at which at least a hundredth of the last one's arrives in layer `first`.
    """

    word: Word = Word.FREE
    judged: Remembers | None = None
    credit: float | None = None
    arrives: float = math.nan
    first: int = 0
    strongest: int = 0
    largest: float = math.nan
    back: int = 0
    steps: int = 1
    apart: bool = False
    memory: str = ""
    kept: float = math.nan
    own: float = math.nan


@dataclass(frozen=True)
class Verdict:
    """Forward, backward, through time and learning, and what else is worth saying.

    time_ratio: the gradient of the first time step by that of the last; None where there is nothing to compare.
    dead_share: neurons outside the surrogate's reach, over all layers and time steps.
    dead_layer: the worst layer (index) if most of its neurons are out of reach, or None.
    below_eps: weights whose gradient is smaller than AdamW's eps, so that their steps are, too.
    learned: None where nothing has been trained, or not long enough.
    begun: whether training has begun.
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
    begun: bool = False
    through: Through = Through()

    @property
    def credit(self) -> float | None:
        """What reaches the first time step by way of time, of the layer where it is least."""
        return self.through.credit

    @property
    def judged(self) -> bool:
        """Whether rows speak of nets of this kind, so that no obstacle means something.

        Of nets that are shown something new at each step those of time do; of deep ones those of depth, too.
        """
        deep = self.forward.judged is not None or self.backward.judged is not None
        time = self.through.judged
        if self.through.memory:
            return time is not None and (deep or len(self.names) <= time.layers)
        return deep

    @property
    def obstacles(self) -> tuple[Word, ...]:
        """What stands in the net's way, the backward one first."""
        found = (self.backward.word, self.through.word, self.forward.word)
        return tuple(word for word in found if word != Word.FREE)

    @property
    def word(self) -> Word:
        """One word for all: what training has shown, before that the first obstacle."""
        if self.backward.word == Word.NOT_FINITE:
            return Word.NOT_FINITE
        if self.learned is None and self.begun:
            return Word.EARLY
        if self.learned is None or not self.learned.known:
            return (*self.obstacles, Word.FREE if self.judged else Word.NOT_JUDGED)[0]
        learns = self.learned.word == Word.LEARNING
        return Word.HEALTHY if learns and not self.obstacles else self.learned.word


def judge(
    measured: Measurement,
    of: Recipe | str = "sgd",
    signal: Signal | None = None,
    learned: Learned | None = None,
    *,
    begun: bool = False,
) -> Verdict:
    """The verdict on a measurement, the same for `train`, `diagnose` and Python.

    of: the recipe, or of a net without one the optimizer. signal: what gets through; None where it was not measured.
    learned, begun: what the training knows, if there was one, and whether there was: then no limit is known.
    """
    names, optimizer, eps, limited = measured.names, of, 0.0, False
    compared: Sequence[int] = range(len(names))
    silent, model_name = list[int](), ""
    told, kind = LIMITS.chain if signal is not None and signal.chain else None, "lif"
    if isinstance(of, Recipe):
        optimizer, eps = of.train.optimizer, of.train.eps
        limited = of.clipping > 0 or of.peak_lr < LIMITS.lr
        model_name = of.model.name
        compared, silent = _compared(measured, of.model), _may_be_silent(names, of.model)
        told, kind = told or _told_by_signal(of), of.neuron.kind
    # the rows have no limit on the norm, and no lower rate under SGD
    calm = isinstance(of, Recipe) and (of.clipping > 0 or (optimizer == "sgd" and limited))
    calm |= optimizer not in ("sgd", "adamw")
    stuck = learned is not None and learned.word in (Word.CHANCE, Word.FLAT)
    chain = told in (LIMITS.chain, LIMITS.others)
    changing = begun or measured.grad_input_rms.shape[1] == 1  # no row is of a single step
    grows = chain and optimizer == "sgd" and not limited and not changing
    grows &= len(names) >= LIMITS.growth.layers and kind in LIMITS.growth.kinds
    if told is not None and (changing or len(names) < told.layers or kind not in told.kinds):
        told = None
    outside, firing = measured.outside_share.mean(1), measured.firing_rate.mean(1)
    should_fire = [i for i in range(len(names)) if i not in silent] or range(len(names))
    quietest = min(should_fire, key=lambda i: firing[i])
    small = [n for n, rms in measured.weights.items() if optimizer == "adamw" and 0 < rms < eps]
    forward = Forward(quietest, float(firing[quietest]))
    backward = _backward(measured, compared, LIMITS.growth if grows else None)
    if (backward.ratio or 0) > LIMITS.large:
        told = None
    if signal is not None:
        kept = float(signal.overlap[-1])
        lost = None if told is None else lost_at(signal.overlap, told.limit)
        # exactly 0: the last layer fires alike for all images, and not the outputs alone start at 0
        gone = kept == 0 or (not kept > 0 and forward.rate < LIMITS.rate)
        same = not signal.arrives and gone
        first, *_, last = [*measured.depth_profile, *measured.depth_profile[-1:]]
        # of other nets no row tells that they do
        tried = signal.memory == "windows" or kind in PARALLEL or model_name in CHAINS
        wakes = bool(tried and not begun and first >= LIMITS.asleep.limit * last > 0)
        forward = Forward(quietest, forward.rate, not same, wakes, kept, told, lost)
    return Verdict(
        names=names,
        optimizer=str(optimizer),
        forward=forward,
        backward=backward,
        time_ratio=measured.time_ratio,
        dead_share=float(measured.outside_share.mean()),
        dead_layer=int(outside.argmax()) if outside.max() > DEAD_SHARE else None,
        firing_rate=float(measured.firing_rate.mean()),
        time_factor=float(measured.time_factor.mean()),
        below_eps=tuple(small),
        learned=learned,
        begun=begun,
        through=_through(measured, compared, signal, calm, begun and not stuck),
    )


def _through(
    measured: Measurement,
    among: Sequence[int],
    signal: Signal | None,
    calm: bool,
    changed: bool,
) -> Through:
    """calm: no limit of growth is known. changed: trained, and not stuck: no row is of it."""
    if not among or np.isnan(measured.remembered).all() or measured.credit.shape[1] < 2:
        return Through()
    shown = measured.of_layers(among)
    memory = "" if signal is None or changed else signal.memory
    most = shown.credit.max(1)
    apart = () if signal is None else signal.apart
    # where earlier steps are read, too, nets learnt whatever the growth
    alone = shown.direct[-1, 0] < FAINT
    largest, first, kept, own = float(most.max()), 0, math.nan, math.nan
    if memory == "feedback":
        reaching = [_reaching(shares, apart) for shares in shown.credit]
        first = min(range(len(reaching)), key=lambda layer: reaching[layer][0])
        arrives, back = reaching[first]
        if alone:
            kept = _part_of(_reaching(shown.remembered[0], apart)[0], shown.arriving[0])
            own, _ = _arriving(shown.remembered[0], apart)
    else:
        arrives, back = _arriving(shown.remembered[0], apart)
    word, judged = Word.FREE, LIMITS.memory.get(memory)
    burst = LIMITS.burst.get(memory)
    grows = burst is not None and alone and not calm and largest > burst.limit
    if judged is not None and arrives <= judged.limit and not (grows and memory == "feedback"):
        word = Word.FORGETS
    elif grows:
        word, judged = Word.BURSTS, burst
    elif kept <= LIMITS.kept.limit and own <= LIMITS.memory["states"].limit:
        word, judged, first = Word.FORGETS, LIMITS.kept, 0
    return Through(
        word,
        judged,
        float(shown.credit[:, 0].min()),
        arrives,
        among[first],
        among[int(most.argmax())],
        largest,
        back,
        len(shown.remembered[0]),
        bool(apart),
        memory,
        kept,
        own,
    )


def _reaching(shares: np.ndarray, apart: Sequence[float]) -> tuple[float, int]:
    """Of a layer: the mean share of the steps that tell classes apart, or of the first, and steps back to FAINT."""
    reached = np.flatnonzero(shares)
    if not len(reached):
        return 0.0, 0
    if not np.isfinite(shares).all():
        return math.inf, len(shares) - 1
    shares = shares[: reached[-1] + 1]
    weights = np.array(apart)[: len(shares)] if apart else np.eye(1, len(shares))[0]
    reaches = float(np.average(shares, weights=weights)) if weights.any() else 0.0
    return reaches, len(shares) - 1 - int((shares >= FAINT).argmax())


def _arriving(shares: np.ndarray, apart: Sequence[float]) -> tuple[float, int]:
    """As `_reaching`, as a part of the layer's whole gradient."""
    arrives, back = _reaching(shares, apart)
    return _part_of(arrives, shares), back


def _part_of(share: float, shares: np.ndarray) -> float:
    """A share by the norm of all of them, up to the last step that is reached."""
    reached = np.flatnonzero(shares)
    if not len(reached) or not math.isfinite(share):
        return share
    shares = shares[: reached[-1] + 1]
    steps, largest = min(len(shares), LIMITS.longest), shares.max()
    if not math.isfinite(largest):
        return math.nan
    # the squares are summed without overflow
    return float(share / largest / np.sqrt(steps * np.square(shares / largest).mean()))


def _told_by_signal(recipe: Recipe) -> Predicts | None:
    """The limit of the forward signal for deep nets of this kind; None where it tells nothing."""
    model = recipe.model
    if model.norm == "none":
        return None
    if model.name in CHAINS:
        return LIMITS.chain if recipe.neuron.kind in LIMITS.chain.kinds else LIMITS.others
    usual = model.block == "plain" and model.shortcut_gradient == "surrogate"
    return LIMITS.plain if model.name in BLOCK_NETS and usual else None


def lost_at(overlap: np.ndarray, limit: float) -> int | None:
    """The layer from which on less than `limit` is kept of an image; None if the last one keeps more."""
    keeping = np.flatnonzero(~(overlap < limit))
    after = int(keeping[-1]) + 1 if len(keeping) else 0
    return after if after < len(overlap) else None


def starts_closed(model: ModelConfig) -> bool:
    """Whether the net has residual blocks that start with little or no gain."""
    blocks = model.name in BLOCK_NETS and model.block != "preact" and model.norm != "none"
    if model.residual_gain == "auto":
        return blocks and model.block != "sew"
    return blocks and model.residual_gain < CLOSED


def _compared(measured: Measurement, model: ModelConfig) -> Sequence[int]:
    """The layers whose gradients are compared: all, or of residual nets the last ones of their blocks.

    Inside a block that starts closed the gradient is as small as the block's gain, at any depth. Before anything is
    learnt, none may be reached at all: there is nothing to compare yet. Values that are not finite are looked for
    in all layers.
    """
    ends = last_layers(measured.names)
    if model.name not in BLOCK_NETS or model.block == "preact" or not ends:
        return range(len(measured.names))
    closed = starts_closed(model) and not measured.grad_spike_rms[ends].any()
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


def _backward(measured: Measurement, among: Sequence[int], judged: Predicts | None) -> Backward:
    last = len(measured.names) - 1
    bad = np.argwhere(measured.nonfinite > 0)
    nonfinite = (int(bad[-1][0]), int(bad[-1][1])) if len(bad) else None
    if not among:
        return Backward(Word.FREE, judged, 0, None, last, (last, 0), None)
    shown = measured.of_layers(among)
    profile, ratio = shown.depth_profile, shown.depth_ratio
    finite = np.where(np.isfinite(profile), profile, np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        jumps = -np.diff(np.log(finite))  # from a layer to the one before it, walking backward
    word = Word.FREE
    if nonfinite is not None or np.isinf(finite).any():
        word = Word.NOT_FINITE
    elif judged is not None and ratio is not None and ratio > judged.limit:
        word = Word.EXPLODING
    growth = np.where(np.isnan(jumps), -np.inf, jumps)
    grads = np.where(np.isfinite(shown.grad_input_rms), shown.grad_input_rms, np.inf)
    layer, step = map(int, np.unravel_index(grads.argmax(), grads.shape))
    if word == Word.NOT_FINITE and nonfinite is None:
        nonfinite = (int(among[layer]), step)
    steepest = among[int(growth.argmax()) if len(growth) else 0]
    return Backward(
        word, judged, len(profile), ratio, steepest, (int(among[layer]), step), nonfinite
    )


def mean_loss(rows: Sequence[tuple[int, float]]) -> float | None:
    """Of (step, mean loss since the row before), the mean over the last steps; None where it is too early to tell."""
    if not rows or rows[-1][0] < LIMITS.since:
        return None
    return float(np.mean([loss for step, loss in rows if step > rows[-1][0] - LIMITS.steps]))
