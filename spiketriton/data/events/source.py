"""A recipe's recordings as a source of frames, ready to be batched."""

from spiketriton.config import DataConfig
from spiketriton.data.events.cache import frames_of
from spiketriton.data.events.recordings import Recordings
from spiketriton.data.preparing import workers_of
from spiketriton.data.sources import Source


def event_source(found: Recordings, config: DataConfig, steps: int) -> Source:
    """The sets of recordings, in `steps` frames each; computes them the first time.

    UserError: one is damaged, or the frames cannot be written.
    """
    size = config.image_size or found.size
    workers = workers_of(config)
    train, test, *held_out = frames_of(found, config, steps=steps, size=size, workers=workers)
    return Source(
        train=train,
        test=test,
        validation=held_out[0] if held_out else None,
        classes=found.classes,
        channels=2,
        image_size=size,
        statistics=((), ()),
        move="events",
        mirrors=found.mirrors,
        split=config.split_words,
        bin_ms=test.duration_us / steps / 1000 if config.bins == "time" else None,
    )
