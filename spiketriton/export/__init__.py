"""`spiketriton export RUN` and `spiketriton import FILE`: networks in formats that other programs read.

exports.py writes and compares, weights.py is safetensors. NIR: nir_graph.py out, nir_network.py in, nir_replay.py its
equations alone, by which both are checked.
"""
