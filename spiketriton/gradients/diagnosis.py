"""What `diagnose` finds out about a subject: the verdict, its causes and the cures; `show` has the words."""

import math
from dataclasses import dataclass

import numpy as np

from spiketriton.gradients.ablations import Ablation, Experiment, Prediction
from spiketriton.gradients.diagnosed import Subject
from spiketriton.gradients.measurement import Measurement
from spiketriton.gradients.verdict import Cure, Verdict, Word, cures, judge


@dataclass(frozen=True)
class Diagnosis:
    """All that was found.

    measured, opened: what is shown, and whether residual blocks that start closed were opened for it
        (`Experiment.measure`). The verdict is on the net as it starts.
    width: the surrogates' geometric mean over layers; None: I-LIF has none.
    predicted: what the mean field says; None where it does not apply.
    """

    subject: Subject
    measured: Measurement
    opened: bool
    verdict: Verdict
    ablations: list[Ablation]
    overlap: np.ndarray  # [layers], see Prober.overlap
    width: float | None
    predicted: Prediction | None
    cures: list[Cure]
    images: int
    synthetic: bool
    device: str

    def causes(self) -> list[tuple[Ablation, float]]:
        """Up to three ablations that bring the gradient's ratio through depth nearest to 1, with that ratio."""
        tried, own = [], self.measured.depth_ratio
        if self.verdict.backward.word == Word.FREE or not own:
            return []
        for ablation in self.ablations:
            ratio = ablation.measured.depth_ratio
            if ratio and abs(math.log(ratio)) < 0.9 * abs(math.log(own)):
                tried.append((ablation, ratio))
        return sorted(tried, key=lambda pair: abs(math.log(pair[1])))[:3]


def diagnose(subject: Subject, batches: int = 1) -> Diagnosis:
    """Measures the subject as it is and with one thing changed at a time, on the first batches."""
    experiment = Experiment(subject, batches)
    measured, opened = experiment.measure(experiment.prober()), experiment.opens()
    as_it_is = experiment.prober().measure() if opened else measured
    verdict = judge(as_it_is, subject.recipe, experiment.overlap, subject.learned)
    return Diagnosis(
        subject=subject,
        measured=measured,
        opened=opened,
        verdict=verdict,
        ablations=experiment.ablations(),
        overlap=experiment.overlap,
        width=experiment.width if experiment.has_surrogate else None,
        predicted=experiment.predicted(),
        cures=cures(subject.recipe, verdict, fresh=subject.state is None),
        images=experiment.images,
        synthetic=experiment.data.synthetic,
        device=experiment.placement.device.type,
    )
