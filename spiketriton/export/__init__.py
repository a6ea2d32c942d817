"""`spiketriton export RUN` and `spiketriton import FILE`: networks in formats that other programs read.

plain.py is torch.export and ONNX, one_step.py a time step as ONNX, weights.py safetensors. NIR: nir_file.py writes and
compares, nir_graph.py is the way out, nir_network.py the way in, nir_replay.py its equations alone, by which both are
checked.
"""
