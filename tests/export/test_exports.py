"""Files that are written, read back and compared: differences are found where they begin."""

import numpy as np
import pytest
import torch

from spiketriton.evaluate.tables import replayed
from spiketriton.export.nir_file import (
    TIE,
    Comparison,
    Place,
    compare,
    export_nir,
    sample_images,
    spikes_of,
)
from spiketriton.export.nir_graph import to_nir
from spiketriton.export.nir_replay import replay
from spiketriton.system.errors import UserError
from spiketriton.training.trained import load_run
from tests.export.test_nir_graph import SIZE, T, build, images
from tests.small_runs import small_trainer

nir = pytest.importorskip("nir", reason="the extra nir is not installed")


def test_a_wrong_file_is_found_at_its_first_difference():
    """Counts are of all neurons, steps and images; the margin is in thresholds."""
    model = build("model.name=mlp", "model.depth=2", "model.width=8")
    graph = to_nir(model, (2, SIZE, SIZE))
    found = compare(model, graph, images())
    assert found == Comparison(found.spikes, 2 * 8 * T * 3, 0, None, 0.0)
    with torch.no_grad():
        spikes = spikes_of(model.double(), images().double())
    assert found.spikes == sum(layer.sum() for layer in spikes.values())

    def flipped(*given):
        theirs, membranes = replay(*given)
        for layer, step in ((0, 2), (1, 1)):
            theirs[f"layers.{layer}.neuron"][step] = 1 - theirs[f"layers.{layer}.neuron"][step]
        return theirs, membranes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spiketriton.export.nir_file.replay", flipped)
        found = compare(model, graph, images())
    assert found.different == 2 * 8 * 3
    assert (found.first.node, found.first.step) == ("layers.1.neuron", 1)  # the earlier step
    graph.nodes["layers.0.neuron"].v_threshold *= 1.25
    found = compare(model, graph, images())
    theirs, membranes = (given["layers.0.neuron"] for given in replay(graph, images().numpy(), T))
    at = tuple(map(int, np.argwhere(theirs != spikes["layers.0.neuron"])[0]))
    assert found.first == Place("layers.0.neuron", at[0], at[1], (at[2],))
    assert found.margin == pytest.approx(abs(membranes[at] / 1.25 - 1))
    place = f"layers.0.neuron, time step {at[0]}, image {at[1]}, neuron {[at[2]]}"
    assert place in replayed(found)[1]


@pytest.mark.parametrize(("margin", "agrees"), [(0.9 * TIE, True), (TIE, False)])
def test_a_difference_within_a_tie_is_forgiven(margin, agrees):
    assert TIE == 1e-5
    assert Comparison(7, 1234, 1, Place("there", 1, 2, (3,)), margin).agrees == agrees
    assert Comparison(7, 1234, 0, None, 1.0).agrees


def test_samples_are_test_images_and_as_much_noise(tmp_path):
    small_trainer(tmp_path / "run", "train.max_steps=1").fit()
    run = load_run(tmp_path / "run")
    batches = [x for x, _ in run.data.test]
    for count in (3, 16, 20):
        sample = sample_images(run.data, count)
        assert len(sample) == 2 * count
        assert torch.equal(sample[:count], torch.cat(batches)[:count])
        assert 0.5 < float(sample[count:].std()) < 1.5


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("exports") / "run"
    net = ("model.name=mlp", "model.depth=2", "model.width=8")
    small_trainer(path, "train.max_steps=1", *net).fit()
    return load_run(path)


def test_a_nir_file_is_compared_on_images_and_noise(run, tmp_path):
    found = export_nir(run, tmp_path / "net.nir", 0.5, 3)
    assert found.compared == 2 * 8 * 3 * 6  # layers of 8, 3 steps, 3 images and as much noise
    assert found.different == 0
    assert nir.read(tmp_path / "net.nir").metadata["dt"] == 0.5
    with pytest.raises(UserError, match="cannot be written"):
        export_nir(run, tmp_path / "no" / "net.nir", 0.5, 3)
