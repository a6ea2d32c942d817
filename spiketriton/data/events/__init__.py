"""Recordings of event cameras: read from files, binned to frames, cached, augmented."""

from spiketriton.data.events.formats import EVENT, FORMATS, read_events

__all__ = ["EVENT", "FORMATS", "read_events"]
