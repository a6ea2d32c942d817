"""What tests of diagnoses share."""

import pytest

from spiketriton.diagnose.ablations import Experiment


@pytest.fixture
def verdicts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A diagnosis changes nothing, one thing at a time, which takes most of its seconds."""
    monkeypatch.setattr(Experiment, "ablations", lambda self: [])
