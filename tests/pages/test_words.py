"""The pages that a newcomer reads: sentences that can be read once, and numbers as the recipes have them."""

import re
from pathlib import Path

import pytest

from spiketriton_kernels import Surrogate

ROOT = Path(__file__).parents[2]
BY_HAND = [  # all but docs/recipes.md, which is generated
    "README.md",
    "kernels/README.md",
    "profiling/README.md",
    "examples/weights/README.md",
    *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md") if page.stem != "recipes"),
]
LONGEST = 35


def sentences(page: str) -> list[str]:
    """The prose of a page: without code blocks, tables, pictures and comments; every item of a list for itself."""
    text = re.sub(r"^ *```.*?^ *```", "\n\n", page, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!--.*?-->|^ *\|.*$|^!\[.*$|^#.*$", "\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    paragraphs = re.split(r"\n\s*\n|\n *[*-] |^\* |\n *\d+\. ", text)
    return [
        sentence
        for paragraph in paragraphs
        for sentence in re.split(
            r"(?<=[.!?])[*)\"]*\s+(?=[A-Z`\[(*\"\d])", " ".join(paragraph.split())
        )
    ]


@pytest.mark.parametrize("page", BY_HAND)
def test_no_sentence_is_too_long(page):
    long = [s for s in sentences((ROOT / page).read_text("utf-8")) if len(s.split()) > LONGEST]
    assert not long, "\n".join(long)


def test_the_widths_of_other_libraries():
    """docs/words.md: `Surrogate.atan(2)` is 0.318 wide and 1 high."""
    text = (ROOT / "docs" / "words.md").read_text("utf-8")
    rows = re.findall(r"\| `(Surrogate\.\w+\(\d+\))` \| (\S+) \| (\S+) \|", text)
    assert len(rows) == 8
    for made, width, height in rows:
        surrogate = eval(made, {"Surrogate": Surrogate})
        assert (f"{surrogate.width:.3g}", f"{surrogate.height:.3g}") == (width, height), made


def test_the_front_page_has_the_numbers_of_the_page_of_speed():
    """README.md: images/s and MB of a training step on one thread, as docs/performance.md has them."""
    front, page = (
        (ROOT / name).read_text("utf-8") for name in ("README.md", "docs/performance.md")
    )
    wanted = {
        "spiketriton": "spiketriton",
        "convolutions alone": "its convolutions alone, by PyTorch",
        "torch.compile": "`torch.compile` of the unfused network",
        "spikingjelly compiled": "SpikingJelly, compiled",
        "ANN twin": "its ANN twin, which has one step",
    }
    table = page.partition("1 thread")[2].partition("| training step")[2].partition("\n\n")[0]
    head, _, *rows = ([cell.strip() for cell in line.split("|")] for line in table.splitlines())
    places = [
        next(i for i, cell in enumerate(head) if cell.startswith(case)) - len(head)
        for case in ("fashion_mnist_r20, T = 4, batch 64", "imagenette_r18_64, T = 4, batch 32")
    ]
    measured = {row[1]: [row[place] for place in places] for row in rows}
    for contender, words in wanted.items():
        of_it = rf"^\| {re.escape(words)} \| (\d+ \([\d,]+\)) \| (\d+ \([\d,]+\)) \|$"
        shown = re.search(of_it, front, re.MULTILINE)
        assert shown, words
        for there, here in zip(measured[contender], shown.groups(), strict=True):
            (speed, memory), (rounded, same) = there.split(), here.split()
            assert abs(float(speed) - float(rounded)) <= 0.5
            assert memory == same


def test_the_front_page_has_the_numbers_of_the_recipes():
    """README.md: accuracy and time as the header of the recipe has them; docs/events.md and the weights too."""
    front = (ROOT / "README.md").read_text("utf-8")
    rows = re.findall(
        r"^\| `(\w+)`: .*? \| ([\d.]+) %.*? \| ([\d.]+) (s|min)\b", front, re.MULTILINE
    )
    assert len(rows) == 9
    for name, accuracy, time, unit in rows:
        header = (ROOT / "recipes" / f"{name}.toml").read_text("utf-8")
        measured = re.search(
            r"Measured: ([\d.]+) %.*? ([\d.]+) (second|minute)s", header, re.DOTALL
        )
        assert measured, name
        assert accuracy == f"{float(measured[1]) + 1e-9:.1f}", name  # halves up, as by hand
        assert (measured[2], measured[3][0]) == (time, unit[0]), name
    events = (ROOT / "docs" / "events.md").read_text("utf-8")
    assert f"| {dict(row[:2] for row in rows)['digits_dvs']} ± " in events
