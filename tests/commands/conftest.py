"""Runs of a few steps, which the commands read."""

from pathlib import Path

import pytest

from tests.small_runs import small_trainer


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """A spiking run, `lif`, and its ANN twin, `ann`."""
    root = tmp_path_factory.mktemp("runs")
    for name, kind in (("lif", "lif"), ("ann", "relu")):
        small_trainer(root / name, f"neuron.kind={kind}", "train.epochs=1").fit()
    return root
