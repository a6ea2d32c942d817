"""Recordings of event cameras: read from files (formats.py), binned to frames, cached, augmented.

`data` imports this room where a recipe names recordings, and takes from it what is below.
"""

from spiketriton.events.augment import EventTransform, Moves
from spiketriton.events.formats import EVENT, FORMATS, read_events
from spiketriton.events.given import given_frames
from spiketriton.events.recordings import ENDINGS

__all__ = ["ENDINGS", "EVENT", "FORMATS", "EventTransform", "Moves", "given_frames", "read_events"]
