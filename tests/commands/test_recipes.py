"""`spiketriton recipes`: the list has every recipe, and a name prints the file."""

import pytest

from spiketriton.config.shipped import shipped_recipes
from spiketriton.errors import UserError
from spiketriton.recipes import main


def test_every_recipe_is_listed_with_its_data_window_memory_and_result(capsys):
    main([])
    shown = capsys.readouterr().out
    for name in shipped_recipes():
        assert name in shown
    line = next(line for line in shown.splitlines() if " fashion_mnist_r20 " in line)
    assert line.split()[:5] == ["fashion_mnist_r20", "fashion_mnist", "resnet20,", "lif", "4"]
    assert "not yet" in shown


def test_a_name_prints_the_file(capsys):
    main(["quickstart"])
    assert capsys.readouterr().out == shipped_recipes()["quickstart"].read_text("utf-8")


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match=r"did you mean quickstart \(shipped\)"):
        main(["quickstrat"])
