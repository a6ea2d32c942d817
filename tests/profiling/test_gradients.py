"""What the gradient monitor costs."""

import pytest
import torch

from profiling.harness.timing import Timing
from profiling.sections.gradients import EVERY, OFF, MonitoredStep, Monitoring
from profiling.sections.recipes import find_recipe
from profiling.sections.step import Bench


def test_the_monitor_measures_in_the_steps_that_are_timed(quick):
    case = Monitoring(find_recipe("quickstart"), quick)
    bench = Bench(case, torch.device("cpu"))
    step = MonitoredStep(bench, bench.model())
    before = step.parameters[0].detach().clone()
    for number in (1, 2):
        step()
        assert len(step.rows) == 7 * case.spec["T"]
        assert {row["step"] for row in step.rows} == {number}
        assert any(row["grad_input_rms"] > 0 for row in step.rows)
    assert not torch.equal(step.parameters[0], before)
    assert [one.name for one in case.contenders(quick)] == [OFF, EVERY]


def test_the_cost_is_the_ratio_round_by_round_spread_over_the_steps_between(quick):
    case = Monitoring(find_recipe("quickstart", ["train.log_every=5"]), quick)
    timings = {OFF: Timing((1.0, 1.0, 2.0)), EVERY: Timing((1.1, 1.2, 2.6))}
    assert case.numbers(timings) == {
        EVERY: {
            "cost": pytest.approx(0.2),
            "cost_p20": pytest.approx(0.14),
            "cost_p80": pytest.approx(0.26),
            "cost_in_training": pytest.approx(0.04),
        }
    }
    assert case.numbers({OFF: timings[OFF]}) == {}
