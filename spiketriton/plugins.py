"""Plugins: models, data sets, losses and neurons that recipes name like built-in ones.

    @dataclass(frozen=True, kw_only=True)
    class Keys(PartOptions):
        hidden: int = key(32, "neurons of the hidden layer", Range(1, 4096))

    @model("two_layers", options=Keys)
    def two_layers(recipe, parts, *, classes, channels, image_size): ...

docs/plugins.md says what each function is called with and what it returns.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from spiketriton.config.parts import Part
from spiketriton.config.recipe import PartOptions, Range, key, register_part

__all__ = ["PartOptions", "Range", "data", "key", "loss", "model", "neuron"]

Make = TypeVar("Make", bound=Callable[..., Any])
Decorator = Callable[[Make], Make]


def _registers(kind: str, name: str, options: type[PartOptions] | None) -> Decorator:
    def decorator(make: Make) -> Make:
        register_part(Part(kind, name, make, options, make.__module__))
        return make

    return decorator


def model(name: str, *, options: type[PartOptions] | None = None) -> Decorator:
    """`model.name`: (recipe, parts, *, classes, channels, image_size) -> `spiketriton.models.Network`.

    `parts` makes norms, neurons, convolutions and linear layers as the recipe asks for them.
    """
    return _registers("models", name, options)


def data(name: str, *, options: type[PartOptions] | None = None) -> Decorator:
    """`data.name`: (config: DataConfig) -> `spiketriton.data.sources.Source`."""
    return _registers("data", name, options)


def loss(name: str, *, options: type[PartOptions] | None = None) -> Decorator:
    """`loss.kind`: (config: LossConfig) -> (currents [T, B, K], labels [B]) -> scalar."""
    return _registers("losses", name, options)


def neuron(name: str, *, options: type[PartOptions] | None = None) -> Decorator:
    """`neuron.kind`: (config: NeuronConfig) -> `spiketriton.neurons.SpikingNeuron`."""
    return _registers("neurons", name, options)
