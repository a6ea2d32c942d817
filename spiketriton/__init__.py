"""spiketriton: training of deep spiking neural networks on fused Triton kernels, from one TOML recipe.

    run = spiketriton.train("quickstart", epochs=2)
    run.predict(images)

See `spiketriton.api`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spiketriton import processors

if TYPE_CHECKING:
    from spiketriton.api import Run, load_run, train

__all__ = ["Run", "load_run", "train"]
__version__ = "0.1.0"

processors.wait_without_spinning_if_busy()


def __getattr__(name: str) -> Any:
    """Imports torch when it is needed: the list of commands does not wait for it."""
    if name == "train":  # a module that can be called, so that the command keeps its name
        return import_module("spiketriton.train")
    if name in __all__:
        return getattr(import_module("spiketriton.api"), name)
    raise AttributeError(f"module 'spiketriton' has no attribute {name!r}")
