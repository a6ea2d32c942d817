"""What the gradient monitor costs."""

import pytest
import torch

from profiling.harness.timing import Timing
from profiling.sections.gradients import EVERY, OFF, MonitoredStep, Monitoring
from profiling.sections.recipes import find_recipe
from profiling.sections.step import Bench


@pytest.fixture
def case(quick) -> Monitoring:
    return Monitoring(find_recipe("quickstart", ["train.log_every=5"]), quick)


def test_the_monitor_measures_in_the_steps_that_are_timed(case, quick):
    bench = Bench(case, torch.device("cpu"))
    step = MonitoredStep(bench, bench.model())
    before = step.parameters[0].detach().clone()
    step()
    assert len(step.rows) == 7 * case.spec["T"]
    assert {row["step"] for row in step.rows} == {1}
    assert any(row["grad_input_rms"] > 0 for row in step.rows)
    step()
    assert {row["step"] for row in step.rows} == {2}
    assert not torch.equal(step.parameters[0], before)
    assert [one.name for one in case.contenders(quick)] == [OFF, EVERY]


def test_the_cost_is_the_ratio_round_by_round_spread_over_the_steps_between(case, quick):
    timings = {OFF: Timing((1.0, 1.0, 2.0)), EVERY: Timing((1.1, 1.2, 2.6))}
    (name, row), *others = case.numbers(timings).items()
    assert not others
    assert name == EVERY
    assert case.spec["measures_every"] == 5
    assert row["cost"] == pytest.approx(0.2)
    assert row["cost_in_training"] == pytest.approx(0.04)
    assert row["cost_p20"] == pytest.approx(0.14)
    assert row["cost_p80"] == pytest.approx(0.26)
    assert case.numbers({OFF: timings[OFF]}) == {}
    recipe = find_recipe("quickstart", ["monitor.every=3", "train.log_every=5"])
    assert Monitoring(recipe, quick).spec["measures_every"] == 3
