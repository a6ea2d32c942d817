"""recording.py and the pictures that it made: what commands print."""

import re
import runpy
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("recording.py")
TEXT = "{http://www.w3.org/2000/svg}text"


def test_each_line_appears_when_it_came_and_the_last_ones_stay():
    script = runpy.run_path(str(SCRIPT))
    rows, line = script["ROWS"], script["LINE"]
    lines = [(float(second), f"line {second} <of> & more") for second in range(1, rows + 3)]
    lines = [(0.0, "$ command"), *lines]
    svg = script["drawn"](lines)
    root = ElementTree.fromstring(svg)
    texts = [text.text.replace("\N{NO-BREAK SPACE}", " ") for text in root.iter(TEXT)]
    assert texts == [text for _, text in lines]
    appear = [float(at) for at in re.findall(r"@keyframes l\d+\{0%\{opacity:0\}([\d.]+)%", svg)]
    film = 100 * script["FILM"] / (script["FILM"] + script["STILL"])
    wanted = [film * seconds / lines[-1][0] for seconds, _ in lines]
    assert [round(at, 2) for at in wanted] == appear
    assert (
        f"translate(0 {-line * (len(texts) - rows)})" in svg
    )  # what a picture that stands still shows


def test_the_recording_ends_as_the_front_page_says():
    """README.md: the accuracy and the seconds of `quickstart` under the recording; and that its verdict is healthy."""
    text = (ROOT / "docs" / "img" / "quickstart.svg").read_text("utf-8")
    root = ElementTree.fromstring(text)
    lines = [(text.text or "").replace("\N{NO-BREAK SPACE}", " ") for text in root.iter(TEXT)]
    last = [line for line in lines if line.startswith("test accuracy")]
    measured = re.fullmatch(r"test accuracy\s+([\d.]+) %", last[-1])
    seconds = re.search(r"train quickstart, (\d+) seconds", text)
    shown = f"{float(measured[1]):.0f} % of the test images after {seconds[1]} seconds"
    assert f"![What it prints: {shown}]" in (ROOT / "README.md").read_text("utf-8")
    assert any(line.startswith("healthy: ") for line in lines)


def test_the_diagnosis_finds_and_cures_something():
    root = ElementTree.parse(ROOT / "docs" / "img" / "diagnosis.svg").getroot()
    lines = [(text.text or "").replace("\N{NO-BREAK SPACE}", " ") for text in root.iter(TEXT)]
    commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    assert commands == runpy.run_path(str(SCRIPT))["FILMS"]["diagnosis"]
    assert "conclusion: vanishing through time; these changes help:" in lines
    before, after = (float(line.split()[-2]) for line in lines if line.startswith("test accuracy"))
    assert before < 60 < 90 < after
