"""Networks from recipes: images [B, C, H, W], frames [T, B, C, H, W] or sequences [T, B, C] -> currents [T, B, K].

Read network.py, layers.py (norm and neuron in one call), blocks.py, resnet.py; foreign.py is any other network.
"""

from typing import TYPE_CHECKING, get_args

from torch import nn

from spiketriton.config import ModelConfig, NeuronConfig, Recipe
from spiketriton.config.names import BLOCK_NETS, LEAKY, PARALLEL, VGG, PlainNet
from spiketriton.config.parts import chosen, lies_in
from spiketriton.models.layers import Parts
from spiketriton.models.network import Network, trial
from spiketriton.plugins.tasks import task_of
from spiketriton.system.errors import UserError
from spiketriton_kernels.nn import PSN, MaskedPSN

if TYPE_CHECKING:
    from spiketriton.models.blocks import BlockNetwork

__all__ = ["Network", "build_model", "count_parameters", "trial"]

lies_in("spiketriton.models.resnet", "models", BLOCK_NETS)
lies_in("spiketriton.models.feedforward", "models", (*get_args(PlainNet), *get_args(VGG)))
lies_in("spiketriton.models.sequence", "models", ["sequence"])


def build_model(
    recipe: Recipe, *, classes: int, channels: int, image_size: int, sequence: bool = False
) -> Network:
    """The network of a recipe for images or frames [..., channels, image_size, image_size], or sequences [T, B, C].

    Parameters are drawn from torch's global random state. The ANN twin and `model.fused` have the same names and
    shapes, so that checkpoints fit. UserError: it reads images and is to be shown sequences, or the other way round.
    """
    net = _made(recipe, classes, channels, image_size, sequence)
    net.made_from = recipe
    return net


def _made(recipe: Recipe, classes: int, channels: int, image_size: int, sequence: bool) -> Network:
    part, task = chosen("models", recipe.model.name), task_of(recipe.loss)
    answer = task.answer_shape(classes, image_size)
    parts = Parts(recipe.model, recipe.neuron, recipe.time_steps, sequence)
    if part.built_in and sequence != (recipe.model.name == "sequence"):
        shown, accepted = (
            "images",
            'data.sequence = "rows", "columns", "pixels" or "permuted", or data of sequences',
        )
        if sequence:
            shown, accepted = "sequences", 'model.name = "sequence", or a network of your own'
        raise UserError(
            f'model.name = "{recipe.model.name}", and data.name = "{recipe.data.name}" shows it {shown}; '
            f"accepted: {accepted}"
        )
    sizes = {"classes": classes, "channels": channels, "image_size": image_size}
    if ":" in part.name:
        from spiketriton.models.foreign import make_foreign

        averages = recipe.loss.kind != "tet" and recipe.loss.read == "mean" and not task.whole
        return make_foreign(part.name, part.make, parts, averages=averages, answer=answer, **sizes)
    if not part.built_in or answer != (classes,):
        from spiketriton.models.own import make_own

        return make_own(recipe, part, parts, answer, sizes)
    net = part.make(parts, **sizes)
    if recipe.model.name in BLOCK_NETS:
        _start(net, parts)
    return net


def _start(net: "BlockNetwork", parts: Parts) -> None:
    """What the last norms and neurons of the blocks start with."""
    model, neuron = parts.model, parts.neuron_config
    blocks = [block for _, block in net.blocks()]
    if model.norm == "none":
        return
    gain = _block_gain(model, neuron, len(blocks))
    bias = _block_bias(model, gain, neuron, parts.time_steps)
    for block in blocks:
        block.start(gain, bias)
        last = block.stages()[-1][2]
        # whose weights of either sign would lose the shortcut; a masked one's are so few that they always do
        if _fires_last(model) and isinstance(last, PSN if gain == 0 else MaskedPSN):
            nn.init.eye_(last.weight)


def _block_gain(model: ModelConfig, neuron: NeuronConfig, blocks: int) -> float:
    """Weight of the last norm of a block. The signal of I-LIF survives open blocks, and they learn sooner.

    SEW blocks start as those of their authors: from zero they were no better (docs/gradient_flow.md).
    """
    if model.residual_gain != "auto":
        return model.residual_gain
    if neuron.kind == "ilif":
        return blocks**-0.5
    return 1.0 if model.block == "sew" else 0.0


def _block_bias(model: ModelConfig, weight: float, neuron: NeuronConfig, steps: int) -> float:
    """Bias of the last norm of a block, whose weight is given.

    A spike of a `plain` block's shortcut of 1 meets a threshold of 1 exactly: as soon as the branch takes anything
    away, it is lost. The bias "auto" lifts it so far that a neuron that fires is as far above the threshold in its
    first step as a silent one is below it in the last. A sliding PSN has no reset: its silence is measured behind
    spikes.
    """
    if model.residual_bias != "auto":
        return model.residual_bias
    weighs = neuron.kind in ("psn", "masked_psn")  # all steps, by weights of its own
    if (weighs and weight) or neuron.kind == "relu" or not _fires_last(model):
        return 0.0
    leaky = neuron.kind in LEAKY
    decay = 1 - 1 / neuron.tau if leaky else 1.0
    gain = 1 / neuron.tau if leaky and neuron.decay_input else 1.0
    synapse = 1 - 1 / neuron.tau_synapse if neuron.kind == "cuba" else 0.0
    gathered = arriving = echo = 0.0  # by a current of 1
    if neuron.kind in PARALLEL:
        decay, steps = 0.5, min(steps, neuron.order) if neuron.kind == "sliding_psn" else 1
        echo = 1 - decay ** (steps - 1)
    for _ in range(steps):
        arriving = synapse * arriving + 1
        gathered = decay * gathered + arriving
    return (2 * neuron.v_threshold / gain - 1 - echo) / (1 + gathered)


def _fires_last(model: ModelConfig) -> bool:
    """Whether what leaves a block is lost where a neuron of its own, its last, does not fire."""
    return model.block == "plain"


def count_parameters(model: nn.Module) -> int:
    """Number of values that training changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
