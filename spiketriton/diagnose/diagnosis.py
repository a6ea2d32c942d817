"""What `diagnose` finds out about a subject: the verdict, its causes and the cures; `show` has the words."""

import math
from dataclasses import dataclass

from spiketriton.diagnose.ablations import Ablation, Experiment
from spiketriton.diagnose.cures import cures
from spiketriton.diagnose.diagnosed import Subject
from spiketriton.diagnose.trials import Trials, try_changes
from spiketriton.gradients.measurement import Measurement, Signal
from spiketriton.gradients.verdict import Verdict, Word, judge


@dataclass(frozen=True)
class Diagnosis:
    """All that was found.

    as_it_is: what the verdict is on.
    measured, opened: what is shown, and whether residual blocks that start closed were opened for it
        (`Experiment.measure`).
    width: the surrogates' geometric mean over layers; None: I-LIF has none.
    trials: of changes; None where there was nothing to try, or it was not asked for.
    """

    subject: Subject
    as_it_is: Measurement
    measured: Measurement
    opened: bool
    verdict: Verdict
    ablations: list[Ablation]
    signal: Signal
    width: float | None
    trials: Trials | None
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


def diagnose(subject: Subject, batches: int = 1, tries: int = 0) -> Diagnosis:
    """Measures the subject as it is and with one thing changed at a time, on the first batches.

    tries: steps for which changes are tried on fresh nets, where the verdict asks for one; 0: none is.
    """
    experiment = Experiment(subject, batches)
    measured, opened = experiment.measure(experiment.prober(), time=True), experiment.opens()
    as_it_is = experiment.prober().measure(time=True) if opened else measured
    signal = experiment.signal
    verdict = judge(as_it_is, subject.recipe, signal, subject.learned, begun=subject.begun)
    tried, found = None, cures(subject.recipe, verdict)
    if found and tries:
        recipe, place = subject.recipe, experiment.placement
        tried = try_changes(recipe, experiment.data, found, tries, place)
    return Diagnosis(
        subject=subject,
        as_it_is=as_it_is,
        measured=measured,
        opened=opened,
        verdict=verdict,
        ablations=experiment.ablations(),
        signal=signal,
        width=experiment.width if experiment.has_surrogate else None,
        trials=tried,
        images=experiment.images,
        synthetic=experiment.data.synthetic,
        device=experiment.placement.device.type,
    )
