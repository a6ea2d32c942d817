"""A small recipe, and what the refusal of one must say."""

from collections.abc import Callable, Sequence

import pytest

from spiketriton.config import DataConfig, ModelConfig, Recipe
from spiketriton.system.errors import UserError, one_line

GOOD = """
[data]
name = "digits"
[model]
name = "resnet8"
"""


def mine(**changes: object) -> Recipe:
    """GOOD, built in Python."""
    given = {"data": DataConfig(name="digits"), "model": ModelConfig(name="resnet8")}
    return Recipe(**{"name": "mine", **given, **changes})


def refused(said: Sequence[str], make: Callable[..., object], *arguments: object, source: str = ""):
    """`make` must refuse in one short line that holds all of `said`, with `source` in front."""
    with pytest.raises(UserError) as raised:
        make(*arguments)
    message = str(raised.value)
    assert message.startswith(source)
    assert [part for part in said if part not in message] == [], message
    assert message == one_line(message)
    assert len(message) < len(source) + 400
