"""spiketriton: training of deep spiking neural networks on fused Triton kernels, from one TOML recipe.

    run = spiketriton.train("quickstart", epochs=2)
    run.predict(images)

See `spiketriton.api`.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from spiketriton.system import errors
from spiketriton.system.version import __version__ as __version__
from spiketriton.system.version import other_kernels

if TYPE_CHECKING:
    from spiketriton.api import Run, diagnose, from_nir, load_run, train

__all__ = ["Run", "diagnose", "from_nir", "load_run", "train"]

if sys.argv[:1] == ["-m"]:  # python -m spiketriton.COMMAND, which is about to import torch
    errors.end_quietly_on_interrupt()


def __getattr__(name: str) -> Any:
    """Imports torch when it is needed: the list of commands does not wait for it."""
    if name in __all__:
        if wrong := other_kernels():
            raise ImportError(wrong)
        return getattr(import_module("spiketriton.api"), name)
    raise AttributeError(f"module 'spiketriton' has no attribute {name!r}")
