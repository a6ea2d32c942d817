"""The result of a diagnosis: verdict, causes, cures."""

import dataclasses
import math
from html import escape
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import spiketriton
from spiketriton.data import build_data
from spiketriton.diagnose.ablations import Change, Experiment
from spiketriton.diagnose.cures import INPUT, NORM, THRESHOLD, Why
from spiketriton.diagnose.diagnosed import find_subject
from spiketriton.diagnose.diagnosis import Diagnosis, diagnose
from spiketriton.diagnose.page import as_json
from spiketriton.diagnose.trials import loss_after, try_changes
from spiketriton.gradients.prober import probe_batches
from spiketriton.gradients.verdict import Verdict, Word
from spiketriton.models import build_model
from spiketriton.report.page import Page
from spiketriton.runs.folder import RunFolder
from spiketriton.show.verdict import line, sentences
from tests.gradients.support import DEEP, nothing, subject
from tests.small_runs import small_trainer

UNLIMITED = ("train.optimizer=sgd", "train.clip_grad_norm=0", "train.lr=0.1")
SHALLOW = ("model.name=mlp", "model.depth=3", "model.width=16")
WIDE = "neuron.surrogate.width=1"
LONG = ("model.depth=48", "model.width=32")


def test_a_wrong_width_is_found_and_changes_are_tried_before_they_are_named():
    found = diagnose(subject(*DEEP, *LONG, *UNLIMITED, WIDE), tries=20)
    assert found.verdict.backward.word == Word.EXPLODING
    nearer = [abs(math.log(ratio)) for _, ratio in found.causes()]
    assert 0 < len(nearer) <= 3
    assert nearer == sorted(nearer)
    assert nearer[-1] < abs(math.log(found.verdict.backward.ratio))
    assert found.trials is not None
    assert [cure.why for cure, _ in found.trials.changed] == [Why.CLIPPING, Why.IDENTITY, Why.WIDTH]
    limit = 0.95 * found.trials.as_it_is
    assert found.trials.helped == [pair for pair in found.trials.changed if pair[1] < limit]


@pytest.mark.usefixtures("verdicts_alone")
def test_a_deep_net_of_the_usual_start_forgets_the_image_and_the_default_keeps_it():
    """And the change that helps is the same with another seed than in test_page.py."""
    usual = ("model.name=mlp", "model.depth=24", "model.width=128", "time_steps=4")
    found = diagnose(subject(*usual, "model.start=kaiming", "seed=1"), tries=30)
    assert found.verdict.word == Word.LOST
    assert found.trials is not None
    assert [cure.override for cure, _ in found.trials.helped] == ["model.start=identity"]
    assert found.signal.overlap[-1] < 0.25
    default = diagnose(subject(*usual), tries=30)
    assert default.signal.overlap[-1] > 0.8
    assert (default.verdict.word, default.trials) == (Word.FREE, None)


USUAL = (
    "model.residual_gain=1",
    "model.residual_bias=0",
    "model.shortcut_gradient=surrogate",
    "time_steps=4",
)


CHAIN = (
    "model.name=mlp",
    "model.depth=24",
    "model.width=128",
    "time_steps=4",
    "model.start=kaiming",
)
FOREIGN = ("model.name=tests.models.foreign_nets:Deep",)


@pytest.mark.usefixtures("verdicts_alone")
@pytest.mark.parametrize(
    ("changes", "word"),
    [
        (("model.name=resnet56", "model.width=8", *USUAL), Word.LOST),
        pytest.param(
            ("model.name=resnet56", "model.block=sew"), Word.NOT_JUDGED, marks=pytest.mark.slow
        ),
        (CHAIN, Word.LOST),
        ((*CHAIN, "neuron.kind=ilif"), Word.NOT_JUDGED),
        ((*CHAIN, "model.start=identity", "train.optimizer=sgd"), Word.FREE),  # with its limit
        (FOREIGN, Word.LOST),
        ((*FOREIGN, "model.arguments.integers=true"), Word.NOT_JUDGED),
    ],
)
def test_the_command_and_python_say_the_same_of_one_net(changes, word):
    told = subject(*changes, "train.batch_size=32")
    found = diagnose(told)
    assert found.verdict.word == word
    data = build_data(told.recipe)
    torch.manual_seed(told.recipe.seed)
    net, batch = build_model(told.recipe, **data.facts.sizes), next(data.train.from_step(0))
    own = spiketriton.diagnose(net, batch, tries=0).verdict
    assert (own.word, own.optimizer) == (word, told.recipe.train.optimizer)
    assert own.forward.judged == found.verdict.forward.judged
    if word == Word.LOST:  # under another optimizer, too
        other = {"sgd": "adamw", "adamw": "sgd"}[own.optimizer]
        changed = spiketriton.diagnose(net, batch, optimizer=other, tries=0).verdict
        assert (changed.forward, changed.optimizer) == (own.forward, other)
    if net.made_from.model.name.endswith("Deep"):  # as its author has it
        alone = spiketriton.diagnose(net.net, batch, tries=0).verdict
        assert (alone.word, alone.forward.judged) == (word, own.forward.judged)


@pytest.mark.usefixtures("verdicts_alone")
def test_a_shallow_net_that_forgets_the_image_is_not_called_lost():
    """Of 21 trainings of plain blocks that had lost the signal the five of ResNet-20 learnt in three."""
    usual = ("model.name=resnet20", "model.width=8", "model.residual_gain=1")
    found = diagnose(subject(*usual, "model.residual_bias=0", "time_steps=4"), tries=5)
    assert found.signal.overlap[-1] < 0.1
    assert (found.verdict.word, found.trials) == (Word.NOT_JUDGED, None)


def test_what_can_be_done_to_a_network_of_ones_own_is_tried_in_a_recipe():
    pytest.importorskip("spikingjelly")
    own = subject("model.name=tests.models.foreign_nets:LongSkip", "model.fused=false")
    experiment = Experiment(own)
    changes = (NORM, INPUT, THRESHOLD)
    found = try_changes(own.recipe, experiment.data, changes, 6, experiment.placement)
    assert (found.steps, found.images) == (6, 16)
    assert [cure for cure, _ in found.changed] == [*changes]
    losses = [found.as_it_is, *(loss for _, loss in found.changed)]
    assert len({*losses}) == 4  # each is another net
    assert all(math.isfinite(loss) for loss in losses)


def test_a_run_is_measured_at_its_weights_and_widths(tmp_path):
    run = tmp_path / "run"
    longer = ("neuron.surrogate.width=0.7", "data.augment=none", "train.epochs=15", *SHALLOW)
    trainer = small_trainer(run, *longer)
    trainer.fit()
    subject_of_run = find_subject(str(run), [], nothing)
    assert subject_of_run.step == 105
    experiment = Experiment(subject_of_run, 1)
    assert set(experiment.widths.values()) == {0.7}
    model = experiment.build()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    fresh = diagnose(subject(*longer))
    trained = diagnose(subject_of_run)
    assert not np.allclose(fresh.measured.grad_input_rms, trained.measured.grad_input_rms)
    assert Change.NO_NORM not in [ablation.change for ablation in trained.ablations]
    assert trained.subject.title == f"run {run}, after step 105"
    assert as_json(trained)["step"] == 105
    assert fresh.verdict.learned is None
    assert trained.verdict.learned is not None
    assert trained.verdict.word in (Word.CHANCE, Word.HEALTHY)
    changed = diagnose(find_subject(str(run), ["neuron.surrogate.width=2"], nothing))
    assert (changed.verdict.begun, changed.verdict.learned) == (False, None)


@pytest.mark.usefixtures("verdicts_alone")
def test_a_training_and_the_diagnosis_of_its_recipe_and_run_give_one_verdict(tmp_path):
    """Measured on the same images in the same mode, with dropout, too, which draws; and so do the report and Python."""
    told: list[tuple[int, Verdict]] = []
    for name, changes in (
        ("short", ["model.dropout=0.3", "train.max_steps=5", *SHALLOW]),
        ("long", ["train.epochs=15", *SHALLOW]),
    ):
        run = tmp_path / name
        trainer = small_trainer(run, *changes)
        look = trainer.recorder.watch.look

        def heard(step, *found, watch=trainer.recorder.watch, look=look):
            look(step, *found)
            told.append((step, watch.verdict))

        trainer.recorder.watch.look = heard
        trainer.fit()
        before = diagnose(subject(*changes)).verdict
        assert told[0] == (0, before)
        after = diagnose(find_subject(str(run), [], nothing)).verdict
        ended = trainer.recorder.watch.verdict
        assert ended.word == after.word == (Word.EARLY if name == "short" else after.word)
        assert dataclasses.replace(ended, learned=None) == dataclasses.replace(after, learned=None)
        assert (ended.learned is None) == (after.learned is None) == (name == "short")
        recipe = RunFolder(run).load_recipe()
        reported = "".join(Page(RunFolder(run), recipe, []).gradients())
        assert f"<strong>After step {trainer.step}: {line(after)}.</strong>" in reported
        assert all(f"<li>{escape(sentence)}</li>" in reported for sentence in sentences(after))
        net = spiketriton.load_run(run).model
        batch = probe_batches(build_data(recipe), net, torch.device("cpu"), 1)[0]
        assert str(spiketriton.diagnose(net, batch, tries=0)).splitlines()[0] == line(after)
        with torch.no_grad():
            next(net.parameters()).mul_(1.01)  # no longer the net that was tested
        assert not spiketriton.diagnose(net, batch, tries=0).verdict.begun
        if after.learned is not None:
            assert ended.learned.score.value == pytest.approx(after.learned.score.value, rel=1e-6)
            assert ended.learned.score.chance == pytest.approx(after.learned.score.chance)
        told.clear()


def test_the_same_recipe_gets_the_same_diagnosis():
    first, second = (as_json(diagnose(subject())) for _ in range(2))
    assert first == second


def test_the_loss_of_a_trial_is_the_mean_of_its_last_fifth():
    net = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    batches = [(torch.ones(1, 1), float(number)) for number in range(10, 0, -1)]
    found = loss_after(net, batches, lambda out, y: 0 * out.sum() + y, 10, optimizer, schedule)
    assert found == 1.5


def test_a_cause_brings_the_ratio_a_tenth_of_the_way_to_1():
    """Of its logarithm; up to three, the nearest first."""
    tried = [
        SimpleNamespace(measured=SimpleNamespace(depth_ratio=ratio))
        for ratio in (80.0, 50.0, 0.2, 0.01, 2.0, 60.0, 0.0)
    ]
    of = SimpleNamespace(
        ablations=tried,
        measured=SimpleNamespace(depth_ratio=100.0),
        verdict=SimpleNamespace(backward=SimpleNamespace(word=Word.EXPLODING)),
    )
    assert [ratio for _, ratio in Diagnosis.causes(of)] == [2.0, 0.2, 50.0]
    of.ablations = [tried[0], tried[3]]
    assert Diagnosis.causes(of) == []
