"""NeuroBench's harness over trained runs: its accumulates are ours at weights that read spikes, to the spike."""

import pytest

from spiketriton.evaluate.evaluation import evaluate
from spiketriton.training.trained import load_run
from tests.small_runs import small_trainer
from tests.suites.harness import neurobench

pytest.importorskip("neurobench", reason="the extra suites is not installed")

NETS = {
    "plain": ["model.block=plain"],
    "ms": ["model.block=ms"],
    "flatten": ["model.name=vgg11", "data.image_size=32", "model.width=4", "neuron.kind=if"],
    "events": ["data.name=digits_dvs", "data.image_size=16"],  # simulated in 20 s,
}


@pytest.mark.parametrize(
    "name", ["plain", "ms", "flatten", pytest.param("events", marks=pytest.mark.slow)]
)
def test_the_harness_counts_as_we_do(name, tmp_path):
    small_trainer(tmp_path, "train.max_steps=3", "data.test_images=20", *NETS[name]).fit()
    run = load_run(tmp_path)
    found, own = neurobench(run), evaluate(run)
    metrics, ours = found["metrics"], found["ours"]
    counted = metrics["SynapticOperations"]
    print(f"\n{name}: {counted['Effective_ACs']:,.2f} AC, ours at weights {ours['weights']:,.2f}")
    assert counted["Effective_ACs"] == ours["weights"] > 0
    assert sum(ours.values()) == pytest.approx(own.synaptic_operations[-1], rel=1e-12)
    assert metrics["ClassificationAccuracy"] == pytest.approx(own.accuracy[-1], abs=1e-6)
    assert 1 - metrics["ActivationSparsity"] == pytest.approx(own.mean_rate, rel=1e-9)


def test_weights_that_read_sums_of_spikes_are_counted_by_themselves(tmp_path):
    small_trainer(tmp_path / "run", "train.max_steps=3", "model.block=sew").fit()
    found = neurobench(load_run(tmp_path / "run", test_images=20))
    assert found["images"] == 20
    assert found["ours"]["sums"] > 0
