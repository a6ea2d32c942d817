"""What all networks share: time, streaming, and refusals of images that do not fit."""

import copy

import pytest
import torch

from spiketriton.errors import UserError
from spiketriton.models import trial
from spiketriton.neurons import Norm, SpikingNeuron
from tests.covering import each
from tests.models.support import (
    BLOCKS,
    CLASSES,
    EVERY_BLOCK,
    NORMS,
    SHALLOW_PLAIN,
    B,
    T,
    build,
    images,
    lively,
)


@pytest.mark.parametrize("options", [*EVERY_BLOCK, SHALLOW_PLAIN], ids=str)
def test_spiking_layers_are_listed_in_forward_order(options):
    model = build(**options, fused=False)
    fired: list[SpikingNeuron] = []
    for module in model.modules():
        if isinstance(module, SpikingNeuron):
            module.register_forward_hook(lambda module, *_: fired.append(module))
    model(images())
    assert [neuron for _, neuron in model.spiking_layers()] == fired
    assert all(model.get_submodule(name) is neuron for name, neuron in model.spiking_layers())


@pytest.mark.parametrize(("block", "norm"), each(BLOCKS, NORMS))
def test_a_streamed_window_equals_the_whole(block, norm):
    model = lively(build(block=block, norm=norm, width=4, time_steps=6, neuron={"reset": "soft"}))
    if norm == "tebn":
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("step_gain"):
                    parameter.copy_(torch.linspace(0.5, 1.5, 6))
    x = images()
    model(x)  # statistics
    model.eval()
    with torch.no_grad():
        whole = model(x)
        assert not torch.equal(whole[0], whole[5])
        model.set_stateful()
        for lengths in ([1, 2, 3], [6]):
            streamed = torch.cat([model(x, time_steps=steps) for steps in lengths])
            torch.testing.assert_close(streamed, whole, rtol=1e-5, atol=1e-6)
            model.reset()
        model.set_stateful(False)
        assert torch.equal(model(x), whole)
        assert torch.equal(model(x), whole)


def test_another_number_of_steps_than_the_recipes():
    model = build()
    model(images())
    model.eval()
    longer = model(images(), time_steps=5)
    assert longer.shape == (5, B, CLASSES)
    assert torch.equal(longer[:T], model(images()))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: build()(images(channels=1)), r"\(3, 1, 16, 16\).*\[B, 3, H, W\]"),
        (lambda: build()(images()[0]), r"\(3, 16, 16\)"),
        (lambda: build()(images(), time_steps=0), "time_steps 0.*1 or more"),
        (lambda: build(neuron={"kind": "relu"})(images(), time_steps=2), "time_steps 2.*no time"),
        (lambda: build(norm="tebn")(images(), time_steps=3), "gains for 2 time steps"),
    ],
)
def test_calls_that_do_not_fit_are_refused(call, words):
    with pytest.raises(UserError, match=words):
        call()


def test_set_synchronised_reaches_every_norm():
    model = build()
    for wanted in (True, False):
        model.set_synchronised(wanted)
        found = [m.synchronised for m in model.modules() if isinstance(m, Norm)]
        assert found == [wanted] * 9


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
    read = torch.ones(3, 2, 16)
    model.features = lambda images, steps: read
    seen = []
    model.fc = torch.nn.Identity()
    model.fc.register_forward_hook(lambda module, given, out: seen.append(out))
    assert model.draws
    model(images())
    model.eval()(images())
    training, testing = seen
    assert set(training.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(training, training[:1].expand(3, -1, -1))
    assert torch.equal(testing, read)
