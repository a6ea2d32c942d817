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
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


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


def holds_two(cell: str) -> bool:
    """Whether a cell has nothing but numbers, several of them: no date, and nothing with an x, as levels x steps."""
    words = set(re.findall(r"[^\W\d_]+", NUMBER.sub(" ", cell)))
    return len(NUMBER.findall(cell)) > 1 and words <= {"of", "to", "and", "s", "ms"}


def crowded(page: str) -> list[str]:
    """The lines of tables with a cell of two numbers."""
    text = re.sub(r"^ *```.*?^ *```", "", page, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    text = re.sub(r"\d{4}-\d\d-\d\d|`[^`]*`|\[\d[\d, ]*\]|(?<=\d)x(?= *\|| *[,)])", "", text)
    tables = [line for line in text.splitlines() if line.startswith("|")]
    return [line for line in tables if any(map(holds_two, line.split("|")))]


def test_what_two_numbers_are():
    two = "1 / 2; 1.5, 2; 37 of 55; 88.1 (88.3); 96 ± 1.0 %; 3 + 6; 1.29 to 1.36; 0.9, 0.8x"
    one = "1 x 10; 4e+14; 1,048,576; **81.5**; 2026-12-01; `1, 2`; [1, 16]; -; 3e-12; 2.5x"
    for cells, wrong in ((two, 8), (one, 0)):
        assert len(crowded("\n".join(f"| a | {cell} |" for cell in cells.split("; ")))) == wrong


def test_no_cell_of_a_table_holds_two_numbers():
    folders = ("docs", "studies", "kernels", "profiling", "examples")
    pages = [*ROOT.glob("*.md"), *(p for f in folders for p in (ROOT / f).rglob("*.md"))]
    assert len(pages) > 40
    found = {str(page.relative_to(ROOT)): crowded(page.read_text("utf-8")) for page in pages}
    assert {page: lines for page, lines in found.items() if lines} == {}


def test_the_widths_of_other_libraries():
    """docs/words.md: `Surrogate.atan(2)` is 0.318 wide and 1 high."""
    text = (ROOT / "docs" / "words.md").read_text("utf-8")
    rows = re.findall(r"\| `(Surrogate\.\w+\(\d+\))` \| (\S+) \| (\S+) \|", text)
    assert len(rows) == 8
    for made, width, height in rows:
        surrogate = eval(made, {"Surrogate": Surrogate})
        assert (f"{surrogate.width:.3g}", f"{surrogate.height:.3g}") == (width, height), made


def test_the_front_page_has_the_numbers_of_the_page_of_speed():
    """README.md: images/s of a training step on one thread, as docs/performance.md has them."""
    front, page = (
        (ROOT / name).read_text("utf-8") for name in ("README.md", "docs/performance.md")
    )
    contenders = {
        "spiketriton": "spiketriton",
        "`torch.compile`": "torch.compile",
        "SpikingJelly, compiled": "spikingjelly compiled",
        "its ANN twin, one step": "ANN twin",
    }
    processors = {
        "Intel Xeon (AMX)": "### Intel(R) Xeon(R) Processor, 1 thread",
        "AMD EPYC (AVX2)": "### AMD EPYC, 1 thread",
    }
    head, _, *lines = cells(front.partition("| recipe |")[2].partition("\n\n")[0])
    assert head == ["time steps", "batch", "precision", "processor", *contenders]
    assert len(lines) >= 3
    for recipe, steps, batch, precision, processor, *numbers in lines:
        table = page.partition(processors[processor])[2].partition("| recipe |")[2]
        names, _, *rows = cells(table.partition("\n\n")[0])
        case = [recipe.strip("`"), precision, steps, batch]
        found = next(row[len(case) :] for row in rows if row[: len(case)] == case)
        measured = dict(zip(names[len(case) - 1 :], found, strict=True))
        for contender, number in zip(contenders.values(), numbers, strict=True):
            assert number == f"{float(measured[contender].replace(',', '')):.0f}", (case, contender)


def test_the_front_page_has_the_hit_rate_of_the_page_of_the_gradient():
    """README.md: of the nets that chose no limit how many were told, and how many wrongly."""
    page = (ROOT / "docs" / "gradient_flow.md").read_text("utf-8").partition("## Through time")[2]
    rows = re.findall(r"\| \*\*all of these\*\* \| (\w+) \| (\d+) \| (\d+) \|", page)
    assert [fate for fate, *_ in rows] == ["fail", "learn"]
    (_, failed, told), (_, learnt, wrongly) = rows
    front = " ".join((ROOT / "README.md").read_text("utf-8").split())
    assert f"[{told} of the {failed} nets](docs/gradient_flow.md#through-time)" in front
    assert f"with {wrongly} false alarms among the {learnt} that" in front


def cells(table: str) -> list[list[str]]:
    """Of each line of a table in Markdown; what is left of its heading begins behind the first cell."""
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()]


def test_the_page_of_events_has_the_number_of_the_recipe():
    header = (ROOT / "recipes" / "digits_dvs.toml").read_text("utf-8")
    measured = re.search(r"Measured: ([\d.]+) %", header)
    assert f"| ResNet-8 | 6 | {measured[1]} | " in (ROOT / "docs" / "events.md").read_text("utf-8")
