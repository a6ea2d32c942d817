"""model.residual_gain = "auto": what residual blocks start at, measured before training.

A deep spiking net learns from what reaches its last layers, and from what of the gradient comes back.
This module sets the way forward, `calibration` the way back.

gain    A block adds its branch to what passes through. With the last norm's usual weight of 1 every
        block of an untrained net replaces part of the image by chance, and after some twenty of
        them nothing of it is left (`Prober.overlap`). Where the last layer keeps enough of an image's
        identity all the same, as in shallow nets, blocks start as usual, because open ones learn
        sooner. Else the largest gain is taken with which it keeps as much; with `plain` blocks, which
        hand on nothing but spikes, the gain with which it keeps most. Enough are 30 %, with `ms`
        blocks of two layers 80 %: they end higher from a smaller gain, bottlenecks do not.
bias    In a `plain` block the spikes of the shortcut enter a neuron again. A spike of 1 meets a
        threshold of 1 exactly: as soon as the branch adds a little below zero, half of the spikes
        are lost. A bias lifts them above the threshold. Tried are some that leave silent neurons
        silent; the smallest is taken with which the image survives blocks that have opened a little.
        A neuron without a leak (`if`) keeps what it was given and fires a step later, so it gets no
        margin: a bias would add up over the time steps.

Nothing is random: the images are those of `probe_batches`.
"""

from dataclasses import dataclass

import numpy as np

from spiketriton.config import Recipe
from spiketriton.gradients.aims import is_bottleneck
from spiketriton.gradients.probing import Prober
from spiketriton.gradients.verdict import in_percent
from spiketriton.models import Network

GAINS = (1.0, 0.7, 0.5, 0.35, 0.2, 0.1, 0.0)
ENOUGH = 0.3
ENOUGH_OF_PAIRS = 0.8  # for `ms` blocks of two layers
GOOD_BIAS = 0.95  # of the mean overlap with the best bias
MARGINS = (0.0, 0.1, 0.25, 0.4)  # of the threshold
SILENT = 0.9  # of the bias that would make silent neurons fire
AJAR = 0.1  # the gain at which margins are compared


@dataclass(frozen=True)
class BlockStart:
    """What the last norm of every residual block starts at; plain data, saved with the run.

    gain, bias: weight and bias.
    overlap: what the last layer keeps of an image with them.
    tried: (gain, overlap), from closed to open, with that bias, as far as they had to be tried.
    margins: (bias, overlap) of the biases that were compared; empty where there was no choice.
    """

    gain: float
    bias: float
    overlap: float
    tried: tuple[tuple[float, float], ...]
    margins: tuple[tuple[float, float], ...] = ()

    def apply(self, model: Network) -> None:
        """Sets the last norms of `model`."""
        model.start_blocks(self.gain, self.bias)

    def line(self) -> str:
        """What was chosen and why, for the user."""
        usual = self.tried[-1][1]
        if self.gain == GAINS[0]:
            return (
                f"residual blocks start at gain {self.gain:g}, as usual: the last layer keeps "
                f"{in_percent(usual)} of an image's identity"
            )
        bias = f" and bias {self.bias:.3g}" if self.bias else ""
        return (
            f"residual blocks start at gain {self.gain:g}{bias}: the last layer keeps "
            f"{in_percent(self.overlap)} of an image's identity, {in_percent(usual)} with gain "
            f"{self.tried[-1][0]:g}"
        )


def wants_block_start(recipe: Recipe) -> bool:
    """Whether the recipe leaves the start to be measured; the ANN twin always starts at 0."""
    return recipe.model.residual_gain == "auto" and recipe.neuron.kind != "relu"


def find_block_start(recipe: Recipe, model: Network, prober: Prober) -> BlockStart:
    """Measures the start that `recipe` asks for, and sets it in `model`.

    Args:
        recipe: one with model.residual_gain "auto", not of an ANN twin.
        model: its network, at the weights that training starts from.
        prober: of that network.
    """

    def overlap(gain: float, bias: float) -> np.ndarray:
        model.start_blocks(gain, bias)
        return np.nan_to_num(prober.overlap())

    wanted = recipe.model.residual_bias
    bias = 0.0 if isinstance(wanted, str) else wanted
    plain = recipe.model.block == "plain"
    pairs = recipe.model.block == "ms" and not is_bottleneck(recipe)
    enough = ENOUGH_OF_PAIRS if pairs else ENOUGH
    usual = float(overlap(GAINS[0], bias)[-1])
    tried = [(GAINS[0], usual)]
    margins: list[tuple[float, float]] = []
    if usual < enough:
        if wanted == "auto" and plain:
            margins = [(b, float(overlap(AJAR, b).mean())) for b in _biases(recipe)]
            bias = _smallest_good(margins)
            tried[0] = (GAINS[0], float(overlap(GAINS[0], bias)[-1]))
        for gain in GAINS[1:]:
            if tried[-1][1] >= enough and not plain:
                break
            tried.append((gain, float(overlap(gain, bias)[-1])))
    good = [pair for pair in tried if pair[1] >= enough and not plain]
    gain, kept = good[0] if good else max(tried, key=lambda pair: pair[1])
    found = BlockStart(gain, bias, kept, tuple(reversed(tried)), tuple(margins))
    found.apply(model)
    return found


def _smallest_good(margins: list[tuple[float, float]]) -> float:
    """The first of (bias, overlap) whose overlap is nearly the best."""
    most = max(kept for _, kept in margins)
    return next(bias for bias, kept in margins if kept >= GOOD_BIAS * most or kept == most)


def _biases(recipe: Recipe) -> list[float]:
    """None, and those with which a spike of the shortcut, by itself, lifts h above the threshold by a margin.

    Of these only such as leave neurons without a spike below the threshold in all time steps; where there are none,
    the smallest of them, and one with which they stay below it.
    """
    neuron = recipe.neuron
    leaky = neuron.kind in ("lif", "plif")
    gain = 1 / neuron.tau if neuron.decay_input and leaky else 1.0
    decay = 1 - 1 / neuron.tau if leaky else 1.0
    enough = neuron.v_threshold / gain
    lifting = [enough - 1 + margin * enough for margin in (MARGINS if leaky else (0.0,))]
    added_up = gain * sum(decay**t for t in range(recipe.time_steps))  # h of a bias of 1 alone
    silent = neuron.v_threshold / added_up
    return sorted({0.0, *([b for b in lifting if b < silent] or [lifting[0], SILENT * silent])})
