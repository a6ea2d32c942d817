"""The interpreter of NIR's equations: neurons by hand, and what it refuses; its layers are torch's."""

import numpy as np
import pytest

from spiketriton.export.nir_replay import replay

nir = pytest.importorskip("nir", reason="the extra nir is not installed")

ONE = np.array([1.0])


def chain(node, shape, **metadata):
    """A graph of one node."""
    nodes = {"in": nir.Input(np.array(shape)), "node": node, "out": nir.Output(np.array([1]))}
    edges = [("in", "node"), ("node", "out")]
    return nir.NIRGraph(nodes, edges, metadata={"dt": 1.0} | metadata, type_check=False)


def membranes(node, current: float, steps: int, **metadata) -> list[float]:
    _, found = replay(chain(node, [1], **metadata), np.array([[current]]), steps)
    return found["node"].ravel().tolist()


def test_inputs_of_a_node_are_summed_in_any_order_of_the_graph():
    nodes = {
        "out": nir.Output(np.array([1])),
        "twice": nir.Affine(2 * np.eye(1), 0 * ONE),
        "more": nir.Affine(np.eye(1), ONE),
        "in": nir.Input(np.array([1])),
    }
    edges = [("in", "more"), ("more", "twice"), ("in", "twice"), ("twice", "out"), ("in", "out")]
    graph = nir.NIRGraph(nodes, edges, metadata={"dt": 1.0}, type_check=False)
    given, _ = replay(graph, np.array([[3.0]]), 2)
    assert given["out"].tolist() == [[[17.0]], [[17.0]]]  # 2 (3 + 1 + 3) + 3


def test_an_if_by_hand():
    """dt r I = 0.5 * 3 * 0.5 = 0.75 a step, from v_reset = -0.5: at 1 it spikes."""
    neuron = nir.IF(r=3 * ONE, v_threshold=ONE, v_reset=-0.5 * ONE)
    found = membranes(neuron, 0.5, 5, dt=0.5, spike_at=">=")
    assert found == [0.25, 1.0, 0.25, 1.0, 0.25]
    assert membranes(neuron, 0.5, 3, dt=0.5) == [0.25, 1.0, 1.75]  # a tie: ">" is NIR's default


def test_a_lif_by_hand():
    """tau = 2, dt = 0.5, v_leak = 0.25: h = v + (0.25 - v + 4 I) / 4 with I = 0.5 from v = -0.5."""
    neuron = nir.LIF(tau=2 * ONE, r=4 * ONE, v_leak=0.25 * ONE, v_threshold=ONE, v_reset=-0.5 * ONE)
    found = membranes(neuron, 0.5, 4, dt=0.5)
    assert found == [0.1875, 0.703125, 1.08984375, 0.1875]
    assert membranes(neuron, 0.5, 2, dt=2.0) == [2.25, 2.25]


def test_membranes_without_a_reset_and_what_comes_back_by_hand():
    """LI with tau = 2, dt = 0.5: v + (0.25 - v + 4 I) / 4 with I = 0.5 from 0; I: dt r I = 0.75 a step, from 0."""
    leaky = nir.LI(tau=2 * ONE, r=4 * ONE, v_leak=0.25 * ONE)
    assert membranes(leaky, 0.5, 3, dt=0.5) == [0.5625, 0.984375, 1.30078125]
    integrates = nir.I(r=3 * ONE)
    assert membranes(integrates, 0.5, 3, dt=0.5) == [0.75, 1.5, 2.25]
    graph = chain(integrates, [1], dt=0.5, spike_at=">=")
    graph.nodes |= {"fires": nir.Threshold(1.5 * ONE), "back": nir.Scale(-ONE)}
    graph.edges += [("node", "fires"), ("fires", "back"), ("back", "node")]
    given, found = replay(graph, np.array([[0.5]]), 5)
    assert given["fires"].ravel().tolist() == [0, 1, 0, 1, 0]
    assert found["node"].ravel().tolist() == [0.75, 1.5, 0.75, 1.5, 0.75]  # a spike takes 1.5 later


def test_each_element_waits_for_its_own_delay():
    """In units of dt = 0.25; what comes before the first step is 0."""
    graph = chain(nir.Delay(np.array([0.0, 0.25, 0.75])), [3], dt=0.25)
    shown = 10.0 * np.arange(1, 6)[:, None, None] + np.array([1.0, 2.0, 3.0])
    given, _ = replay(graph, shown, 5)
    assert given["out"][:, 0].T.tolist() == [
        [11, 21, 31, 41, 51], [0, 12, 22, 32, 42], [0, 0, 0, 13, 23],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (nir.Flatten(np.array([2, 2, 2]), start_dim=1, end_dim=-1), "dimensions 1 to -1"),
        (nir.Flatten(np.array([2, 2, 2]), start_dim=0, end_dim=1), "dimensions 0 to 1"),
        (nir.AvgPool2d(ONE.repeat(2), ONE.repeat(2), np.array([0, 1])), "padding"),
        (nir.Delay(0.5 * ONE), "whole time steps"),
        (nir.Delay(-ONE), "whole time steps"),
        (nir.Conv1d(4, np.ones((1, 1, 3)), 1, 0, 1, 1, ONE), "node Conv1d is unknown"),
    ],
)
def test_what_it_does_not_know_is_refused(node, words):
    with pytest.raises(ValueError, match=words):
        replay(chain(node, [2, 2, 2]), np.zeros((1, 2, 2, 2)), 1)


def test_a_cycle_and_a_graph_without_dt_are_refused():
    graph = chain(nir.Affine(np.eye(1), 0 * ONE), [1])
    graph.edges.append(("node", "node"))
    with pytest.raises(ValueError, match="cycle through node"):
        replay(graph, np.zeros((1, 1)), 1)
    graph.metadata.clear()
    with pytest.raises(ValueError, match="lacks dt"):
        replay(graph, np.zeros((1, 1)), 1)
