"""Models, data sets, losses, tasks and neurons that recipes name: built-in ones and plugins are registered alike.

    @dataclass(frozen=True, kw_only=True)
    class Keys(PartOptions):
        hidden: int = key(32, "neurons of the hidden layer", Range(1, 4096))

    @model("two_layers", options=Keys)
    def two_layers(recipe, parts, *, classes, channels, image_size): ...

docs/own_code.md says what each function is called with and what it returns.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from spiketriton.config.parts import Part
from spiketriton.config.recipe import PartOptions, Range, key, register_part

__all__ = ["PartOptions", "Range", "data", "key", "loss", "model", "neuron", "task"]

Make = TypeVar("Make", bound=Callable[..., Any])
Decorator = Callable[[Make], Make]


def _registers(
    kind: str, names: tuple[str, ...], options: type[PartOptions] | None = None
) -> Decorator:
    def decorator(make: Make) -> Make:
        for name in names:
            register_part(Part(kind, name, make, options, make.__module__))
        return make

    return decorator


def model(*names: str, options: type[PartOptions] | None = None) -> Decorator:
    """`model.name`: (recipe, parts, *, classes, channels, image_size) -> `spiketriton.models.Network`.

    `parts` makes norms, neurons, convolutions and linear layers as the recipe asks for them. Built-in ones are
    not given the recipe.
    """
    return _registers("models", names, options)


def data(*names: str, options: type[PartOptions] | None = None) -> Decorator:
    """`data.name`: (config: DataConfig) -> `spiketriton.data.sources.Source`, or of event cameras `Recordings`."""
    return _registers("data", names, options)


def loss(*names: str, options: type[PartOptions] | None = None) -> Decorator:
    """`loss.kind`: (config: LossConfig) -> (currents [T, B, K], labels [B]) -> scalar.

    Built-in ones are also given the cross-entropy of currents [B, K] and labels.
    """
    return _registers("losses", names, options)


def task(*names: str, options: type[PartOptions] | None = None) -> Decorator:
    """`loss.kind`: (config: LossConfig) -> `spiketriton.plugins.tasks.Task`, of targets of any shape."""
    return _registers("losses", names, options)


def neuron(*names: str, options: type[PartOptions] | None = None) -> Decorator:
    """`neuron.kind`: (config: NeuronConfig) -> `SpikingNeuron` of `spiketriton.neurons` or of the kernels.

    One with a parameter `channels` is also given the number of channels of its currents. Built-in ones are given the
    time steps, and the channels or None.
    """
    return _registers("neurons", names, options)
