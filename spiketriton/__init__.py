"""spiketriton: training of deep spiking neural networks on fused Triton kernels, from one TOML recipe."""

from spiketriton import processors

__version__ = "0.1.0"

processors.wait_without_spinning_if_busy()
