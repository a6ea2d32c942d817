"""Kernel tests run with fresh memory full of NaN: a kernel that leaves a gap is seen.

They need PyTorch, Triton and pytest. Files that need another package too are skipped where it is not installed.
"""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

PEERS = ("norse", "snntorch", "spikingjelly")


class Lacking(pytest.Module):
    """A file that cannot be imported here."""

    def collect(self):
        pytest.skip(
            f"{self.path.name}: one of {', '.join(PEERS)} is not installed", allow_module_level=True
        )


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    asked = re.findall(r"^(?:import|from) (\w+)", module_path.read_text(), re.MULTILINE)
    if all(find_spec(name) for name in asked if name in PEERS):
        return None
    return Lacking.from_parent(parent, path=module_path)


@pytest.fixture(autouse=True)
def nan_in_fresh_memory():
    """``torch.empty`` and its kin come back as NaN (torch does so only in deterministic mode)."""
    was = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.utils.deterministic.fill_uninitialized_memory = filled
    torch.use_deterministic_algorithms(was)
