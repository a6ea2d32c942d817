"""`spiketriton export RUN` and `spiketriton import FILE`: networks in formats that other programs read.

exports.py writes and replays, weights.py is safetensors, nir_*.py are NIR in both directions.
"""
