"""Fused spiking-neuron kernels for PyTorch: whole time windows, forward and backward, at the memory-traffic floor.

Imports torch, triton, the standard library and itself: install it with pip, or copy the folder.

Read neurons/lif.py (a neuron), neuron.py (the records that a call is made of), lif.py and window/fire.py (a call is
checked), window/passes.py (memory is allocated) and backends/ (who computes it). window/ has a call's two ways into
autograd, too; surrogate.py has the slopes, nn/ the modules, steps/ neurons of one's own.
"""

from .arguments import PROBE_FIELDS
from .backends.choice import backend_for, use_backend
from .bn_lif import multistep_bn_lif, multistep_bn_lif_reference
from .convolutions.packed import pack_spikes, unpack_spikes
from .lif import multistep_lif, multistep_lif_reference
from .neuron import States
from .states import (
    multistep_alif,
    multistep_alif_reference,
    multistep_clif,
    multistep_clif_reference,
    multistep_cuba,
    multistep_cuba_reference,
    multistep_ilif,
    multistep_ilif_reference,
    virtual_steps,
)
from .surrogate import REACH, SHAPES, Surrogate, register_surrogate

__version__ = "0.1.0"

__all__ = [
    "PROBE_FIELDS",
    "REACH",
    "SHAPES",
    "States",
    "Surrogate",
    "backend_for",
    "multistep_alif",
    "multistep_alif_reference",
    "multistep_bn_lif",
    "multistep_bn_lif_reference",
    "multistep_clif",
    "multistep_clif_reference",
    "multistep_cuba",
    "multistep_cuba_reference",
    "multistep_ilif",
    "multistep_ilif_reference",
    "multistep_lif",
    "multistep_lif_reference",
    "pack_spikes",
    "register_surrogate",
    "unpack_spikes",
    "use_backend",
    "virtual_steps",
]
