"""Gradients while a net trains.

Read monitor.py (hands probes to layers), measurement.py (makes numbers of their sums), watch.py (keeps the last ones),
verdict.py (judges them).
"""
