"""Which keys of a recipe, {dotted key: value}, have no effect together, and which contradict each other."""

import re
from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, get_args

from spiketriton.config.parts import PARTS, names
from spiketriton.config.words import shown

if TYPE_CHECKING:
    from spiketriton.config.recipe import DataConfig, Recipe, TrainConfig

ResNet = Literal["resnet18", "resnet34", "resnet50", "resnet101"]  # either stem
# CIFAR style
SmallResNet = Literal[
    "resnet8", "resnet19", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"
]
PlainNet = Literal["plain", "mlp"]  # of any depth, without skip connections
VGG = Literal["vggsnn", "vgg11", "vgg16", "csnn"]  # without skip connections, too
PooledNet = Literal[VGG, "net7b"]
SKIPLESS = (*get_args(PlainNet), *get_args(VGG))
BLOCK_NETS = (*get_args(ResNet), *get_args(SmallResNet), "net7b")  # made of residual blocks
# "auto": what did well in docs/gradient_flow.md; for AdamW on nets from elsewhere torch's 1e-3.
# Rates of nets of residual blocks, of those without skip connections, of others
RATES = {"sgd": (0.3, 0.1, 0.1), "adamw": (1e-2, 2e-3, 1e-3)}
CLIPPING = {"sgd": 1.0, "adamw": 0.0}

Loss = Literal["cross_entropy", "tet"]

Images = Literal[
    "imagenette",
    "cifar10",
    "cifar100",
    "fashion_mnist",
    "cluttered_fashion_mnist",
    "imagefolder",
    "digits",
    "synthetic",
]
Events = Literal[
    "dvs_gesture", "cifar10_dvs", "n_mnist", "n_caltech101", "eventfolder", "digits_dvs"
]

PHOTOGRAPHS = ("imagenette", "imagefolder")  # of any size, so that crops of them are resized

SPLITS_OF = {
    "dvs_gesture": ("official",),
    "cifar10_dvs": ("first100", "random90"),
    "n_mnist": ("official",),
    "n_caltech101": ("random90",),
    "eventfolder": ("official", "first100", "random90"),
    "digits_dvs": ("official",),
}


NONE = "-"
"""No teacher, and no weights to begin with."""

Leaky = Literal["lif", "plif", "ilif", "clif", "alif", "cuba"]
Parallel = Literal["psn", "masked_psn", "sliding_psn"]
LEAKY, PARALLEL = get_args(Leaky), get_args(Parallel)
RESETS_OF = {
    "ilif": ("auto", "soft"),
    "clif": ("auto", "soft"),
    "alif": ("auto", "hard", "soft"),
    "cuba": ("auto", "hard", "soft", "none"),
    **dict.fromkeys(PARALLEL, ("auto", "none")),
}

_FRAMES = ("flip", "roll", "delete")
_START = ["model.residual_gain", "model.residual_bias"]
# of networks that are built here by a recipe, from its norms and neurons, as all keys of [neuron]
_LAYERS = ("block", "norm", "norm_gain", "width", "checkpoint_blocks", "dropout")


def _readers(values: Mapping[str, Any]) -> Iterator[tuple[list[str], str, tuple[Any, ...]]]:
    """Keys, the key that decides whether they are read, and its values with which they are."""
    plugins = names("data")

    def unless(dotted: str, *words: Any) -> tuple[Any, ...]:
        return () if values[dotted] in words else (values[dotted],)

    elsewhere = (values["model.name"],) if ":" in (values["model.name"] or "") else ()
    built_here = [dotted for dotted in values if dotted.startswith("neuron.")]
    built_here += ["train.sync_bn", *(f"model.{name}" for name in _LAYERS)]
    mixes = unless("train.mixup", 0) or (unless("train.cutmix", 0) and (values["train.mixup"],))
    yield from [
        (["model.arguments", "model.input"], "model.name", elsewhere),
        (built_here, "model.name", unless("model.name", *elsewhere)),
        (["data.variant"], "data.name", ("imagenette",)),
        (["data.classes"], "data.name", ("synthetic",)),
        (["data.split", "data.bins", "data.count"], "data.name", get_args(Events)),
        ([f"data.augmentation.{name}" for name in _FRAMES], "data.name", get_args(Events)),
        (["data.augmentation.erasing"], "data.name", (*get_args(Images), *plugins)),
        (["data.augmentation.policy"], "data.name", (*get_args(Images), *plugins)),
        (["data.augmentation.operations"], "data.augmentation.policy", ("randaugment",)),
        (["data.augmentation.magnitude"], "data.augmentation.policy", ("randaugment",)),
        (["data.augmentation.crop_scale"], "data.name", (*PHOTOGRAPHS, *plugins)),
        (["data.augmentation.crop_scale"], "data.augment", ("standard", "strong")),
        (["data.broken"], "data.name", (*PHOTOGRAPHS, *plugins)),
        (["data.cache"], "data.name", (*get_args(Events), "cifar10")),
        (["data.split_seed"], "data.split", ("random90",)),
        (["data.split_seed"], "data.name", get_args(Events)),
        (["data.format"], "data.name", ("eventfolder", "digits_dvs")),
        (["data.sensor"], "data.name", ("eventfolder",)),
        (["model.stem"], "model.name", get_args(ResNet)),
        (["model.block"], "model.name", unless("model.name", *SKIPLESS)),
        (["model.depth", "model.start"], "model.name", get_args(PlainNet)),
        ([*_START, "model.checkpoint_blocks"], "model.name", BLOCK_NETS),
        (["model.shortcut_gradient"], "model.name", BLOCK_NETS),
        ([*_START, "model.norm_gain"], "model.norm", unless("model.norm", "none")),
        (["model.residual_gain"], "model.block", ("plain", "sew", "ms")),
        (["model.residual_bias", "model.shortcut_gradient"], "model.block", ("plain",)),
        (["neuron.tau"], "neuron.kind", (*LEAKY, "relu")),
        (["neuron.decay_input"], "neuron.kind", ("lif", "plif", "cuba", "relu")),
        (["neuron.order"], "neuron.kind", ("masked_psn", "sliding_psn")),
        (["neuron.levels"], "neuron.kind", ("ilif",)),
        (["neuron.tau_synapse"], "neuron.kind", ("cuba",)),
        (["neuron.tau_adaptation", "neuron.beta"], "neuron.kind", ("alif",)),
        (["neuron.detach_reset"], "neuron.reset", ("auto", "hard", "soft")),
        # which learn their threshold anyway
        (["neuron.threshold_learnt"], "neuron.kind", unless("neuron.kind", *PARALLEL)),
        (["neuron.detach_reset"], "neuron.kind", unless("neuron.kind", *PARALLEL)),
        (["loss.tet_lambda"], "loss.kind", ("tet",)),
        (["loss.teacher_weight", "loss.temperature"], "loss.teacher", unless("loss.teacher", "-")),
        (["train.momentum"], "train.optimizer", ("sgd",)),
        (["train.eps"], "train.optimizer", ("adamw",)),
        (["train.milestones", "train.gamma"], "train.schedule", ("step",)),
        (["train.min_lr"], "train.schedule", ("one_cycle", "cosine")),
        (["train.warmup_lr"], "train.warmup", unless("train.warmup", 0)),
        (["train.mix_epochs"], "train.mixup", mixes),
        (["monitor.every", "monitor.tensorboard", "monitor.wandb"], "monitor.enabled", (True,)),
    ]
    if values["neuron.v_reset"] != 0:  # 0 may stand next to any reset
        yield ["neuron.v_reset"], "neuron.reset", ("auto", "hard")
    for part in filter(attrgetter("options"), PARTS.values()):
        keys = [dotted for dotted in values if dotted.startswith(f"{part.table}.")]
        yield keys, part.selector, (part.name,)


def idle(values: Mapping[str, Any]) -> dict[str, str]:
    """The keys that have no effect in this recipe, each with the reason: a key that is never read misleads.

    Those that only the ANN twin ignores are allowed, so that a recipe and its twin differ in one word.
    """
    return {
        dotted: f"{reader} is {shown(values[reader])}{_WHY.get(dotted, '')}"
        for keys, reader, active in _readers(values)
        for dotted in keys
        if values[reader] not in active
    }


_WHY = {
    "train.sync_bn": ", whose batch norms are its own: each device's images are normalised by themselves"
}
"""More of a reason, by the key that has no effect."""


def no_effect(dotted: str, value: Any, reason: str) -> str:
    return f"{dotted} = {shown(value)} has no effect because {reason}; leave {dotted} out"


_Clash = tuple[str, tuple[Any, ...], str, tuple[Any, ...], str]


def _clashes(values: Mapping[str, Any]) -> list[_Clash]:
    """A key, its values that go with those of another key, the other key, these values, and why no others do."""
    spikes = "a neuron gives up to neuron.levels spikes a step"
    mixed = "labels are of several classes, which a plugin does not take"
    plugins, frames = tuple(names("neurons")), "its weights are for one number of frames"
    divided = () if values["train.micro_batch"] == 0 else (values["train.micro_batch"],)
    return [
        ("model.block", ("plain", "sew", "ms"), "model.name", ("net7b", "resnet19"), ""),
        ("model.memory", ("standard",), "neuron.kind", ("ilif",), spikes),
        ("model.checkpoint_blocks", (False,), "train.compile", (True,), "statistics of batch norm would change twice"),
        ("neuron.v_reset", (0,), "neuron.kind", tuple(RESETS_OF), ""),
        *(("neuron.reset", resets, "neuron.kind", (kind,), "") for kind, resets in RESETS_OF.items()),
        ("neuron.threshold_learnt", (True, False), "neuron.kind", plugins, "it is not told its channels"),
        ("data.augmentation.delete", (0,), "neuron.kind", ("psn", "masked_psn"), frames),
        *(("data.split", splits, "data.name", (name,), "") for name, splits in SPLITS_OF.items()),
        ("train.mixup", (0,), "loss.kind", tuple(names("losses")), mixed),
        ("train.cutmix", (0,), "loss.kind", tuple(names("losses")), mixed),
        ("train.accumulate", (1,), "train.micro_batch", divided, "both divide a step"),
    ]  # fmt: skip


def contradictions(recipe: "Recipe", values: Mapping[str, Any]) -> Iterator[str]:
    """One line for each contradiction between keys that have an effect."""
    for key, accepted, other, decides, why in _clashes(values):
        if values[other] in decides and values[key] not in accepted:
            because = f": {why}" if why else ""
            yield (
                f"{key} = {shown(values[key])} with {other} = {shown(values[other])}{because}; "
                f"accepted with it: {', '.join(map(shown, accepted))}"
            )
    yield from _of_training(recipe, recipe.train)
    yield from _of_data(recipe.data, recipe.time_steps)
    neuron = recipe.neuron
    if neuron.kind == "plif" and neuron.tau == 1:
        yield "neuron.tau = 1.0: plif learns 1 - 1/tau from above 0; accepted: a number above 1"
    if neuron.v_reset >= neuron.v_threshold:
        yield (
            f"neuron.v_reset = {neuron.v_reset} would fire again at once; "
            f"accepted: a number below neuron.v_threshold = {neuron.v_threshold}"
        )


def _of_training(recipe: "Recipe", train: "TrainConfig") -> Iterator[str]:
    for name in ("min_lr", "warmup_lr"):
        if (rate := getattr(train, name)) > recipe.peak_lr:
            yield f"train.{name} = {rate} is above the peak, train.lr = {recipe.peak_lr}; accepted: up to it"
    stones = train.milestones
    if list(stones) != sorted(set(stones)):
        yield f"train.milestones = {shown(stones)}: accepted: fractions that rise, each once"
    for name in ("accumulate", "micro_batch"):
        divisor = getattr(train, name)
        if divisor not in (0, "auto") and train.batch_size % divisor:
            yield (
                f"train.{name} = {divisor} does not divide train.batch_size = {train.batch_size}; "
                "accepted: a divisor of it"
            )


def _of_data(data: "DataConfig", steps: int) -> Iterator[str]:
    scale, deleted = data.augmentation.crop_scale, data.augmentation.delete
    if len(scale) != 2 or scale[0] > scale[1]:
        yield (
            f"data.augmentation.crop_scale = {shown(scale)}: accepted: two fractions of the area, the "
            "larger one last"
        )
    folders = data.name == "imagefolder" or (data.name, data.split) == ("eventfolder", "official")
    if isinstance(data.validation, str) and not folders:
        split = f" with data.split = {shown(data.split)}" if data.name == "eventfolder" else ""
        yield (
            f"data.validation = {shown(data.validation)}: {data.name} has no folders of splits{split}; "
            "accepted with it: a number from 0, below 1"
        )
    if data.sensor != "auto" and not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", data.sensor):
        yield f'data.sensor = {shown(data.sensor)}: accepted: "auto", or pixels as "346x260"'
    if deleted >= steps:
        yield (
            f"data.augmentation.delete = {deleted} leaves no frame of time_steps = {steps}; "
            f"accepted: from 0 to {steps - 1}"
        )
