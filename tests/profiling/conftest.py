"""What the tests of the measuring instrument share: the smallest case, and a session on it."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from profiling.harness.contenders import Options, Status
from profiling.harness.session import Session
from profiling.sections.kernels import KernelCase

QUICK = Options(torch.device("cpu"), quick=True)


@pytest.fixture(scope="session")
def quick() -> Options:
    return QUICK


@pytest.fixture(scope="session")
def lif() -> KernelCase:
    return KernelCase(op="lif", mode="training", T=3, shape=(2, 8, 4, 4))


@pytest.fixture
def measured(tmp_path) -> Callable[..., dict[str, dict]]:
    """Measures a case: its rows by contender, as they are read back from the file."""

    def measure(case, *only: str, section: str = "kernels", peers: tuple[str, ...] = ()):
        session = Session(replace(QUICK, only=only or ("*",), peers=peers), tmp_path)
        session.measure(section, [case])
        rows = [json.loads(line) for line in session.file.read_text().splitlines()]
        assert rows == json.loads(json.dumps(session.rows))
        return {row["contender"]: row for row in rows}

    return measure


@pytest.fixture
def lif_rows(lif) -> Callable[..., list[dict]]:
    """Made-up rows of a case of the neuron, one for each contender."""

    def rows(run: str = "2026-01-02T00:00:00", ours: float = 2.0, **more) -> list[dict]:
        machine = dict(device="A CPU", device_type="cpu", threads=2, torch="2", triton="3")
        about = dict(run=run, quick=False, status=Status.OK, command="c", allocator="a")
        case = json.loads(json.dumps(lif.spec | {"T": 10, "N": 256, "section": "kernels"}))
        times = {"copy": 1.0, "spiketriton": ours, "torch.compile": 3.0, "snntorch": 30.0}
        return [
            case
            | machine
            | about
            | dict(contender=name, median_ms=ms, p20_ms=ms, p80_ms=ms, gb_per_s=1.0, of_copy=0.5)
            | more
            for name, ms in times.items()
        ]

    return rows
