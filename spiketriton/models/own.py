"""A network by a plugin, made and looked at once; and those of this package, where a task asks for other answers."""

from spiketriton.config import Recipe
from spiketriton.config.parts import Part
from spiketriton.models.inspection import failing
from spiketriton.models.layers import Parts
from spiketriton.models.network import Network
from spiketriton.system.errors import UserError


def make_own(
    recipe: Recipe, part: Part, parts: Parts, answer: tuple[int, ...], sizes: dict[str, int]
) -> Network:
    """The network. `answer`: the shape of the answer to an image. UserError: it cannot be made, or has another."""
    if part.built_in:
        raise UserError(
            f'model.name = "{part.name}" answers with {sizes["classes"]} numbers an image, and loss.kind = '
            f'"{recipe.loss.kind}" wants {[*answer]}; accepted: a network of your own'
        )
    what = f'model.name = "{part.name}" of the plugin {part.home}'
    with failing(what, part.make):
        net = part.make(recipe, parts, **sizes)
        part.checked(net, Network, "spiketriton.models.Network")
    channels, side = sizes["channels"], sizes["image_size"]
    one = "a sequence of {0} channels" if parts.sequence else "an image of {0}x{1}x{1}"
    shown = f"{what}, shown {one.format(channels, side)},"
    with failing(shown, part.make):
        found = net.look_at_calls(side)
    if (wanted := [1, *answer]) != found[1:]:
        raise UserError(
            f"{shown} answers with {found}; accepted: [T, B, ...] = {[recipe.time_steps, *wanted]}"
        )
    return net
