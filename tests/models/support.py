"""Small networks and what they see."""

import torch
from torch import Tensor, nn

from spiketriton.config import DataConfig, ModelConfig, NeuronConfig, Recipe
from spiketriton.config.names import CLOSABLE
from spiketriton.models import Network, build_model
from spiketriton.models.layers import Parts
from spiketriton.neurons import Norm

T, B, CLASSES = 2, 3, 10
BLOCKS = CLOSABLE
NORMS = ("bn", "tdbn", "tebn", "none")
EVERY_BLOCK = [{"block": block} for block in BLOCKS]
SHALLOW_MLP = {"name": "mlp", "depth": 3}
# blocks that do something: closed ones would make comparisons vacuous
OPEN = {"residual_gain": 1.0, "residual_bias": 0.0, "shortcut_gradient": "surrogate"}


def recipe(name: str = "resnet8", *, time_steps: int = T, neuron: dict | None = None, **model):
    residual = name.startswith("resnet") or name == "net7b"
    if residual:
        model = {"block": "plain"} | model
    if residual and model.get("norm") != "none" and model.get("block") != "preact":
        plain = model["block"] == "plain"
        model = {k: v for k, v in OPEN.items() if plain or k == "residual_gain"} | model
    return Recipe(
        name="test",
        time_steps=time_steps,
        data=DataConfig(name="synthetic"),
        model=ModelConfig(name=name, **model),
        neuron=NeuronConfig(**(neuron or {})),
    )


def parts_of(**options) -> Parts:
    given = recipe(**options)
    return Parts(given.model, given.neuron, given.time_steps)


def build(name: str = "resnet8", *, channels: int = 3, image_size: int = 16, seed=0, **options):
    torch.manual_seed(seed)
    return build_model(
        recipe(name, **options), classes=CLASSES, channels=channels, image_size=image_size
    )


@torch.no_grad()
def lively(model: Network) -> Network:
    """Biases under which narrow, untrained layers fire at every depth: no test is vacuous."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.fill_(0.5)
    return model


def images(channels: int = 3, size: int = 16, batch: int = B, seed: int = 1) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


def frames(steps: int, channels: int = 3, size: int = 16, batch: int = B, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (steps, batch, channels, size, size)
    return torch.randint(0, 4, shape, generator=generator).float().log1p()


def backward(model: Network, x: Tensor) -> Tensor:
    """A loss in which every class and step differs, so that no gradient is zero by symmetry."""
    currents = model(x)
    weights = torch.randn(currents.shape, generator=torch.Generator().manual_seed(2))
    (currents * weights).sum().backward()
    return currents


def norms_of(model: nn.Module) -> dict[str, Norm]:
    return {name: m for name, m in model.named_modules() if isinstance(m, Norm)}
