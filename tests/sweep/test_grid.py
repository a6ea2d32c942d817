"""The cells of a sweep: the grid, means and spreads over seeds."""

import math
from pathlib import Path

import pytest

from spiketriton.config import Recipe
from spiketriton.sweep.grid import Cell, Group, grid, grouped
from tests.small_runs import fastest_recipe, small_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    return fastest_recipe(tmp_path)


def test_the_grid_is_the_product_and_single_values_are_set_everywhere(recipe, tmp_path):
    cells = grid(recipe, ["seed=0,1", "neuron.surrogate.width=0.5,0.3", "time_steps=5"], tmp_path)
    assert [cell.values for cell in cells] == [
        {"seed": seed, "neuron.surrogate.width": width}
        for seed in ("0", "1")
        for width in ("0.5", "0.3")
    ]
    assert {cell.recipe.time_steps for cell in cells} == {5}
    assert [cell.recipe.neuron.surrogate.width for cell in cells] == [0.5, 0.3] * 2
    assert len({cell.path for cell in cells}) == 4
    assert cells[1].path == tmp_path / "seed=0,width=0.3"


def a_group(*accuracies: float | None) -> Group:
    cell = Cell({}, small_recipe(), Path())
    made = [{"test_accuracy": a, "width": 0.3 * 4**seed} for seed, a in enumerate(accuracies)]
    return Group({"model.depth": "2"}, made, [cell] * len(made))


def test_means_and_spreads():
    assert a_group(0.5, 0.7).mean == pytest.approx(0.6)
    assert a_group(0.5, 0.7).spread == pytest.approx(math.sqrt(0.02))
    assert math.isnan(a_group(0.5).spread)
    assert math.isnan(a_group(None).mean)
    assert a_group(None, 0.5, 0.7).mean == pytest.approx(0.6)
    assert a_group(0.5).width == 0.3
    assert a_group(0.5, 0.5).width == pytest.approx(0.6)  # the geometric mean


def test_groups_differ_in_more_than_the_seed():
    values = [{"time_steps": t, "seed": s} for t in "23" for s in "01"]
    recipe: Recipe = small_recipe()
    cells = [Cell(v, recipe, Path()) for v in values]
    made = [{"test_accuracy": n / 10, "seconds": 1.0, "width": 1.0} for n in range(4)]
    first, second = grouped(cells, made)
    assert (first.values, first.values_of_scores) == ({"time_steps": "2"}, [0.0, 0.1])
    assert (second.values, second.values_of_scores) == ({"time_steps": "3"}, [0.2, 0.3])


def test_names_of_cells_and_their_results(recipe, tmp_path):
    first, second = grid(recipe, ["seed=0,1", "data.root=a/b"], tmp_path)
    assert (first.label, first.path) == ("seed=0", tmp_path / "seed=0")
    assert first.recipe.data.root == "a/b"
    (alone,) = grid(recipe, [], tmp_path)
    assert (alone.label, alone.path) == ("(the recipe)", tmp_path / "recipe")
    odd, _ = grid(recipe, ["data.root=a/b c,x", "seed=7"], tmp_path)
    assert odd.path == tmp_path / "root=a_b_c"
    assert second.result() is None
    second.path.mkdir()
    second.result_file.write_text('{"accuracy": 0.5}')
    assert second.result() == {"accuracy": 0.5}
