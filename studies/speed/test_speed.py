"""docs/performance.md and the page of all results are what the result files give."""

import csv
import json
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


def test_the_section_on_spikes_is_what_its_rows_give():
    section = PAGE.read_text().partition("## Does the cost follow the spikes?")[2]
    section = section.partition("\n## ")[0]
    ms: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for row in csv.DictReader((RESULTS.parent / "shares.csv").open()):
        assert re.fullmatch("[0-9a-f]{8}", row["commit"])
        of_case = ms.setdefault((row["precision"], row["instructions"]), {})
        share = round(100 * float(row["share"]))
        of_case.setdefault(row["contender"], {})[share] = float(row["ms"])
    for precision in ("bf16", "fp32"):  # with AMX
        ours, twin = (ms[precision, "all"][name] for name in ("spiketriton", "ANN twin, T steps"))
        assert max(ours.values()) < 1.05 * min(ours.values())
        assert all(ours[share] < twin[share] for share in ours)
    said = re.search(r"(\d+) ms at (\d+) %, (\d+) at (\d+) %, (\d+) at (\d+) %", section)
    numbers = list(map(int, said.groups()))
    found = ms["fp32", "AVX2"]["spiketriton"]
    assert all(
        round(found[share]) == number
        for number, share in zip(numbers[::2], numbers[1::2], strict=True)
    )
    assert sorted(found) == [1, 2, 14, 57]
    ends = re.search(r"as long at (\d+) % of spikes as at (\d+) %", section).groups()
    assert list(map(int, ends)) == [min(found), max(found)]


def test_the_log_has_the_rows_beside_an_older_commit():
    log = (RESULTS.parent / "log.md").read_text().partition("## Beside commit 3317ca80")[2]
    line = r"(?m)^\| `(\w+)`, (\w+), T = (\d+), (\S+) \| ([\d.]+) \| ([\d.]+) \|$"
    rows, found = list(csv.DictReader((RESULTS.parent / "before.csv").open())), []
    for before, now in zip(rows[::2], rows[1::2], strict=True):
        by = "AMX" if before["instructions"] == "all" else before["instructions"]
        about = before["recipe"], before["precision"], before["T"], by
        found.append((*about, before["ms"], now["ms"]))
        assert before["commit"] == "3317ca80" != now["commit"]
    assert re.findall(line, log) == found


CONTENDERS = {
    '`model.memory = "recomputed"`: spikes as bits, currents computed again': "spiketriton recomputed",
    '`"packed"`: spikes as bits': "spiketriton packed",
    '`"standard"`, the default': "spiketriton",
    "the definition, a plain loop": "eager",
    "SpikingJelly 2.0, multi-step": "spikingjelly default",
    "snnTorch 1.0": "snntorch",
}


def test_peaks_of_long_windows_are_those_of_the_rows():
    page = (PAGE.parent / "sequences.md").read_text("utf-8").partition("## Long windows")[2]
    head, _, *lines = re.findall(r"(?m)^\| (.*) \|$", page.partition("\n## ")[0])
    windows = [int(number.replace(",", "")) for number in re.findall(r"T = ([\d,]+)", head)]
    assert windows == [100, 784, 2000]
    rows = [json.loads(line) for file in RESULTS.glob("*.jsonl") for line in file.open()]
    peaks = {
        (row["contender"], row["T"]): row["peak_bytes"] / 2**20
        for row in rows
        if (row["section"], row.get("recipe")) == ("memory", "spoken_digits")
    }
    assert len(lines) == len(CONTENDERS)
    for line in lines:
        name, *cells = line.split(" | ")
        for T, cell in zip(windows, cells, strict=True):
            peak = peaks[CONTENDERS[name], T]
            assert cell == (f"{peak:.1f}" if peak < 10 else f"{peak:,.0f}"), (name, T)
