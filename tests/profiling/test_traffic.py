"""Passes over memory of a residual block, counted: what joining the MS blocks' sum with the next neuron saves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from profiling.harness.traffic import Traffic

ROOT = Path(__file__).parents[2]
COUNT = """
import json
from unittest import mock
from profiling.harness.traffic import of_bottleneck
found = {block: of_bottleneck(block) for block in ("plain", "sew", "ms")}
with mock.patch("spiketriton.models.resnet.gives_current", return_value=False):
    found["ms, one by one"] = of_bottleneck("ms")
print(json.dumps(found))
"""


def test_an_ms_bottleneck_moves_26_tensors_instead_of_32():
    """In tensors of 4 width channels; in a child process, because the interpreter launches nothing."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, "-c", COUNT], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "plain": [8.5, 18.5],
        "sew": [8.5, 16.5],
        "ms": [9.5, 16.5],
        "ms, one by one": [12.5, 19.5],
    }
    page = " ".join((ROOT / "docs/performance.md").read_text(encoding="utf-8").split())
    for words in ("26 with one kernel, 32 one by one", "27 `plain`", "25 `sew`"):
        assert words in page


def test_an_operation_that_nobody_counted_is_an_error():
    x = torch.zeros(8, 8)
    with Traffic(64) as traffic:
        x.view(64)  # moves nothing
        x + x
        torch.zeros(3).exp()  # smaller than a whole tensor
    assert traffic.moved == 3 * 64
    with Traffic(64), pytest.raises(AssertionError, match=r"exp\.default: how often it reads"):
        x.exp()
