"""Evaluation and report of any network; operations are counted by a graph that gives the network's answers."""

import math

import pytest
import torch

from spiketriton.convert.conversion import Options, convert
from spiketriton.diagnose.ablations import Experiment
from spiketriton.diagnose.diagnosed import find_subject
from spiketriton.evaluate import __main__ as command
from spiketriton.evaluate.evaluation import evaluate
from spiketriton.evaluate.results import read_evaluation
from spiketriton.export.nir_graph import to_nir
from spiketriton.report import __main__ as report
from spiketriton.runs.checkpoint import read_checkpoint
from spiketriton.system.errors import UserError
from spiketriton.training.trained import load_run
from tests.small_runs import Lines, small_trainer

pytestmark = pytest.mark.usefixtures("blank_pictures")

OWN = [
    "plugins.modules=tests.evaluate.own_nets", "model.width=0", "train.max_steps=2", "monitor.enabled=false",
]  # fmt: skip


def trained(path, net, *changes):
    small_trainer(path, *OWN, f"model.name=own_{net}", *changes).fit()
    return load_run(path)


@pytest.mark.parametrize(("net", "kind"), [("twice", "lif"), ("pooled", "relu")])
def test_without_a_graph_of_its_own_all_but_operations_is_measured(tmp_path, net, kind):
    run = trained(tmp_path / "run", net, f"neuron.kind={kind}")
    found = evaluate(run)
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    assert found.accuracy[-1] == state["test_score"]
    assert sum(map(sum, found.confusion)) == found.images == 50
    assert found.images_per_s > 0
    assert "does not give its answers" in found.uncounted
    assert math.isnan(found.energy_uj[-1])


@pytest.mark.parametrize("steps", [3, 5])
def test_rates_are_the_mean_over_all_calls(tmp_path, steps):
    """Of windows that are run at once: a membrane that is kept would be that of the layer's other call."""
    run = trained(tmp_path / "run", "twice")
    found = evaluate(run, steps)
    sums = {}

    def add(name, out):
        spikes, places = sums.get(name, (0, 0))
        sums[name] = spikes + out.sum((1, 2, 3, 4)).double(), places + out[0].numel()

    for name, layer in run.model.spiking_layers():
        layer.on_fire = lambda out, name=name: add(name, out)
    with torch.inference_mode():
        for images, _ in run.data.test:
            run.model(images, steps)
    for layer in found.layers:
        spikes, places = sums[layer.name]
        assert layer.rate == pytest.approx((spikes / places).tolist())


def test_a_network_that_its_graph_is_not_is_neither_converted_nor_exported(tmp_path):
    pytest.importorskip("nir")
    spiking = trained(tmp_path / "run", "pooled")
    ann = trained(tmp_path / "ann", "pooled", "neuron.kind=relu")
    for refuse in (
        lambda: to_nir(spiking.model, (1, 8, 8)),
        lambda: convert(ann, Options(method="balanced", steps=4, images=16)),
    ):
        with pytest.raises(UserError, match="the graph of Pooled does not give its answers"):
            refuse()


def test_a_graph_of_ones_own_counts_what_the_network_does(tmp_path):
    found = evaluate(trained(tmp_path / "run", "withgraph"))
    assert found.uncounted == ""
    rate = {layer.name: sum(layer.rate[: found.time_steps]) for layer in found.layers}
    # behind the pool 2x2 of 8x8 are left: the weights that read a place, over all places
    assert 0 < found.synaptic_operations[-1] < 3 * 64 * 4 * (9 * 4 + 10)
    assert found.layer_macs["layers.1.weights"] == 4 * 4 * 4 * 4 * 9
    assert rate["layers.0.neuron"] > 0


def test_a_neuron_that_is_called_for_each_step_is_trained_without_a_probe(tmp_path):
    """The other one is measured, by all that measures."""
    keys = [*OWN[:-1], "model.name=own_recurrent"]
    display = Lines()
    trainer = small_trainer(tmp_path / "run", *keys, display=display)
    trainer.fit()
    (words,) = trainer.model.notes()
    assert words.startswith("not measured: layers.1.neuron, called with 1 of 3 time steps")
    rows = trainer.folder.gradients.read()
    assert {row["layer"] for row in rows} == {"layers.0.neuron"}
    subject = find_subject(str(tmp_path / "run"), [], warn=pytest.fail)
    assert Experiment(subject).widths.keys() == {"layers.0.neuron"}
    assert len(evaluate(load_run(tmp_path / "run")).accuracy) == 3


def test_evaluate_and_report_show_it(tmp_path, capsys):
    trained(tmp_path / "run", "pooled")
    command.main([str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert (
        "operations and energy are not counted: the graph of Pooled does not give its answers"
        in " ".join(said.split())
    )
    again = read_evaluation(tmp_path / "run" / "evaluation" / "evaluation.json")
    assert math.isnan(again.energy_uj[0])
    assert not (tmp_path / "run" / "evaluation" / "energy.png").exists()
    report.main([str(tmp_path / "run")])
    text = (tmp_path / "run" / "report.html").read_text()
    assert "operations and energy are not counted" in text
    assert "nan" not in text.partition("base64")[0]
