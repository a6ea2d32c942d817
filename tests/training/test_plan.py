"""The plan: when a run logs, tests, saves and measures."""

import dataclasses

from spiketriton.config import replace
from spiketriton.data import build_data
from spiketriton.plugins.tasks import Score
from spiketriton.training.plan import Plan, Progress
from spiketriton.training.testing import Measured, Results
from tests.small_runs import small_recipe

PLAN = Plan(
    steps=10,
    epoch_steps=4,
    batch_size=2,
    log_every=3,
    test_every=4,
    save_every=3,
    measure_every=5,
    test_images=7,
)


def test_when_things_are_due():
    due = {
        name: [step for step in range(1, 11) if getattr(PLAN, name)(step)]
        for name in ("logs", "tests", "saves", "measures")
    }
    assert due == {
        "logs": [3, 6, 9, 10],
        "tests": [4, 8, 10],
        "saves": [3, 4, 6, 8, 9, 10],
        "measures": [1, 5, 10],
    }
    assert [PLAN.tests_after(step) for step in (0, 3, 4, 8, 9, 10)] == [3, 3, 2, 1, 1, 0]
    assert [PLAN.epoch(step) for step in (0, 1, 10)] == [0.0, 0.25, 2.5]
    assert dataclasses.replace(PLAN, epoch_steps=3).epoch(1) == 0.3333
    always = dataclasses.replace(PLAN, measure_every=1)
    assert all(always.measures(step) for step in range(1, 11))
    never = dataclasses.replace(PLAN, measure_every=0)
    assert not any(never.measures(step) for step in range(11))


def test_a_net_is_measured_again_at_few_tests():
    plan = dataclasses.replace(PLAN, steps=1010, test_every=44)
    tests = [step for step in range(1, 1011) if plan.tests(step)]
    assert [step for step in tests if plan.judges(step)] == [528, 1010]
    longer = dataclasses.replace(plan, test_every=600)
    assert all(longer.judges(step) for step in (600, 1010))


def test_the_plan_of_a_recipe():
    recipe = small_recipe("data.train_images=80")  # 5 steps an epoch
    data = build_data(recipe)
    plan = Plan.of(recipe, data)
    assert (plan.steps, plan.epoch_steps, plan.test_every, plan.save_every) == (15, 5, 5, 5)
    assert (plan.batch_size, plan.test_images, plan.measure_every) == (16, 50, plan.log_every)
    keys = ["train.max_steps=9", "checkpoint.every=2", "train.log_every=3"]
    plan = Plan.of(replace(recipe, *keys), data)
    assert (plan.steps, plan.save_every, plan.measure_every) == (9, 2, 3)
    assert Plan.of(replace(recipe, "train.max_steps=99"), data).steps == 15
    assert Plan.of(replace(recipe, "monitor.enabled=false"), data).measure_every == 0


def test_an_accuracy_that_is_only_as_good_is_not_the_best():
    progress, results = (
        Progress(step=4),
        Results(*(Measured(Score(value=a), 1.0) for a in (0.5, 0.6)), None, 0.0),
    )
    assert progress.tested(results)
    progress.step = 8
    assert not progress.tested(results)
    assert progress.best_step == 4


def test_a_best_that_the_test_images_chose_counts_for_nothing():
    state = {"step": 3, "best_score": 0.9, "of another version": 1}
    assert Progress.of_state(state, validated=True) == Progress(step=3, best_score=0.9)
    assert Progress.of_state(state, validated=False) == Progress(step=3)
