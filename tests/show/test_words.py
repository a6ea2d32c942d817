"""How numbers and verdicts are written."""

import pytest

from spiketriton.show.words import duration, in_percent, speed, times


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"), (45.23, "45.2 s"), (89.9, "89.9 s"), (90, "1.5 min"), (720, "12 min"),
        (5399, "90 min"), (5400, "1.5 h"), (11520, "3.2 h"), (172799, "48 h"), (172800, "2 days"),
        (440640, "5.1 days"),
    ],
)  # fmt: skip
def test_durations(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("rate", "number"), [(9.517, "9.52"), (320.4, "320"), (999.4, "999"), (999.6, "1,000"), (12345, "12,345")]
)  # fmt: skip
def test_a_speed_is_never_a_power_of_ten(rate, number):
    assert speed(rate) == f"{number} images/s"


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (None, "-"), (0.0, "0x"), (1.5e-4, "1.5e-4x"), (9.99e-4, "1e-3x"), (0.00123, "0.00123x"), (3.2, "3.2x"),
        (99.9, "99.9x"), (100.4, "100x"), (7530, "7530x"), (1e4, "1e4x"), (1e12, "1e12x"),
        (float("inf"), "more than 1e38x"),
    ],
)  # fmt: skip
def test_ratios(ratio, words):
    assert times(ratio) == words


def test_a_share_below_nothing_is_nothing():
    assert [in_percent(share) for share in (-0.004, 0.0, 0.254, 1.0)] == [
        "0 %",
        "0 %",
        "25 %",
        "100 %",
    ]
