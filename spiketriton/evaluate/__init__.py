"""`spiketriton evaluate RUN`: accuracy, spikes, operations and energy of a run.

evaluation.py measures, counters.py counts, energy.py weighs, results.py is what comes out; tables.py and the pictures
show it.
"""
