"""Verdicts at their limits."""

import pytest

from profiling.harness.contenders import EXCUSED, Status, agreement

NAN = float("nan")


@pytest.mark.parametrize(
    ("differ", "error", "status", "excused"),
    [
        (0.0, 1e-5, Status.OK, Status.OK),
        (1e-3, 1e-5, Status.OK, Status.OK),
        (1.1e-3, 0.0, Status.WRONG, Status.UNEQUAL),
        (0.0, 1.1e-5, Status.WRONG, Status.UNEQUAL),
        (EXCUSED, 0.5, Status.WRONG, Status.UNEQUAL),
        (EXCUSED + 0.01, 0.0, Status.WRONG, Status.WRONG),
        (0.0, NAN, Status.WRONG, Status.WRONG),
        (NAN, 0.0, Status.WRONG, Status.WRONG),
        (0.0, float("inf"), Status.WRONG, Status.WRONG),
    ],
)
def test_a_reason_to_be_unequal_excuses_few_spikes_and_no_nan(differ, error, status, excused):
    allowed = (1e-3, 1e-5)
    assert agreement(differ, error, allowed)["status"] == status
    verdict = agreement(differ, error, allowed, "its reset")
    assert verdict["status"] == excused
    assert verdict.keys() == {"status", "why", "spikes_differ", "gradient_error"}
    assert (verdict["why"] == "its reset") == (excused == Status.UNEQUAL)
    assert ("(allowed 0.001)" in verdict["why"]) == (excused == Status.WRONG)
