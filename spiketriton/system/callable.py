"""Commands that are functions too: `spiketriton.train(...)` serves after the module of that name was imported."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Function(ModuleType):
    """A command's module; called, it is the function of `spiketriton.api` that it hides."""

    def __call__(self, *args: Any, **keys: Any) -> Any:
        api = import_module("spiketriton.api")  # the command does not need it
        return getattr(api, self.__name__.rpartition(".")[2])(*args, **keys)


def as_function(name: str) -> None:
    """Makes the module of this name callable."""
    sys.modules[name].__class__ = _Function
