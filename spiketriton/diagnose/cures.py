"""Changes that may help a net: the one that removes what stands in its way first.

They are the defaults that a recipe does not take, and for networks of one's own what a module can be given without
changing its code. Nothing here is known to help a net that has not tried it: `trials.py` does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from torch import Tensor, nn

from spiketriton.config import Recipe
from spiketriton.config.names import BLOCK_NETS, CHAINS, LEAKY, SKIPLESS
from spiketriton.gradients.verdict import LIMITS, Verdict, Word, starts_closed
from spiketriton_kernels.neurons.handed import Handed
from spiketriton_kernels.nn import SpikingNeuron

WIDTH = 0.3  # of the threshold: the default
WAITS = (Word.LEARNING, Word.FALLING, Word.EARLY)  # whatever stands in the way


class Why(StrEnum):
    """Why a change may help; `words.py` has the sentences."""

    BLOCKS_START_CLOSED = "blocks start closed"
    GOES_AROUND = "the gradient goes around neurons"
    IDENTITY = "layers start as the identity"
    WIDTH = "the default width"
    NORM = "batch norm"
    MEMBRANES = "membrane shortcuts"
    CLIPPING = "a limit on the gradient's norm"
    RATE = "a lower learning rate"
    INPUT = "the whole input"
    THRESHOLD = "a lower threshold"
    TAU = "a longer memory"
    NO_LEAK = "no leak"
    PARALLEL = "all steps at once"
    DETACHED = "no gradient through the reset"
    HEIGHT = "a lower surrogate"
    MEAN = "the mean is read"
    EACH_STEP = "every step has a loss"
    NO_FEEDBACK = "no spikes come back"


@dataclass(frozen=True)
class Cure:
    """A change of the recipe, or of the neurons of a module where `key` is "", and why."""

    key: str
    value: float | bool | str
    why: Why
    steps: int = 0  # of the window, where a module's neurons are to remember all of it

    @property
    def override(self) -> str:
        """The line of a recipe that makes it; "" where none can."""
        value = f"{self.value:g}" if isinstance(self.value, float) else str(self.value).lower()
        return f"{self.key}={value}" if self.key else ""


CLIPPING = Cure("", "a limit of 1 on the gradient's norm", Why.CLIPPING)
NORM = Cure("", "batch norm in front of every neuron", Why.NORM)
INPUT = Cure("", "decay_input=False of every neuron", Why.INPUT)
THRESHOLD = Cure("", "half of every neuron's v_threshold", Why.THRESHOLD)
DETACHED = Cure("", "detach_reset=True of every neuron", Why.DETACHED)
HEIGHT = Cure("", "half of the height of every neuron's surrogate", Why.HEIGHT)


def cures(recipe: Recipe, verdict: Verdict) -> list[Cure]:
    """What to try, where the verdict found an obstacle or nothing was learnt."""
    model, neuron, found = recipe.model, recipe.neuron, list[Cure]()
    stuck = verdict.word in (Word.CHANCE, Word.FLAT)
    if not (stuck or verdict.obstacles) or verdict.word in WAITS:
        return []
    found += _through_time(recipe, verdict)
    slower = Cure("train.lr", float(f"{recipe.peak_lr / 3:.2g}"), Why.RATE)
    lost = verdict.forward.word != Word.FREE
    exploding = verdict.backward.word != Word.FREE or verdict.through.word == Word.BURSTS
    if (exploding or (stuck and recipe.train.optimizer == "sgd")) and not recipe.clipping:
        found.append(Cure("train.clip_grad_norm", 1.0, Why.CLIPPING))
    known = (*BLOCK_NETS, *SKIPLESS)
    if model.name not in known:  # somebody's own
        own = ":" in model.name and (lost or stuck)
        return [*found, *([NORM, INPUT, THRESHOLD] if own else []), *[slower] * stuck]
    if lost and neuron.v_threshold > 1:
        found.append(Cure("neuron.v_threshold", 1.0, Why.THRESHOLD))
    blocks = model.name in BLOCK_NETS and model.block != "preact"
    if model.norm == "none":
        found.append(Cure("model.norm", "bn", Why.NORM))
    elif blocks and model.block in ("plain", "ms") and not starts_closed(model):
        found.append(Cure("model.residual_gain", 0.0, Why.BLOCKS_START_CLOSED))
    if model.name in SKIPLESS and model.start == ("kaiming" if model.name in CHAINS else "auto"):
        found.append(Cure("model.start", "identity", Why.IDENTITY))
    if blocks and model.block == "plain":
        if stuck and model.shortcut_gradient != "straight_through":
            found.append(Cure("model.shortcut_gradient", "straight_through", Why.GOES_AROUND))
        found.append(Cure("model.block", "ms", Why.MEMBRANES))
    usual = WIDTH * neuron.v_threshold
    own_width = neuron.kind == "ilif"  # its gradient has no width
    if (stuck or exploding) and not own_width and not 0.5 < neuron.surrogate.width / usual < 2:
        found.append(Cure("neuron.surrogate.width", float(f"{usual:.3g}"), Why.WIDTH))
    return [*found, *[slower] * stuck]


def _longer(steps: int) -> Cure:
    """Of neurons that no recipe changes."""
    told = f"tau = {steps}, the length of the window, of every neuron"
    return Cure("", told, Why.TAU, steps)


def _through_time(recipe: Recipe, verdict: Verdict) -> list[Cure]:
    """What lets more of the gradient back through time, or less where it explodes; other readings last."""
    neuron, loss, steps = recipe.neuron, recipe.loss, verdict.through.steps
    stuck = verdict.word in (Word.CHANCE, Word.FLAT)
    attached = not neuron.detach_reset and neuron.resets_by != "none"
    detached = [Cure("neuron.detach_reset", True, Why.DETACHED)] * attached
    alone = [Cure("model.recurrent", False, Why.NO_FEEDBACK)] * recipe.model.recurrent
    if verdict.through.word == Word.BURSTS:
        high = neuron.kind != "ilif" and neuron.surrogate.height > 1
        return [*detached, *[Cure("neuron.surrogate.height", 1.0, Why.HEIGHT)] * high, *alone]
    # where no row speaks of a net like it, nothing is tried before it is stuck
    little = verdict.through.arrives <= LIMITS.memory["states"].limit
    unknown = stuck and verdict.through.memory == "other" and little
    if verdict.through.word != Word.FORGETS and not unknown:
        return []
    found = []
    if ":" in recipe.model.name:  # whose neurons no key of a recipe changes
        found.append(_longer(steps))
    else:
        if neuron.kind in LEAKY and neuron.tau < steps:
            found.append(Cure("neuron.tau", float(steps), Why.TAU))
        if neuron.kind != "if":
            found.append(Cure("neuron.kind", "if", Why.NO_LEAK))
        found += [*detached, *alone]
        if neuron.kind != "psn" and not alone:  # which has no step before that could come back
            found.append(Cure("neuron.kind", "psn", Why.PARALLEL))
    if loss.read == "last":
        found.append(Cure("loss.read", "mean", Why.MEAN))
    if loss.kind == "cross_entropy":
        found.append(Cure("loss.kind", "tet", Why.EACH_STEP))
    return found


def own_cures(neurons: Sequence[SpikingNeuron], verdict: Verdict) -> list[Cure]:
    """What to try of a module without a recipe."""
    if verdict.word in WAITS:
        return []
    through = verdict.through
    exploding = verdict.backward.word == Word.EXPLODING or through.word == Word.BURSTS
    found = [CLIPPING] if exploding else []
    if through.word == Word.BURSTS:
        found += [DETACHED, HEIGHT]
    if through.word == Word.FORGETS:
        found += [_longer(through.steps), DETACHED]
    found = [cure for cure in found if cure is CLIPPING or any(_fits(cure, n) for n in neurons)]
    if {Word.LOST, Word.SILENT, Word.CHANCE} & {
        verdict.word,
        verdict.forward.word,
    } or verdict.forward.arrives is False:
        own = (NORM, INPUT, THRESHOLD)
        found += [cure for cure in own if any(_fits(cure, neuron) for neuron in neurons)]
    return found


def _fits(cure: Cure, neuron: SpikingNeuron) -> bool:
    if cure is INPUT:
        return getattr(neuron, "decay_input", False) is True
    if cure is DETACHED:
        return not neuron.detach_reset and neuron.reset_mode != "none"
    if cure.why == Why.TAU:
        return any(hasattr(neuron, name) for name in ("tau", "init_tau", "decay"))
    return True


def change_neurons(net: nn.Module, cure: Cure, x: Tensor) -> None:
    """Changes the neurons of a module in place, and shows it `x`, by which norms know how many channels there are."""
    neurons = [n for n in net.modules() if isinstance(n, SpikingNeuron) and _fits(cure, n)]
    device = next((p.device for p in net.parameters()), None)
    for neuron in neurons:
        if cure is NORM:
            neuron.register_forward_pre_hook(_normalised)
            neuron.add_module("norm_in_front", nn.LazyBatchNorm1d(device=device))
        elif cure is INPUT:
            neuron.decay_input = False
        elif cure is DETACHED:
            neuron.detach_reset = True
        elif cure is HEIGHT:
            neuron.surrogate = replace(neuron.surrogate, height=neuron.surrogate.height / 2)
        elif cure.why == Why.TAU:
            _remember(neuron, cure.steps)
        elif isinstance(neuron.v_threshold, Tensor):
            neuron.v_threshold.data.mul_(0.5)
        else:
            neuron.v_threshold = 0.5 * neuron.v_threshold
    net.train()
    net(x)
    for neuron in neurons:
        norm = getattr(neuron, "norm_in_front", None)
        if isinstance(norm, nn.LazyBatchNorm1d):  # still: no call has reached it
            neuron.norm_in_front = nn.Identity()


def _remember(neuron: SpikingNeuron, steps: int) -> None:
    """Gives a neuron the time constant `steps`."""
    own: Any = neuron
    if hasattr(neuron, "init_tau"):  # a parameter w, of which 1 / tau is the sigmoid
        own.w.data.fill_(-math.log(steps - 1))
    elif hasattr(neuron, "tau"):
        own.tau = float(steps)
    elif isinstance(neuron.decay, Tensor):
        neuron.decay.data.fill_(1 - 1 / steps)
    else:
        own.decay = 1 - 1 / steps


def _normalised(neuron: nn.Module, given: tuple[Any, ...]) -> Tensor | None:
    """The current [T, B, C, ...], or [B, C, ...] of a single step, behind the norm that was put in front."""
    (x,) = given
    if isinstance(x, Handed):  # `swap` has fused the norm that is there already
        return None
    norm, one = neuron.get_submodule("norm_in_front"), neuron.step_mode == "s"
    flat = x if one else x.flatten(0, 1)
    normalised: Tensor = norm(flat.flatten(2) if flat.ndim > 2 else flat).view_as(x)
    return normalised
