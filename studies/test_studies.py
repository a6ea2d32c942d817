"""A study is a folder that answers a question; it imports the product and pages.py, and nothing imports a study."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from spiketriton.system.errors import UserError
from studies.pages import filled, share, unsaid

HERE = Path(__file__).parent
ROOT = HERE.parent
FOLDERS = sorted(p.name for p in HERE.iterdir() if p.is_dir() and p.name != "__pycache__")
UNDER_WAY = {  # registered before they are measured
    name
    for name in FOLDERS
    if (HERE / name / "register.csv").exists() and not (HERE / name / "rows.csv").exists()
}
STUDIES = [name for name in FOLDERS if name not in UNDER_WAY]
PRODUCT = ("spiketriton", "kernels", "profiling", "tests", "examples", "docs")


def prose(text: str) -> list[str]:
    """The words of a page: without code, tables, pictures and addresses."""
    text = re.sub(r"^```.*?^```|^\|.*?$|^!\[.*?$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"\]\([^)]*\)", "]", text).split()


def imported(file: Path) -> Iterator[str]:
    """The modules that a file imports by name; of strings that are run elsewhere nothing is known."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_what_is_prose():
    assert prose("**A** [b c](d/e.md)\n| f |\n```sh\ng\n```\n![h](i.png)\nj") == [
        "**A**",
        "[b",
        "c]",
        "j",
    ]


def test_a_table_stands_between_its_marks():
    text = "a\n<!-- t: begin -->\nold\n<!-- end -->\nb\n"
    for made in ("new\nrow\n", ["new", "row"]):
        found = filled(text, "t", made)
        assert found == "a\n<!-- t: begin -->\nnew\nrow\n<!-- end -->\nb\n"
    for wrong in (text.replace("t: begin", "u: begin"), text.replace("end", "stop")):
        with pytest.raises(
            UserError, match=r"page\.md has no marks <!-- t: begin --> and <!-- end -->"
        ):
            filled(wrong, "t", "", "page.md")
    assert unsaid("one\n two", ["one two", "three"]) == ["three"]
    assert (share(40, 41), share(0, 0)) == ("40 of 41 (87-100 %)", "")


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_has_a_question_an_answer_and_a_date(name):
    page = (HERE / name / "README.md").read_text("utf-8")
    assert re.findall(r"^\*\*(\w+)[.*]", page, re.MULTILINE) == ["Question", "Answer", "Measured"]
    assert re.search(r"^\*\*Measured\*\* (from )?20\d\d-\d\d-\d\d", page, re.MULTILINE)
    assert len(prose(page)) <= 300
    ran = re.findall(r"^(?:python|sh) (\S+\.\w+)", page, re.MULTILINE)
    assert ran
    assert all((ROOT / script).is_file() for script in ran)
    assert list((HERE / name).glob("test_*.py"))


def test_every_study_is_listed():
    listed = re.findall(
        r"^\| \[(\w+)\]\(\1/README\.md\)", (HERE / "README.md").read_text("utf-8"), re.M
    )
    assert {*STUDIES} <= {*listed} <= {*FOLDERS}


def test_nothing_imports_a_study():
    files = [file for folder in PRODUCT for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 300
    wrong = [str(f) for f in files for name in imported(f) if name.split(".")[0] == "studies"]
    assert wrong == []


@pytest.mark.parametrize("name", FOLDERS)
def test_a_study_imports_no_other(name):
    for file in (HERE / name).rglob("*.py"):
        ours = {one.split(".")[1] for one in imported(file) if one.startswith("studies.")}
        assert ours <= {name, "pages"}, file
