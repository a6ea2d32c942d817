"""`spiketriton convert RUN`: a trained ANN twin as a spiking network.

conversion.py chooses thresholds; models/converted.py is the network that comes out.
"""
