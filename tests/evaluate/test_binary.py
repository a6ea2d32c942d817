"""`evaluate --binary`: I-LIF networks with spikes of 0 and 1."""

import json

import pytest
import torch
from torch import nn

from spiketriton.evaluate.__main__ import main
from spiketriton.evaluate.binary import BinarySpikes, binary, binary_network
from spiketriton.system.errors import UserError
from spiketriton.training.trained import load_run
from tests.small_data import mentions
from tests.small_runs import small_trainer

NETS = {
    "ms": (),
    "sew": ("model.block=sew",),
    "plain": ("model.block=plain", "model.norm=tdbn"),
    "preact, two steps": ("model.block=preact", "time_steps=2", "neuron.levels=3"),
    "max-pools": ("model.name=vgg8", "model.width=4", "neuron.v_threshold=0.5"),
    "last": ("time_steps=3", "loss.read=last"),
    "no norm": ("model.name=mlp", "model.depth=3", "model.norm=none"),
}


@pytest.fixture(scope="module", params=NETS, ids=list(NETS))
def trained(request, tmp_path_factory):
    """A run of I-LIF after a few steps, in which norms have moved and biases are not 0."""
    path = tmp_path_factory.mktemp("binary") / "run"
    small_trainer(path, "neuron.kind=ilif", "train.epochs=1", *NETS[request.param]).fit()
    return path


def test_all_layers_see_zeros_and_ones_and_the_answers_are_the_networks(trained):
    run = load_run(trained)
    found = binary(run)
    levels, images = run.recipe.neuron.levels, run.data.test.images
    assert (found.steps, found.images) == (run.time_steps * levels, images)
    assert found.equal == images
    currents = ((run.model(x, run.time_steps), y) for x, y in run.data.test)
    last = run.recipe.loss.read == "last"
    answers = ((c[-1] if last else c.mean(0), y) for c, y in currents)
    right = sum(int((a.argmax(1) == y).sum()) for a, y in answers)
    assert found.accuracy == right / images
    assert 0 < found.rate < 1


def test_currents_are_those_of_the_network(trained):
    """Exactly, in float64, over each D binary steps; and between neurons there are sums of binary spikes alone."""
    run = load_run(trained)
    model = run.model.double()
    levels = run.recipe.neuron.levels
    unrolled = binary_network(model, levels)
    sent = []
    for module in unrolled.modules():
        if isinstance(module, BinarySpikes):
            module.register_forward_hook(lambda _, x, out: sent.append(out))
    images, _ = next(iter(run.data.test))
    images = run.to_device(images).double()
    with torch.inference_mode():
        whole = model.currents(images, run.time_steps)
        parts = unrolled.currents(images / levels, run.time_steps * levels)
    torch.testing.assert_close(
        parts.unflatten(0, (run.time_steps, levels)).sum(1), whole, rtol=1e-9, atol=1e-9
    )
    assert sent
    for spikes in sent:
        assert set(spikes.unique().tolist()) <= {0.0, 1.0}
    assert sum(float(spikes.sum()) for spikes in sent) > 0


def test_the_command_prints_it_and_writes_it(tmp_path, capsys):
    small_trainer(tmp_path / "run", "neuron.kind=ilif", "train.epochs=1").fit()
    main([str(tmp_path / "run"), "--binary"])
    mentions(
        capsys.readouterr().out, "With spikes of 0 and 1 over", "50 of 50 answers are the same"
    )
    written = json.loads((tmp_path / "run" / "evaluation" / "evaluation.json").read_text())
    run = load_run(tmp_path / "run")
    steps = run.time_steps * run.recipe.neuron.levels
    assert {k: written["binary"][k] for k in ("steps", "equal", "images")} == {
        "steps": steps,
        "equal": 50,
        "images": 50,
    }
    assert written["binary"]["accuracy"] == written["values"][run.time_steps - 1]
    main([str(tmp_path / "run"), "--binary", "--json"])
    assert json.loads(capsys.readouterr().out)[0]["binary"] == written["binary"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("neuron.kind=lif",), ("is a LIF", "accepted by --binary: networks of I-LIF")),
        (("neuron.kind=relu",), ("no spiking neuron", "I-LIF")),
        (("neuron.kind=ilif", "model.norm=tebn"), ("TEBN", "accepted")),
    ],
)
def test_other_networks_are_refused_by_name(tmp_path, changes, words):
    small_trainer(tmp_path / "run", "train.epochs=1", *changes).fit()
    with pytest.raises(UserError) as error:
        binary(load_run(tmp_path / "run"))
    mentions(str(error.value), *words)


def test_a_neuron_waits_for_all_of_its_current():
    """Two steps of a neuron at 1 that gets 0.6 in each: one spike, where a neuron that did not wait would send none."""
    from spiketriton_kernels.nn import ILIF

    net = binary_network(nn.Sequential(ILIF(levels=2, tau=2.0)), 2)
    sent = net(torch.tensor([[[0.6]], [[0.6]], [[1.4]], [[1.4]]]))
    assert sent.flatten().tolist() == [1.0, 0.0, 1.0, 1.0]
