"""What `diagnose` finds out about a subject: the verdict, its causes and the cures."""

import math
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np

from spiketriton.config import PlainNet
from spiketriton.gradients.aims import OPENED
from spiketriton.gradients.calibration import Calibration, aim_after
from spiketriton.gradients.measurement import Measurement
from spiketriton.gradients.subject import Subject
from spiketriton.gradients.variants import Experiment, Variant
from spiketriton.gradients.verdict import (
    FORGOTTEN,
    Cure,
    Verdict,
    comparable,
    cures,
    judge,
    lost_at,
    may_be_silent,
    times,
)


@dataclass(frozen=True)
class Diagnosis:
    """All that was found; `as_json` is complete.

    opened: whether residual blocks that start closed were opened for `measured` (`Experiment.measure`).
    """

    subject: Subject
    measured: Measurement
    opened: bool
    verdict: Verdict
    variants: list[Variant]
    overlap: np.ndarray  # [layers], see Prober.overlap
    width: float  # the geometric mean over layers
    transmission: float
    auto: Calibration  # what training takes with width = "auto"
    cures: list[Cure]
    images: int
    synthetic: bool
    device: str

    @property
    def better_width(self) -> float | None:
        """The one that `auto` takes; None where no width meets the target."""
        return self.auto.width if self.auto.met else None

    def forgotten(self) -> str:
        """What becomes of the image through depth, in a sentence."""
        first, last = two_digits(self.overlap[0]), two_digits(self.overlap[-1])
        text = f"of an image's identity the first layer keeps {first} and the last {last}"
        lost = lost_at(self.overlap)
        if lost is not None:
            name = self.measured.names[lost]
            text += f"; from {name} on an image with 5 % noise is as different as another image"
        return text

    def opening(self) -> str:
        """What was done to see through blocks that start closed; "" where there are none."""
        if not self.opened:
            return ""
        return (
            f"gradients are measured with the residual blocks opened to a gain of {OPENED:g}, as training "
            "soon opens them: as they start, no gradient enters them"
        )

    def conclusion(self) -> str:
        """What all of it comes to, in one sentence; what to change is in `cures`."""
        verdict, width = self.verdict, self.width
        if verdict.word != "healthy":
            trouble = f"this net has a problem ({verdict.line()})"
            return trouble + (
                "; change this:" if self.cures else ", and no change that was tried cures it"
            )
        if self.cures:
            return "the gradient is in order, but a change promises more:"
        if self.better_width is None:
            return f"nothing to change: {verdict.line()}"
        if abs(math.log(self.better_width / width)) < 0.01:
            return f"nothing to change: the width is the one that auto chooses ({width:.3g})"
        return (
            f"nothing to change: the width of {width:.3g} is within a factor of two of the one that auto "
            f"would choose ({self.better_width:.3g})"
        )

    def causes(self) -> list[str]:
        """For each axis that is not healthy, the changes that bring its ratio nearest to 1."""
        found = []
        for axis in self.verdict.axes:
            if not axis.limits_reached or not axis.ratio:
                continue
            tried = []
            for variant in self.variants:
                by_depth = axis.name == "depth"
                ratio = variant.measured.depth_ratio if by_depth else variant.measured.time_ratio
                if ratio and abs(math.log(ratio)) < 0.9 * abs(math.log(axis.ratio)):
                    tried.append((abs(math.log(ratio)), variant.change or variant.name, ratio))
            best = [f"{name} ({times(ratio)})" for _, name, ratio in sorted(tried)[:3]]
            found.append(
                f"{axis.name}: {times(axis.ratio)}; nearest to 1 with {', '.join(best)}"
                if best
                else f"{axis.name}: {times(axis.ratio)}; no change that was tried lessens it"
            )
        return found

    def as_json(self) -> dict[str, Any]:
        """For `json_text`, which writes null for what is not finite."""
        verdict = self.verdict
        return {
            "subject": self.subject.title,
            "recipe": self.subject.recipe.name,
            "step": self.subject.step,
            "data": self.subject.recipe.data.name,
            "synthetic": self.synthetic,
            "images": self.images,
            "device": self.device,
            "time_steps": self.measured.grad_input.shape[1],
            "optimizer": self.subject.recipe.train.optimizer,
            "verdict": {
                **asdict(verdict),
                "word": verdict.word,
                "line": verdict.line(),
                "findings": verdict.findings(),
                "sentences": verdict.sentences(),
            },
            "opened": self.opened,
            "conclusion": self.conclusion(),
            "width": self.width,
            "transmission": self.transmission,
            "better_width": self.better_width,
            "overlap": self.overlap.tolist(),
            "forgotten": self.forgotten(),
            "depth_profile": self.measured.depth_profile.tolist(),
            "time_profile": self.measured.time_profile.tolist(),
            "causes": self.causes(),
            "switches": [
                {
                    "name": variant.name,
                    "change": variant.change,
                    "depth_gain": variant.measured.depth_gain,
                    "time_ratio": variant.measured.time_ratio,
                    "outside_share": float(variant.measured.outside.mean()),
                    "firing_rate": float(variant.measured.firing.mean()),
                    "overlap": variant.overlap,
                    "depth_profile": variant.measured.depth_profile.tolist(),
                }
                for variant in self.variants
            ],
            "cures": [asdict(cure) for cure in self.cures],
            "rows": self.measured.rows(),
        }


def diagnose(subject: Subject, batches: int = 1) -> Diagnosis:
    """Measures the subject as it is and with one thing changed at a time, on the first batches."""
    experiment = Experiment(subject, batches)
    recipe = subject.recipe
    measured, auto = experiment.measure(experiment.prober()), experiment.auto()
    opens = experiment.opens
    verdict = judge(
        measured,
        recipe.train.optimizer,
        overlap=experiment.overlap,
        among=None if opens else comparable(measured, recipe),
        may_be_silent=may_be_silent(measured.names, recipe),
        aim=aim_after(recipe, experiment.calibration),
    )
    variants = experiment.variants()
    found = cures(verdict, recipe) + _remembering(experiment, variants) + _holding(experiment)
    factor = auto.width / experiment.width
    if auto.met and not 0.5 < factor < 2:
        variants.insert(2, experiment.scaled("surrogate as wide as auto makes it", factor))
        if not isinstance(recipe.neuron.surrogate.width, str):
            found = [cure for cure in found if not cure.change.startswith("neuron.surrogate.width")]
            why = f"about {auto.width:.2g}: {auto.why}"
            found.insert(0, Cure("neuron.surrogate.width=auto", why))
    return Diagnosis(
        subject=subject,
        measured=measured,
        opened=opens,
        verdict=verdict,
        variants=variants,
        overlap=experiment.overlap,
        width=experiment.width,
        transmission=experiment.transmission(),
        auto=auto,
        cures=found,
        images=experiment.images,
        synthetic=experiment.data.synthetic,
        device=experiment.placement.device.type,
    )


def _holding(experiment: Experiment) -> list[Cure]:
    """What keeps a trained net's width from becoming too wide, where the run does without it."""
    held = None if experiment.recipe.neuron.surrogate.hold else experiment.held()
    if held is None:
        return []
    _, gain, width = held.held[-1]
    why = (
        f"the gradient has begun to grow from block to block ({held.goal} {gain:.3g}), where a width of "
        f"{width:.3g} suits; it narrows the surrogate as the training goes on"
    )
    return [Cure("neuron.surrogate.hold=true", why)]


def two_digits(overlap: float) -> str:
    """Two digits; noise may take an overlap of nothing a little below 0."""
    return "-" if math.isnan(overlap) else f"{max(overlap, 0.0):.2f}"


def _remembering(experiment: Experiment, variants: list[Variant]) -> list[Cure]:
    """What lets the last layer see the image, where before training it does not."""
    lost, model = lost_at(experiment.overlap), experiment.recipe.model
    if lost is None or experiment.subject.state is not None:
        return []
    if model.name in get_args(PlainNet):
        if lost < 2:
            return []
        why = "later layers see nothing of the image; those of a resnet with model.block=sew do"
        return [Cure(f"model.depth={lost}", why)]
    blocks = [variant for variant in variants if variant.change.startswith("model.block=")]
    best = max(blocks, key=lambda variant: variant.overlap, default=None)
    if best is None or not best.overlap >= FORGOTTEN:
        return []
    why = f"the last layer then sees the image (overlap {best.overlap:.2f})"
    return [Cure(best.change, why)]
