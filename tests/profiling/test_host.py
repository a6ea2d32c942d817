"""What a call costs the processor that makes it."""

import pytest
import torch

from profiling.harness.contenders import OURS, Status
from profiling.harness.timing import Timing
from profiling.sections.host import ALONE, LAUNCHER, REFERENCE, HostTime, Layer
from profiling.sections.kernels import Arena
from spiketriton_kernels import multistep_bn_lif


def test_rows_say_how_much_of_the_reference_ours_takes(measured):
    rows = measured(HostTime(), section="host")
    assert {name for name in rows if LAUNCHER not in name} == {REFERENCE, OURS, ALONE}
    assert {row["status"] for row in rows.values()} == {Status.OK}
    assert [rows[name]["allowed"] for name in (OURS, ALONE)] == [2.5, 2.0]
    assert "of_reference" not in rows[REFERENCE]
    timings = {REFERENCE: Timing((1.0, 2.0, 3.0)), OURS: Timing((2.0, 6.0, 9.0))}
    assert HostTime().numbers(timings)[OURS]["of_reference"] == pytest.approx(3.0)
    assert HostTime().numbers({OURS: Timing((1.0,))}) == {}


def test_a_layer_that_computes_something_else_is_not_timed():
    arena = Arena(HostTime().unit, torch.device("cpu"))
    assert Layer(arena, multistep_bn_lif).check()["status"] == Status.OK
    other = lambda *given, **o: multistep_bn_lif(*given, **o | {"reset": "soft"})  # noqa: E731
    assert Layer(arena, other).check()["status"] == Status.WRONG
