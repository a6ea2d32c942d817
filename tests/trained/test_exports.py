"""Files that are written, read back and compared: differences are found where they begin."""

import pytest
import torch

from spiketriton.trained.exports import Comparison, compare, sample_images, spikes_of
from spiketriton.trained.nir_graph import to_nir
from spiketriton.trained.run import load_run
from tests.small_runs import small_trainer
from tests.trained.test_nir_graph import SIZE, T, build, images

nir = pytest.importorskip("nir", reason="the extra nir is not installed")


def test_a_wrong_file_is_found_at_its_first_difference():
    model = build()
    graph = to_nir(model, (2, SIZE, SIZE))
    graph.nodes["layer2.0.neuron1"].v_threshold[3] *= 1.5
    found = compare(model, graph, images())
    assert found.different > 0
    assert found.first.startswith("layer2.0.neuron1, time step")
    assert "neuron [3," in found.first
    assert found.margin > 1e-3


def test_counts_are_of_all_neurons_steps_and_images_and_the_first_step_comes_first():
    model = build("model.name=mlp", "model.depth=2", "model.width=8")
    graph = to_nir(model, (2, SIZE, SIZE))
    found = compare(model, graph, images())
    assert found == Comparison(found.spikes, 2 * 8 * T * 3, 0, "", 0.0)
    with torch.no_grad():
        spikes = spikes_of(model.double(), images().double())
    assert found.spikes == sum(layer.sum() for layer in spikes.values())
    graph.nodes["layers.1.neuron"].v_threshold[:] = 1e9  # silent
    found = compare(model, graph, images())
    assert found.different == spikes["layers.1.neuron"].sum()
    assert found.first.startswith(f"layers.1.neuron, time step {first_step(spikes)}, image ")
    assert 0.9 < found.margin <= 1.1  # of a threshold that is far away


def first_step(spikes) -> int:
    return int(spikes["layers.1.neuron"].sum((1, 2)).nonzero()[0][0])


def test_samples_are_test_images_and_as_much_noise(tmp_path):
    small_trainer(tmp_path / "run", "train.max_steps=1").fit()
    run = load_run(tmp_path / "run")
    batches = [x for x, _ in run.data.test]
    for count in (3, 16, 20):
        sample = sample_images(run, count)
        assert len(sample) == 2 * count
        assert torch.equal(sample[:count], torch.cat(batches)[:count])
        assert 0.5 < float(sample[count:].std()) < 1.5
