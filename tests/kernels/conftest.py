"""Kernel tests run with fresh memory full of NaN: a kernel that leaves a gap is seen."""

import pytest
import torch


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
