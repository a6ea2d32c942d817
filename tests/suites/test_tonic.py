"""The recordings that tonic's tests read (github.com/neuromorphs/tonic), read here."""

import numpy as np
import pytest

from spiketriton.events import read_events
from tests.suites.run import fetched

FOLDER = "tonic/test/test_data"


@pytest.mark.parametrize(
    ("name", "events", "sensor"),
    [("sample_nmnist.bin", 4_325, (34, 34)), ("sample_ncars.dat", 2_009, (100, 120))],
)
def test_a_recording_has_its_events_on_its_sensor(name, events, sensor):
    path = fetched(f"{FOLDER}/{name}")
    found = read_events(path, sensor=sensor)
    print(f"\n{name}: {len(found):,} events in {path.stat().st_size:,} bytes")
    assert len(found) == events


def test_a_recording_of_aedat4_is_read_as_another_library_reads_it():
    aedat = pytest.importorskip("aedat")
    path = fetched(f"{FOLDER}/sample.aedat4")
    found = read_events(path, sensor=(240, 320))
    decoder = aedat.Decoder(path)
    theirs = np.concatenate([packet["events"] for packet in decoder if "events" in packet])
    print(f"\nsample.aedat4: {len(found):,} events, as aedat reads them")
    assert len(found) == 111_954
    for field, name in zip("txyp", ("t", "x", "y", "on"), strict=True):
        assert np.array_equal(found[field], theirs[name])
