"""docs/first_steps.md: each block prints what stands below it, about, and its pictures can be drawn of it."""

import re
import runpy
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "first_steps.md"
SCRIPT = ROOT / "studies" / "pictures" / "first_steps.py"
NUMBER = re.compile(r"(\d+(?:\.\d+)?)( %)?")
POINTS, SHARE = 6, 0.15  # a percentage, any other number: other processors round otherwise


SHORTER = {
    "accuracy(fit(net))": "accuracy(net)",
    "epochs=3": "epochs=1",
    "epochs=4": "epochs=1",
    "steps=300": "steps=2",
}
"""Without --slow nets learn little, and those of 30 layers nothing."""
KNOWN = (0, 3, 4)
"""Blocks whose numbers no training changes, once "trained" is left out."""


def differs(shown: str, printed: str) -> str:
    """Which number of the page is another one, or other words around them; empty: none."""
    if NUMBER.sub("#", shown) != NUMBER.sub("#", printed):
        return f"the page has {shown!r}, printed was {printed!r}"
    for (on_page, percent), (found, _) in zip(
        NUMBER.findall(shown), NUMBER.findall(printed), strict=True
    ):
        allowed = POINTS if percent else SHARE * float(on_page)
        if abs(float(on_page) - float(found)) > allowed:
            return f"{on_page} is {found} in {printed!r}"
    return ""


@pytest.mark.parametrize(
    ("shown", "printed", "wrong"),
    [
        ("LIF: 96.7 %", "LIF: 91.0 %", ""),
        ("LIF: 96.7 %", "LIF: 90.0 %", "96.7 is 90.0"),
        ("[0, 7, 20]", "[0, 8, 20]", ""),
        ("[0, 7, 20]", "[1, 7, 20]", "0 is 1"),
        ("lost, 5 %", "healthy, 5 %", "printed was"),
        ("4 of 5", "4", "printed was"),
    ],
)
def test_what_counts_as_another_output(shown, printed, wrong):
    found = differs(shown, printed)
    assert wrong in found
    assert bool(found) == bool(wrong)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_page_prints_what_it_shows(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    script = runpy.run_path(str(SCRIPT))
    text = PAGE.read_text("utf-8")
    shown = script["BLOCK"].findall(text)
    assert text.count("```python\n") == len(shown) == 7
    for usual, shorter in {} if whole else SHORTER.items():
        assert text.count(usual) == 1
        text = text.replace(usual, shorter)
    names, outputs = script["run_page"](text)
    told = [block[1] for block in shown]
    if not whole:
        trained = re.compile(r"trained [\d.]+")
        told, outputs = (
            [
                trained.sub("", part) if i in KNOWN else NUMBER.sub("#", part)
                for i, part in enumerate(parts)
            ]
            for parts in (told, outputs)
        )
    wrong = [differs(*both) for both in zip(told, outputs, strict=True)]
    assert not any(wrong), wrong
    drawn = re.findall(r"\(img/first_steps_(\w+)\.png\)", text)
    assert drawn == ["membrane", "surrogate", "time", "depth", "credit"]
    for name in drawn:
        assert PAGE.with_name("img").joinpath(f"first_steps_{name}.png").is_file()
        assert script[name](names).axes[0].lines
