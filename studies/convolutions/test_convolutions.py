"""The sizes at which networks leave oneDNN are those at which the rows say that this is faster."""

import csv
import re
from pathlib import Path

import pytest
import torch

from spiketriton.models.convolutions import SIZES, FasterConv2d

HERE = Path(__file__).parent
ROW = re.compile(
    r"^\| (\d+) \| (\d)x\d, (\d+) to (\d+), (\d+)x\d+ pixels(, stride 2)? \| (.*) \|$", re.MULTILINE
)
SERVED = {"fp32": (torch.float32, "avx2", 34), "bf16": (torch.bfloat16, "avx512_bf16", 39)}


@pytest.mark.parametrize("name", SERVED)
def test_what_is_served_is_faster_in_the_rows(name):
    dtype, instructions, passes = SERVED[name]
    rows = ROW.findall((HERE / f"rows-{name}.md").read_text("utf-8"))
    assert len(rows) == 20
    served = 0
    for images, kernel, read, written, side, strided, cells in rows:
        sizes = int(read), int(written), int(kernel), 1 + bool(strided)
        conv = FasterConv2d(*sizes, padding=int(kernel) // 2)
        x = torch.empty(int(images), int(read), int(side), int(side), device="meta")
        ways = conv._by_products(x, SIZES[dtype][instructions])
        times = [float(cell) for cell in cells.split(" | ")]
        for way, by_library, by_products in zip(ways, times[::2], times[1::2], strict=True):
            served += way is not None
            assert way is None or by_products <= by_library, (images, sizes, side, cells)
    assert served == passes


def test_the_log_has_the_shares_within_reach():
    log = (HERE / "log.md").read_text("utf-8").partition("| end of epoch |")[2]
    numbers = r"([\d.]+) \| ([\d.]+) \| ([\d.]+)"
    said = re.findall(rf"(?m)^\| (\d) \| {numbers} \| {numbers} \|$", log)
    shares: dict[tuple[str, str], dict[int, list[float]]] = {}
    for row in csv.DictReader((HERE / "reach.csv").open()):
        steps = shares.setdefault((row["surrogate"], row["epoch"]), {})
        steps.setdefault(int(row["step"]), []).append(float(row["share"]))
    assert [epoch for epoch, *_ in said] == ["1", "2"]
    for epoch, *cells in said:
        for surrogate, told in (("triangle", cells[:3]), ("rectangle", cells[3:])):
            steps = shares[surrogate, epoch]
            last = steps[max(steps)]
            assert len(last) == 19
            assert list(map(float, told)) == [min(last), round(sum(last) / 19, 3), max(last)]
