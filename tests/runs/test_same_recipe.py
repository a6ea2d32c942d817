"""A run keeps its recipe, but for the keys that change no weight."""

import pytest

from spiketriton.config import KEYS
from spiketriton.runs.same_recipe import MOVABLE, refuse_another_recipe
from spiketriton.system.errors import UserError
from tests.small_runs import small_recipe


def test_another_recipe_is_refused_with_the_keys_that_differ():
    begun = small_recipe()
    given = small_recipe("train.lr=0.5", "neuron.tau=3", "train.schedule=cosine", "seed=4")
    with pytest.raises(UserError) as refusal:
        refuse_another_recipe(given, begun)
    for words in ("neuron.tau = 3.0 (the run: 2.0)", "train.lr = 0.5 (the run: 0.01)", "seed = 4"):
        assert words in str(refusal.value)
    assert "model.width" not in str(refusal.value)


def test_what_only_moves_a_run_may_change():
    assert set(KEYS) >= set(MOVABLE)
    moved = ("data.root=/elsewhere", "data.workers=3", "checkpoint.every=5")
    refuse_another_recipe(small_recipe(*moved), small_recipe())
