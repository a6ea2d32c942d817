"""Which keys of a recipe, {dotted key: value}, contradict each other. Where a key has no effect stands at the key."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from spiketriton.config.names import CLOSABLE, PARALLEL, RESETS_OF, SKIPLESS, SPLITS_OF
from spiketriton.config.parts import names
from spiketriton.config.words import shown

_Clash = tuple[str, tuple[Any, ...], str, tuple[Any, ...], str]


def _clashes(values: Mapping[str, Any]) -> list[_Clash]:
    """A key, its values that go with those of another key, the other key, these values, and why no others do."""
    spikes = "a neuron gives up to neuron.levels spikes a step"
    mixed = "labels are of several classes, which a plugin does not take"
    plugins, frames = tuple(names("neurons")), "its weights are for one number of frames"
    divided = () if values["train.micro_batch"] == 0 else (values["train.micro_batch"],)
    return [
        ("model.block", CLOSABLE, "model.name", ("net7b", "resnet19"), ""),
        ("model.memory", ("standard",), "neuron.kind", ("ilif",), spikes),
        ("model.memory", ("standard", "packed"), "train.compile", (True,), "torch chooses what a graph keeps"),
        ("model.checkpoint_blocks", (False,), "train.compile", (True,), "statistics of batch norm would change twice"),
        ("model.recurrent", (False,), "neuron.kind", PARALLEL, "it has no step whose spikes could come back"),
        ("neuron.v_reset", (0,), "neuron.kind", tuple(RESETS_OF), ""),
        *(("neuron.reset", resets, "neuron.kind", (kind,), "") for kind, resets in RESETS_OF.items()),
        ("neuron.threshold_learnt", (True, False), "neuron.kind", plugins, "it is not told its channels"),
        ("data.augmentation.delete", (0,), "neuron.kind", ("psn", "masked_psn"), frames),
        *(("data.split", splits, "data.name", (name,), "") for name, splits in SPLITS_OF.items()),
        ("train.mixup", (0,), "loss.kind", tuple(names("losses")), mixed),
        ("train.cutmix", (0,), "loss.kind", tuple(names("losses")), mixed),
        ("train.accumulate", (1,), "train.micro_batch", divided, "both divide a step"),
    ]  # fmt: skip


def contradictions(values: Mapping[str, Any], peak_lr: float) -> Iterator[str]:
    """One line for each contradiction between keys that have an effect."""
    for key, accepted, other, decides, why in _clashes(values):
        if values[other] in decides and values[key] not in accepted:
            because = f": {why}" if why else ""
            yield (
                f"{key} = {shown(values[key])} with {other} = {shown(values[other])}{because}; "
                f"accepted with it: {', '.join(map(shown, accepted))}"
            )
    yield from _of_training(values, peak_lr)
    yield from _of_data(values)
    if values["model.memory"] == "recomputed" and values["model.name"] not in SKIPLESS:
        yield (
            f'model.memory = "recomputed" with model.name = {shown(values["model.name"])}: accepted with it: '
            '"standard", "packed"; "recomputed" with networks without skip connections'
        )
    if values["neuron.kind"] == "plif" and values["neuron.tau"] == 1:
        yield "neuron.tau = 1.0: plif learns 1 - 1/tau from above 0; accepted: a number above 1"
    if (v_reset := values["neuron.v_reset"]) >= (threshold := values["neuron.v_threshold"]):
        yield (
            f"neuron.v_reset = {v_reset} would fire again at once; "
            f"accepted: a number below neuron.v_threshold = {threshold}"
        )


def _of_training(values: Mapping[str, Any], peak_lr: float) -> Iterator[str]:
    for key in ("train.min_lr", "train.warmup_lr"):
        if values[key] > peak_lr:
            yield f"{key} = {values[key]} is above the peak, train.lr = {peak_lr}; accepted: up to it"
    stones, batch = values["train.milestones"], values["train.batch_size"]
    if list(stones) != sorted(set(stones)):
        yield f"train.milestones = {shown(stones)}: accepted: fractions that rise, each once"
    for key in ("train.accumulate", "train.micro_batch"):
        divisor = values[key]
        if divisor not in (0, "auto") and batch % divisor:
            yield (
                f"{key} = {divisor} does not divide train.batch_size = {batch}; "
                "accepted: a divisor of it"
            )


def _of_data(values: Mapping[str, Any]) -> Iterator[str]:
    name, split = values["data.name"], values["data.split"]
    scale, deleted = values["data.augmentation.crop_scale"], values["data.augmentation.delete"]
    if len(scale) != 2 or scale[0] > scale[1]:
        yield (
            f"data.augmentation.crop_scale = {shown(scale)}: accepted: two fractions of the area, the "
            "larger one last"
        )
    spoken = split == "official" or re.fullmatch(r"speaker:\w+", split)
    if name == "spoken_digits" and not spoken:
        yield (
            f'data.split = {shown(split)} with data.name = "spoken_digits"; accepted with it: "official", or '
            '"speaker:NAME"'
        )
    folders = name == "imagefolder" or (name, split) == ("eventfolder", "official")
    if isinstance(validation := values["data.validation"], str) and not folders:
        of_split = f" with data.split = {shown(split)}" if name == "eventfolder" else ""
        yield (
            f"data.validation = {shown(validation)}: {name} has no folders of splits{of_split}; "
            "accepted with it: a number from 0, below 1"
        )
    sensor = values["data.sensor"]
    if sensor != "auto" and not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", sensor):
        yield f'data.sensor = {shown(sensor)}: accepted: "auto", or pixels as "346x260"'
    if deleted >= (steps := values["time_steps"]):
        yield (
            f"data.augmentation.delete = {deleted} leaves no frame of time_steps = {steps}; "
            f"accepted: from 0 to {steps - 1}"
        )
