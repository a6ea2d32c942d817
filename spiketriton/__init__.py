"""spiketriton: training of deep spiking neural networks on fused Triton kernels, from one TOML recipe."""

__version__ = "0.1.0"
