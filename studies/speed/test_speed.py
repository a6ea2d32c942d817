"""docs/performance.md and the page of all results are what the result files give."""

import re
from pathlib import Path

from profiling.render import report

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def test_the_page_is_what_the_results_in_the_repository_give(tmp_path):
    text = PAGE.read_text()
    page, folder = tmp_path / "docs/performance.md", tmp_path / "studies/speed/results"
    page.parent.mkdir()
    folder.mkdir(parents=True)
    page.write_text(text.replace("**Kernels", "**Old kernels"))
    for file in RESULTS.glob("*.jsonl"):
        (folder / file.name).write_bytes(file.read_bytes())
    written = {path.name for path in report.write(folder, page)}
    assert page.read_text() == text
    assert (folder / "README.md").read_text() == (RESULTS / "README.md").read_text()
    # the answer in the first paragraph
    said = re.search(r"\*\*(.*?)\*\*", text, re.DOTALL)[1].split()
    measured = re.findall(r"All (\d+) cases: (\S+)x in the median; slower .* in (\d+)\.", text)
    assert any(set(numbers) <= {word.rstrip(",.") for word in said} for numbers in measured)
    shipped = {path.name for path in RESULTS.glob("*.png")}
    assert written - {"performance.md", "README.md"} == shipped
