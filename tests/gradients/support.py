"""What is diagnosed, and a net in which the surrogate's width matters."""

from spiketriton.diagnose.diagnosed import Subject
from tests.small_runs import small_recipe

DEEP = (
    "model.name=mlp",
    "model.depth=8",
    "model.start=kaiming",
    "train.optimizer=sgd",
    "time_steps=5",
)


def subject(*changes: str) -> Subject:
    return Subject(small_recipe(*changes), "recipe small.toml")


def nothing(text: str) -> None:
    """Of a diagnosis without a warning."""
    raise AssertionError(text)
