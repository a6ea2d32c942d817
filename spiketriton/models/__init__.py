"""Networks from recipes: images [B, C, H, W] or frames [T, B, C, H, W] -> currents [T, B, K]."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from spiketriton import plugins
from spiketriton.config import ModelConfig, NeuronConfig, Recipe
from spiketriton.config.parts import chosen
from spiketriton.config.rules import LEAKY, PARALLEL
from spiketriton.errors import UserError, one_line, warn_once
from spiketriton.models.blocks import BlockNetwork
from spiketriton.models.feedforward import MLP, PlainNet
from spiketriton.models.foreign import make_foreign
from spiketriton.models.layers import Parts
from spiketriton.models.network import Network, trial
from spiketriton.models.pooled import PLANS, VGG, BlockNet
from spiketriton.models.preact import PreActResNet
from spiketriton.models.resnet import (
    ARCHITECTURES,
    IMAGENET_STEM_FROM,
    ResNet,
    ResNet19,
    pixel_warning,
)
from spiketriton_kernels.nn import PSN, MaskedPSN

__all__ = ["Network", "build_model", "count_parameters", "trial"]


def build_model(recipe: Recipe, *, classes: int, channels: int, image_size: int) -> Network:
    """The network of a recipe for images, or frames, of [..., channels, image_size, image_size].

    Parameters are drawn from torch's global random state. The ANN twin and `model.fused` have the same names and
    shapes, so that checkpoints fit.
    """
    model, part = recipe.model, chosen("models", recipe.model.name)
    parts = Parts(model, recipe.neuron, recipe.time_steps)
    sizes = {"classes": classes, "channels": channels, "image_size": image_size}
    if ":" in part.name:
        averages = recipe.loss.kind != "tet"
        return make_foreign(part.name, part.make, model, parts, averages=averages, **sizes)
    if not part.built_in:
        what = f'model.name = "{part.name}" of the plugin {part.home}'
        with _failing(what, part.make):
            net = part.make(recipe, parts, **sizes)
            part.checked(net, Network, "spiketriton.models.Network")
        with _failing(
            f"{what}, shown an image of {channels}x{image_size}x{image_size},", part.make
        ):
            net.look_at_calls(image_size)
        return net
    net = part.make(model, parts, **sizes)
    net.drop_paths()
    if model.norm != "none":
        blocks = list(net.blocks()) if isinstance(net, BlockNetwork) else []
        gain = _block_gain(model, recipe.neuron, len(blocks))
        net.start_blocks(gain, _block_bias(model, gain, recipe.neuron, recipe.time_steps))
        if _fires_last(model):
            for _, block in blocks:
                neuron = block.stages()[-1][2]
                # whose weights of either sign would lose the shortcut; a masked one's are so few that they always do
                if isinstance(neuron, PSN if gain == 0 else MaskedPSN):
                    nn.init.eye_(neuron.weight)
    return net


@contextmanager
def _failing(what: str, make: Callable[..., Any]) -> Iterator[None]:
    """The mistakes of somebody else's code in one line, with where in the file of `make` it is. UserError."""
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        file = getattr(getattr(make, "__code__", None), "co_filename", "")
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
        where = f" ({file}:{lines[-1]})" if lines else ""
        raise UserError(
            f"{what} failed: {type(error).__name__}: {one_line(error)}{where}"
        ) from error


@plugins.model(*ARCHITECTURES)
def _resnet(
    model: ModelConfig, parts: Parts, *, classes: int, channels: int, image_size: int
) -> Network:
    architecture = ARCHITECTURES[model.name]
    if model.width:
        architecture = architecture._replace(width=model.width)
    stem = model.stem
    if stem == "auto":
        large = len(architecture.blocks) == 4 and image_size >= IMAGENET_STEM_FROM
        stem = "imagenet" if large else "cifar"
    if warning := pixel_warning(model.name, stem, image_size):
        warn_once(warning)
    sizes: dict[str, Any] = {"stem": stem, "classes": classes, "channels": channels}
    if model.block == "preact":
        return PreActResNet(parts, architecture, **sizes)
    kind = ResNet19 if model.name == "resnet19" else ResNet
    return kind(parts, architecture, block=model.block, **sizes)


@plugins.model(*PLANS)
def _vgg(model: ModelConfig, parts: Parts, *, image_size: int, **sizes: int) -> Network:
    plan, hidden, width = PLANS[model.name]
    smallest = 1 << sum(isinstance(entry, str) for entry in plan)
    if image_size < smallest and model.name == "vggsnn":
        raise UserError(
            f"data.image_size = {image_size} is too small for vggsnn, which halves it four "
            f"times; accepted: {smallest} or more"
        )
    return VGG(parts, plan, hidden, width=model.width or width, image_size=image_size, **sizes)


@plugins.model("net7b")
def _net7b(model: ModelConfig, parts: Parts, **sizes: int) -> Network:
    return BlockNet(parts, block=model.block, width=model.width or 32, **sizes)


@plugins.model("plain")
def _plain(model: ModelConfig, parts: Parts, *, image_size: int, **sizes: int) -> Network:
    return PlainNet(parts, depth=model.depth, width=model.width or 16, **sizes)


@plugins.model("mlp")
def _mlp(model: ModelConfig, parts: Parts, **sizes: int) -> Network:
    return MLP(parts, depth=model.depth, width=model.width or 128, **sizes)


def _block_gain(model: ModelConfig, neuron: NeuronConfig, blocks: int) -> float:
    """Weight of the last norm of a block. The signal of I-LIF survives open blocks, and they learn sooner."""
    if model.residual_gain != "auto":
        return model.residual_gain
    return blocks**-0.5 if neuron.kind == "ilif" and blocks else 0.0


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
    if model.block == "sew":  # with "and", where only a branch that fires passes the shortcut on
        return 1.25 * neuron.v_threshold / gain
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
    return model.block == "plain" or (model.block == "sew" and model.connect == "and")


def count_parameters(model: nn.Module) -> int:
    """Number of values that training changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
