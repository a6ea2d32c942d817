"""`spiketriton evaluate`: what it counts on trained nets, and what it says."""

from dataclasses import replace

import pytest
import torch

from spiketriton.evaluate.counters import SpikeCounter
from spiketriton.evaluate.energy import workload
from spiketriton.evaluate.evaluation import _confusion, evaluate, wilson
from spiketriton.evaluate.results import Evaluation
from spiketriton.models import build_model
from spiketriton.models.graph import graph_of
from spiketriton.runs.checkpoint import read_checkpoint
from spiketriton.system.errors import UserError
from spiketriton.training.trained import load_run
from tests.small_runs import small_recipe, small_trainer


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A spiking run of a few steps, and its twin."""
    root = tmp_path_factory.mktemp("runs")
    for name, kind in (("lif", "lif"), ("ann", "relu")):
        small_trainer(root / name, f"neuron.kind={kind}", "train.epochs=1").fit()
    return root


@pytest.fixture(scope="module")
def evaluation(runs) -> Evaluation:
    return evaluate(load_run(runs / "lif"), steps=5)


def test_every_step_is_the_answer_of_a_window_of_its_length(runs, evaluation):
    run = load_run(runs / "lif")
    assert (evaluation.steps, evaluation.time_steps, evaluation.images) == (5, 3, 50)
    state = read_checkpoint(runs / "lif" / "checkpoints" / "last.pt")
    counts = torch.tensor(evaluation.confusion)
    assert counts.sum() == 50
    assert state["test_score"] == evaluation.accuracy[2] == float(counts.diagonal().sum()) / 50
    with torch.inference_mode():
        for t, accuracy in enumerate(evaluation.accuracy, 1):
            answers = (
                (run.model(run.to_device(x), t).mean(0).argmax(1), y) for x, y in run.data.test
            )
            right = sum(int((found == y).sum()) for found, y in answers)
            assert accuracy == right / 50, t


def test_chunks_change_nothing_and_take_no_sum_that_a_deterministic_run_may_not(
    runs, evaluation, monkeypatch
):
    right = torch.Tensor.cumsum

    def on_cuda(self, dim):
        assert not self.is_floating_point(), "cumsum has no deterministic implementation"
        return right(self, dim)

    monkeypatch.setattr(torch.Tensor, "cumsum", on_cuda)
    drawn = evaluation.raster  # its sums are on the CPU
    monkeypatch.setattr("spiketriton.evaluate.evaluation.raster_of", lambda run: drawn)
    monkeypatch.setattr("spiketriton.evaluate.evaluation.CHUNK", 2)
    again = evaluate(load_run(runs / "lif"), steps=5, batch_size=7)
    measured = {"images_per_s": 0.0}
    assert {**vars(again), **measured} == {**vars(evaluation), **measured}


def test_counts_are_those_of_the_spikes(runs, evaluation):
    """One spiking layer, looked at directly."""
    run = load_run(runs / "lif")
    for norm in (m for m in run.model.modules() if hasattr(m, "fused")):
        norm.fused = False
    spikes = []
    run.model.layer2[0].neuron1.register_forward_hook(lambda _, x, out: spikes.append(out))
    with torch.inference_mode():
        for images, _ in run.data.test:
            run.model(run.to_device(images), 5)
    spikes = torch.cat(spikes, 1)
    (layer,) = (one for one in evaluation.layers if one.name == "layer2.0.neuron1")
    assert layer.neurons == spikes[0, 0].numel()
    assert layer.rate == pytest.approx(spikes.mean((1, 2, 3, 4)).tolist())
    within = spikes[:3].sum((0, 1))
    assert layer.dead == int((within == 0).sum())
    assert layer.saturated == int((within == 3 * 50).sum())


def test_dead_and_saturated_neurons_are_found(runs):
    run = load_run(runs / "lif")
    with torch.no_grad():
        run.model.layer1[0].bn1.weight.zero_()
        run.model.layer1[0].bn1.bias.copy_(torch.tensor([5.0, -5.0, 5.0, 0.5]))
    layer = next(x for x in evaluate(run).layers if x.name == "layer1.0.neuron1")
    assert layer.saturated == layer.neurons // 2
    assert layer.dead == layer.neurons // 2  # 0.5, then 0.75, 0.875: below 1 within 3 steps


@pytest.mark.parametrize(
    ("right", "images", "low", "high"),
    [
        (0, 10, 0.0, 0.277533),  # no success: the interval is z^2 / (n + z^2) wide
        (5, 10, 0.236593, 0.763407),
        (10, 10, 0.722467, 1.0),
        (9500, 10000, 0.945553, 0.954102),
    ],
)
def test_wilson(right, images, low, high):
    assert wilson(right, images) == pytest.approx((low, high), abs=2e-6)


def test_tebn_has_no_steps_beyond_its_gains(tmp_path):
    small_trainer(tmp_path / "run", "model.norm=tebn", "train.max_steps=1").fit()
    run = load_run(tmp_path / "run")
    with pytest.raises(UserError, match="tebn has gains for 3"):
        evaluate(run, steps=4)
    assert evaluate(run).steps == 3


@pytest.mark.parametrize("kind", ["lif", "if"])
def test_operations_and_energy_from_the_spikes_alone(runs, evaluation, kind, tmp_path):
    """Each column once more: 4.6 pJ a MAC, 0.9 pJ an AC, 5 pJ a word, at every number of steps."""
    one = evaluation
    if kind == "if":
        small_trainer(tmp_path / "if", "neuron.kind=if", "train.max_steps=1").fit()
        one = evaluate(load_run(tmp_path / "if"), steps=5)
    assert one.leaky == (kind == "lif")
    assert one.neurons == sum(layer.neurons for layer in one.layers)
    assert one.macs_once == one.layer_macs["conv1"] == 8 * 8 * 4 * 9
    assert one.macs_per_step == 0
    assert one.ann_macs == sum(one.layer_macs.values())
    synapses = sum(layer.synaptic_operations for layer in one.layers)
    assert one.synaptic_operations[2] == pytest.approx(synapses)
    within = [sum(layer.rate[:3]) * layer.neurons for layer in one.layers]
    assert one.mean_rate == pytest.approx(sum(within) / (3 * one.neurons))
    for t, spikes in enumerate(one.synaptic_operations, 1):
        membranes = t * one.neurons
        macs = one.macs_once + (membranes if one.leaky else 0)
        accumulates = spikes + (0 if one.leaky else membranes)
        assert one.macs(t) == macs
        assert one.accumulates(t) == pytest.approx(accumulates)
        energy = 4.6 * macs + 0.9 * accumulates
        assert one.energy_uj[t - 1] == pytest.approx(energy / 1e6)
        words = 2 * one.macs_once + 3 * spikes + 2 * membranes
        assert one.energy_with_data_uj[t - 1] == pytest.approx((energy + 5 * words) / 1e6)


def test_the_energy_of_an_ann_with_and_without_its_data(runs):
    one = evaluate(load_run(runs / "ann"), steps=9)
    assert one.steps == 1
    macs = sum(one.layer_macs.values())
    assert one.energy_uj == [pytest.approx(4.6e-6 * macs)]
    assert one.energy_with_data_uj == [pytest.approx((4.6 + 5 + 5) * 1e-6 * macs)]
    assert (one.macs(1), one.accumulates(1)) == (macs, 0)
    assert one.synaptic_operations == [0]
    assert [layer.synaptic_operations for layer in one.layers] == [0] * len(one.layers)


def test_the_label_of_a_run(evaluation):
    assert evaluation.label == "lif"
    assert replace(evaluation, kind="ann").label == "lif (ANN)"
    converted = replace(evaluation, kind="converted", method="calibrated")
    assert converted.label == "lif (converted, calibrated)"
    assert replace(converted, run="runs/twin, calibrated").label == "twin, calibrated (converted)"


def test_the_operations_of_a_pool_are_those_of_its_neurons_layer():
    """The stem's pool of spikes is a source of its own, and no layer."""
    recipe = small_recipe("model.name=resnet18", "model.stem=imagenet", "neuron.kind=if")
    torch.manual_seed(0)
    model = build_model(recipe, classes=10, channels=1, image_size=16).eval()
    nodes = graph_of(model)
    counter = SpikeCounter(nodes, workload(nodes, (1, 16, 16)), steps=2, within=2)
    kept = {}
    for name, neuron in model.spiking_layers():
        neuron.register_forward_hook(lambda _, x, out, name=name: kept.setdefault(name, out))
    with torch.no_grad(), counter.watching(model):
        for norm in (m for m in model.modules() if hasattr(m, "running_mean")):
            norm.bias.fill_(0.6)
        model(torch.randn(4, 1, 16, 16), 2)
    found = counter.layers(4, True)
    assert [layer.name for layer in found] == list(kept)
    for layer in found:
        events = kept[layer.name]
        assert layer.neurons == events[0, 0].numel()
        assert layer.rate == pytest.approx(events.mean((1, 2, 3, 4)).tolist())
    total = counter.operations_within()
    assert total == sorted(total)
    assert total[1] == round(4 * sum(layer.synaptic_operations for layer in found))
    assert found[0].synaptic_operations > 0
    spikes = sum(float(kept[layer.name].sum()) for layer in found)
    places = sum(layer.neurons for layer in found)
    assert counter.mean_rate() == pytest.approx(spikes / (4 * 2 * places))
    assert [layer.synaptic_operations for layer in counter.layers(4, False)] == [0] * len(found)


def test_rows_of_the_confusion_are_true_classes_and_columns_answers():
    answers = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    found = _confusion(answers, torch.tensor([0, 0, 1, 0]))
    assert found.tolist() == [[1, 2], [0, 1]]
