"""`spiketriton recipes`: the list has every recipe, and a name prints the file."""

import pytest

from spiketriton.config.shipped import shipped_recipes
from spiketriton.recipes import main
from spiketriton.system.errors import UserError


def test_every_recipe_is_listed_with_its_data_window_memory_and_result(capsys):
    main([])
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[2 : 2 + len(shipped_recipes())]}
    assert rows.keys() == shipped_recipes().keys()
    assert " ".join(rows["fashion_mnist_r20"]) == "fashion_mnist resnet20 plain 4 0.3 GB 90.47 -"
    assert rows["imagenet_sew34"][-2:] == ["-", "67.04"]
    assert any(line.startswith("quickstart: 98.9 % of 360") for line in lines)


def test_the_list_fits_the_screen_with_whole_names(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    main([])
    *lines, last = capsys.readouterr().out.splitlines()
    assert last.startswith("spiketriton recipes NAME")  # a command, which is never broken
    assert max(map(len, lines)) <= 60
    for name in shipped_recipes():
        assert any(line.startswith(f"{name} ") for line in lines)


def test_a_name_prints_the_file_and_an_unknown_one_is_refused(capsys):
    main(["quickstart"])
    assert capsys.readouterr().out == shipped_recipes()["quickstart"].read_text("utf-8")
    with pytest.raises(UserError, match=r"did you mean quickstart \(shipped\)"):
        main(["quickstrat"])
