"""The result of a diagnosis: verdict, causes, cures."""

import math

import numpy as np
import pytest
import torch

from spiketriton.gradients.ablations import Change, Experiment
from spiketriton.gradients.diagnosed import find_subject
from spiketriton.gradients.diagnosis import diagnose
from spiketriton.gradients.verdict import Cure, Why, Word
from spiketriton.show.diagnosis_page import as_json
from tests.gradients.support import DEEP, nothing, subject
from tests.small_runs import small_trainer

KEPT = ("model.name=mlp", "model.depth=8", "train.optimizer=sgd", "time_steps=5")
NARROW, WIDE = "neuron.surrogate.width=0.02", "neuron.surrogate.width=20"


@pytest.mark.parametrize(("change", "word"), [(NARROW, Word.VANISHING), (WIDE, Word.EXPLODING)])
def test_a_wrong_width_is_found_and_the_default_named(change, word):
    found = diagnose(subject(*DEEP, change))
    assert found.verdict.backward.word == word
    assert found.cures[-1] == Cure("neuron.surrogate.width", 0.3, Why.WIDTH)
    nearer = [abs(math.log(ratio)) for _, ratio in found.causes()]
    assert 0 < len(nearer) <= 3
    assert nearer == sorted(nearer)
    assert nearer[-1] < abs(math.log(found.verdict.backward.ratio))


def test_a_deep_net_of_the_usual_start_forgets_the_image_and_the_default_keeps_it():
    """And the cure is the same whatever the seed."""
    usual = ("model.name=resnet20", "model.width=8", "time_steps=4", "model.residual_gain=1")
    for seed in (0, 1):
        plain = diagnose(subject(*usual, "model.residual_bias=0", f"seed={seed}"))
        assert plain.verdict.word == Word.LOST
        assert plain.cures == [Cure("model.residual_gain", 0.0, Why.BLOCKS_START_CLOSED)]
    cured = diagnose(subject(*usual, "model.residual_gain=0"))
    assert cured.overlap[-1] > 0.8 > 0.1 > plain.overlap[-1]
    assert cured.cures == []
    deep = ("model.depth=24", "model.width=128", "time_steps=10")
    mlp = diagnose(subject(*DEEP, *deep))
    assert mlp.cures[0] == Cure("model.start", "identity", Why.IDENTITY)
    assert diagnose(subject(*KEPT, *deep)).verdict.forward.word == Word.FREE


def test_a_run_is_measured_at_its_weights_and_widths(tmp_path):
    run = tmp_path / "run"
    trainer = small_trainer(run, "neuron.surrogate.width=0.7", "data.augment=none")
    trainer.fit()
    subject_of_run = find_subject(str(run), [], nothing)
    assert subject_of_run.step == 21
    experiment = Experiment(subject_of_run, 1)
    assert set(experiment.widths.values()) == {0.7}
    model = experiment.build()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    fresh = diagnose(subject("neuron.surrogate.width=0.7", "data.augment=none"))
    trained = diagnose(subject_of_run)
    assert not np.allclose(fresh.measured.grad_input, trained.measured.grad_input)
    assert Change.NO_NORM not in [ablation.change for ablation in trained.ablations]
    assert trained.subject.title == f"run {run}, after step 21"
    assert as_json(trained)["step"] == 21
    assert fresh.verdict.learned is None
    assert trained.verdict.learned is not None
    assert trained.verdict.word in (Word.CHANCE, Word.HEALTHY)


def test_the_same_recipe_gets_the_same_diagnosis():
    first, second = (as_json(diagnose(subject())) for _ in range(2))
    assert first == second
