"""One measurement: from sums to norms, rows and back, profiles and ratios, by hand."""

import math

import numpy as np
import pytest

from spiketriton.gradients.measurement import COLUMNS, TIME, Measurement
from spiketriton.runs.rows import GRADIENTS, Rows
from spiketriton_kernels import PROBE_FIELDS

# layers a (2 neurons) and b (8 neurons), 3 time steps
ELEMENTS = [2, 8]


def sums(**fields: list[list[float]]) -> np.ndarray:
    made = np.zeros((2, 3, len(PROBE_FIELDS)))
    for name, values in fields.items():
        made[..., PROBE_FIELDS.index(name)] = values
    return made


def with_grads(grads: list[list[float]]) -> Measurement:
    grad = np.array(grads, np.float64)
    fields = {field: np.ones_like(grad) for field in COLUMNS} | {"grad_input_rms": grad}
    return Measurement(names=tuple("abcdefgh"[: len(grad)]), **fields)


def test_sums_become_means_over_the_elements_without_the_scale_of_the_loss():
    measured = Measurement.of_sums(
        "ab",
        sums(
            grad_spike_sq=[[2, 8, 18], [8, 32, 72]],
            grad_input_sq=[[8, 8, 8], [8, 8, 8]],
            grad_carry_sq=[[50, 0, 0], [0, 0, 0]],
            time_factor=[[1, 1, 1], [1, 1, 1]],
            outside=[[2, 1, 0], [8, 4, 0]],
            spikes=[[0, 1, 2], [2, 4, 8]],
            grad_input_max=[[6, 6, 6], [9, 9, 9]],
            nonfinite=[[0, 0, 3], [0, 0, 0]],
        ),
        ELEMENTS,
        scale=2.0,
    )
    assert measured.names == ("a", "b")
    assert measured.grad_spike_rms.tolist() == [[0.5, 1, 1.5], [0.5, 1, 1.5]]
    assert measured.grad_input_rms.tolist() == [[1] * 3, [0.5] * 3]
    assert measured.grad_carry_rms.tolist() == [[2.5, 0, 0], [0, 0, 0]]
    assert measured.time_factor.tolist() == [[0.5] * 3, [0.125] * 3]
    assert measured.outside_share.tolist() == [[1, 0.5, 0], [1, 0.5, 0]]
    assert measured.firing_rate.tolist() == [[0, 0.5, 1], [0.25, 0.5, 1]]
    assert measured.grad_input_max.tolist() == [[3] * 3, [4.5] * 3]
    assert measured.nonfinite.tolist() == [[0, 0, 3], [0, 0, 0]]


def test_rows_and_measurements_are_the_same():
    drawn = np.random.default_rng(0)
    measured = Measurement("ab", **{field: drawn.random((2, 3)) for field in COLUMNS})
    rows = measured.rows(step=7)
    assert [(row["index"], row["layer"], row["time_step"]) for row in rows] == [
        (i, name, t) for i, name in enumerate("ab") for t in range(3)
    ]
    assert list(rows[0]) == ["step", "layer", "index", "time_step", *COLUMNS]
    assert "step" not in measured.rows()[0]
    assert all(type(row["nonfinite"]) is int for row in rows)
    again = Measurement.of_rows(rows)
    assert again.names == ("a", "b")
    for field in {*COLUMNS} - {"nonfinite"}:
        assert np.array_equal(getattr(again, field), getattr(measured, field))


@pytest.mark.parametrize("time", [True, False])
def test_the_lines_of_a_file_are_those_of_its_rows(tmp_path, time):
    """Also of a layer with quotes and signs in its name, and of values that are not finite."""
    random = np.random.default_rng(0)
    grads = {
        name: random.random((2, 3)) * 10.0 ** -random.integers(0, 60, (2, 3)) for name in COLUMNS
    }
    grads["nonfinite"], grads["grad_input_max"][0, 1] = np.ones((2, 3)), np.inf
    grads["time_factor"][1, 1] = np.nan
    known = {name: value for name, value in grads.items() if time or name not in TIME}
    measured = Measurement(names=("layers.0", '%d "{}"'), **known)
    rows, lines = Rows(tmp_path / "rows", GRADIENTS), Rows(tmp_path / "lines", GRADIENTS)
    rows.append(measured.rows(7))
    lines.add(measured.lines(7))
    assert lines.read() == rows.read()
    assert [*map(list, lines.read())] == [*map(list, rows.read())]


def test_null_and_keys_of_other_versions_are_nan():
    rows = with_grads([[1, 2], [3, 4]]).rows()
    rows[1]["grad_input_rms"] = None
    del rows[2]["firing_rate"]
    again = Measurement.of_rows(rows)
    assert np.array_equal(again.grad_input_rms, [[1, math.nan], [3, 4]], equal_nan=True)
    assert np.array_equal(again.firing_rate, [[1, 1], [math.nan, 1]], equal_nan=True)


def test_profiles():
    measured = with_grads([[3, 4], [0, 16]])
    assert measured.depth_profile == pytest.approx([math.sqrt(12.5), math.sqrt(128)])
    assert measured.time_profile == pytest.approx([3, 8])  # of the layers that have a gradient
    assert with_grads([[0, 1], [0, 1]]).time_profile.tolist() == [0, 1]


INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("grads", "ratio", "gain"),
    [
        ([[8, 8], [4, 4], [2, 2]], 4, 2),
        ([[1, 7], [5, 5]], 1, 1),
        ([[3, 3]], None, 1),  # one layer
        ([[1, 1], [0, 0]], None, 0),  # nothing arrives
        ([[0, 0], [1, 1]], 0, 0),
        ([[INF, 1], [1, 1]], INF, INF),
        ([[1, 1], [INF, 1]], None, 0),
    ],
)
def test_the_ratio_and_the_gain_through_depth(grads, ratio, gain):
    measured = with_grads(grads)
    assert measured.depth_ratio == (None if ratio is None else pytest.approx(ratio))
    assert measured.depth_gain == pytest.approx(gain)


@pytest.mark.parametrize(
    ("grads", "ratio"),
    [
        ([[8, 4, 2], [1, 1, 1]], 2),  # the geometric mean of 4 and 1
        ([[3], [4]], None),  # one time step
        ([[0, 1], [8, 2]], 0),  # it dies in one of them
        ([[5, 0], [8, 2]], 4),
        ([[0, 1], [0, 1]], 0),
        ([[1, 0], [1, 0]], None),
        ([[INF, 1], [1, 1]], INF),
        ([[1, INF], [8, 2]], 4),
        ([[1, INF], [1, NAN]], None),
        ([[NAN, 1], [0, 1]], INF),
    ],
)
def test_the_ratio_through_time(grads, ratio):
    found = with_grads(grads).time_ratio
    assert found == (None if ratio is None else pytest.approx(ratio))
