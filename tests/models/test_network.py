"""What all networks share: time, refusals of images that do not fit, weights, widths, dropout."""

import copy

import pytest
import torch

from spiketriton.models import trial
from spiketriton.system.errors import UserError
from tests.models.support import CLASSES, B, T, build, frames, images, norms_of


def test_another_number_of_steps_than_the_recipes():
    model = build()
    model(images())
    model.eval()
    longer = model(images(), time_steps=5)
    assert longer.shape == (5, B, CLASSES)
    assert torch.equal(longer[:T], model(images()))


@pytest.mark.parametrize(
    ("options", "shown", "steps", "words"),
    [
        ({}, images(channels=1), None, r"\(3, 1, 16, 16\).*\[B, 3, H, W\]"),
        ({}, images()[0], None, r"\(3, 16, 16\)"),
        ({}, frames(2)[None], None, r"accepted: images \[B, 3, H, W\]"),
        ({}, frames(2, channels=1), None, r"frames \[T, B, 3, H, W\]"),
        ({}, frames(2)[:0], None, "0 frames"),
        ({}, frames(5), 4, "5 frames are shown in as many time steps, not in 4"),
        ({}, images(), 0, "time_steps 0.*1 or more"),
        ({"neuron": {"kind": "relu"}}, images(), 2, "time_steps 2.*no time"),
        ({"norm": "tebn"}, images(), 3, "gains for 2 time steps"),
    ],
)
def test_calls_that_do_not_fit_are_refused(options, shown, steps, words):
    with pytest.raises(UserError, match=words):
        build(**options)(shown, steps)


@pytest.mark.parametrize("kind", ["lif", "relu"])
def test_the_width_of_a_layer_that_is_not_there_is_refused(kind):
    net = build(width=2, neuron={"kind": kind})
    state = net.state_dict() | {"layer9._extra_state": torch.tensor(1.0)}
    with pytest.raises(RuntimeError, match=r"layer9\._extra_state"):
        net.load_state_dict(state)


def test_set_synchronised_reaches_every_norm():
    model = build()
    for wanted in (True, "a group", False):
        model.set_synchronised(wanted)
        assert [norm.synchronised for norm in norms_of(model).values()] == [wanted] * 9


@pytest.mark.parametrize("training", [True, False])
def test_a_trial_leaves_no_trace(training):
    model = build().train(training)
    before = copy.deepcopy(model.state_dict())
    with trial(model):
        assert model.training
        model(images())
        assert model.bn1.num_batches_tracked == 1
    assert model.training == training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_dropout_leaves_out_the_same_values_at_every_step():
    model = build("resnet8", width=4, dropout=0.5, time_steps=3)
    read, seen = torch.ones(3, 2, 16), []
    model.features = lambda images, steps: read
    model.fc = torch.nn.Identity()
    model.fc.register_forward_hook(lambda module, given, out: seen.append(out))
    assert model.draws
    model(images())
    model.eval()(images())
    training, testing = seen
    assert set(training.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(training, training[:1].expand(3, -1, -1))
    assert torch.equal(testing, read)
