"""Processes that tests start; in some of them Triton launches for a GPU that is not here, and a stub compiles."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def environment(**variables: str) -> dict[str, str]:
    """For a process that a test starts anywhere: this checkout, on one thread."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *sys.path])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **variables}


class Compiled:
    """What stands for a compiled kernel."""

    function = packed_metadata = object()

    def __init__(self, source: Any) -> None:
        self.source = source

    def launch_metadata(self, *_: Any) -> None:
        pass

    def run(self, *_: Any) -> None:
        pass


def stub_compiler(compile_: Callable[[Any], Compiled]) -> None:
    """Within ``without_gpu`` and for good: the package's kernels are compiled by this."""
    import triton

    from spiketriton_kernels.backends import triton_neuron, triton_norm, triton_tiles

    for module in (triton_neuron, triton_norm, triton_tiles):
        for name, kernel in vars(module).items():
            if isinstance(kernel, triton.JITFunction) and name.endswith("_kernel"):
                kernel.device_caches[0]
                kernel.compile = lambda source, target, options, **_: compile_(source)
