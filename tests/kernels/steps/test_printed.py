"""How a graph is simplified and written: the short forms compute what the long ones do, and are not taken elsewhere."""

import math
from types import SimpleNamespace

import pytest
import torch

from spiketriton_kernels import nn
from spiketriton_kernels.steps.graph import Graph
from spiketriton_kernels.steps.printed import Writer, evaluate

TL = SimpleNamespace(
    fma=lambda a, b, c: a * b + c,
    where=lambda condition, a, b: a if condition else b,
    minimum=lambda a, b, **_: min(a, b),
    maximum=lambda a, b, **_: max(a, b),
    PropagateNan=SimpleNamespace(ALL=None),
)
VALUES = {"a": 2.0, "b": 3.0, "c": 5.0}


def written(make, values=None, fused=True) -> tuple[list[str], float, float]:
    """(lines, what they compute as Triton would, the same by PyTorch) of what is made of a, b and c."""
    graph, values = Graph(), values or VALUES
    names = {graph.add("input", name): name for name in values}
    end = make(graph.add, *names)
    writer = Writer(graph, names, cpp=False, fused=graph.after(names) if fused else ())
    lines, space = writer.lines([end]), {"tl": TL, "nearest": round, **values}
    exec("\n".join(lines), space)
    given = {ref: torch.tensor(values[name], dtype=torch.float64) for ref, name in names.items()}
    (expected,) = evaluate(graph, given, [end])
    return lines, float(space[writer.of(end)]), float(expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda add, a, b, c: add("add", add("mul", a, b), c),
        lambda add, a, b, c: add("add", c, add("mul", a, b)),
        lambda add, a, b, c: add("sub", add("mul", a, b), c),
        lambda add, a, b, c: add("sub", c, add("mul", a, b)),
        lambda add, a, b, c: add("sub", 1.0, add("mul", -0.5, b)),
        lambda add, a, b, c: add("sub", add("mul", a, b), add("mul", b, c)),
        lambda add, a, b, c: add("add", add("mul", a, add("sub", b, add("mul", a, c))), c),
    ],
)
def test_a_product_and_a_sum_are_one_operation(make):
    lines, found, expected = written(make)
    assert found == expected
    assert any("tl.fma" in line for line in lines)
    plain, found, expected = written(make, fused=False)
    assert found == expected
    assert not any("tl.fma" in line for line in plain)


def test_a_product_that_something_else_reads_stays():
    graph = Graph()
    a, b, c = (graph.add("input", name) for name in "abc")
    product = graph.add("mul", a, b)
    both = [graph.add("add", product, c), graph.add("sub", product, c)]
    writer = Writer(graph, {a: "a", b: "b", c: "c"}, cpp=False, fused=graph.after([a]))
    assert not any("fma" in line for line in writer.lines(both))
    last = Writer(graph, {a: "a", b: "b", c: "c"}, cpp=False, fused=graph.after([a]))
    assert not any("fma" in line for line in last.lines([both[0], product]))


@pytest.mark.parametrize("values", [(1.0, 1.0), (1.0, 1.0 + 2**-52), (5e-324, 0.0), (-2.0, 3.0)])
def test_a_spike_compares_both_sides(values):
    given = dict(zip("ab", values, strict=True))
    lines, found, expected = written(lambda add, a, b: add("ge", add("sub", a, b), 0.0), given)
    assert lines[-1].endswith("a >= b")
    assert found == expected


def test_other_comparisons_are_as_they_are():
    lines, *_ = written(lambda add, a, b, c: add("ge", add("sub", a, b), 1.0))
    assert "a >= b" not in "".join(lines)
    lines, *_ = written(lambda add, a, b, c: add("ge", add("add", a, b), 0.0))
    assert "a >= b" not in "".join(lines)
    lines, *_ = written(lambda add, a, b, c: add("gt", add("sub", a, b), 0.0))
    assert "a > b" not in "".join(lines)


def test_the_halves_of_a_gradient_are_joined():
    graph = Graph()
    x, y, z = (graph.add("input", name) for name in "xyz")
    one, other = graph.add("gt", x, 0.0), graph.add("gt", x, 1.0)

    def half(condition, yes, no):
        return graph.add("where", condition, yes, no)

    assert graph.add("add", half(one, y, 0.0), half(one, 0.0, y)) == y
    assert graph.add("add", half(one, 0.0, y), half(one, y, 0.0)) == y
    for a, b in (
        (half(one, y, 0.0), half(other, 0.0, y)),  # of another condition
        (half(one, y, 0.0), half(one, 0.0, z)),  # of another gradient
        (half(one, y, 0.0), half(one, y, 0.0)),  # of the same side
        (half(one, y, 1.0), half(one, 0.0, y)),  # beside something
    ):
        assert graph.nodes[graph.add("add", a, b)].op == "add"
    assert graph.nodes[graph.add("sub", half(one, y, 0.0), half(one, 0.0, y))].op == "sub"


@pytest.mark.parametrize(
    ("ends", "short"), [((0.0, 4.0), True), ((0.0, 1e9), False), ((-1e7, 4.0), False)]
)
def test_what_is_clamped_is_rounded_by_an_addition(ends, short):
    def make(add, a):
        return add("round", add("minimum", add("maximum", a, ends[0]), ends[1]))

    for value in (-3.0, 0.5, 1.5, 2.5, 2.75, 9.0):
        lines, found, expected = written(make, {"a": value})
        assert ("nearest" not in lines[-1]) == short
        if not short or value >= 0:  # in float64 an addition of 1.5 * 2^23 rounds nothing
            assert math.isclose(found, expected, abs_tol=0.5)


@pytest.mark.parametrize("kind", ["LIF", "ALIF", "CuBaLIF", "CLIF", "ILIF"])
def test_of_our_own_neurons_as_little_as_can_be_is_kept(kind):
    """The distance to the threshold, from which a way back has spike and slope; of CLIF h and m."""
    neuron = getattr(nn, kind)(v_threshold=0.8, detach_reset=True)
    step = neuron.traced()
    assert len(step.kept) == (2 if kind == "CLIF" else 1)
    assert not any(step.learns)
    assert ("rho" in step.constants) == (kind in ("ALIF", "CuBaLIF"))
    learning = getattr(nn, kind)(v_threshold=torch.nn.Parameter(torch.ones(())), detach_reset=True)
    learns = zip(learning.traced().constants, learning.traced().learns, strict=True)
    assert [name for name, learns in learns if learns] == ["v_threshold"]
