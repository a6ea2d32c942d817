"""Files that are written, read back and compared: differences are found where they begin."""

import pytest

from spiketriton.trained.exports import compare
from spiketriton.trained.nir_graph import to_nir
from tests.trained.test_nir_graph import SIZE, build, images

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
