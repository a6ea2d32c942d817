"""Which keys of a recipe, {dotted key: value}, have no effect together, and which contradict each other."""

import re
from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, get_args

from spiketriton.config.parts import PARTS, names
from spiketriton.config.words import shown

if TYPE_CHECKING:
    from spiketriton.config.recipe import Recipe

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

_FRAMES = ("flip", "roll", "rotate", "shear", "drop", "delete")
_START = ["model.residual_gain", "model.residual_bias"]
# of networks that are built here by a recipe, from its norms and neurons, as all keys of [neuron]
_LAYERS = ("block", "norm", "norm_gain", "width", "checkpoint_blocks", "dropout", "drop_path")


def _readers(values: Mapping[str, Any]) -> Iterator[tuple[list[str], str, tuple[Any, ...]]]:
    """Keys, the key that decides whether they are read, and its values with which they are."""
    plugins = names("data")
    unchecked = () if values["data.name"] in get_args(Events) else ("off",)

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
        (["data.check", "data.broken"], "data.name", (*PHOTOGRAPHS, *plugins)),
        (["data.broken"], "data.check", ("fast", "full")),
        (["data.cache"], "data.check", unless("data.check", *unchecked)),
        (["data.cache"], "data.name", (*get_args(Events), *PHOTOGRAPHS, *plugins)),
        (["data.split_seed"], "data.split", ("random90",)),
        (["data.split_seed"], "data.name", get_args(Events)),
        (["data.format"], "data.name", ("eventfolder", "digits_dvs")),
        (["data.sensor"], "data.name", ("eventfolder",)),
        (["model.stem"], "model.name", get_args(ResNet)),
        (["model.depth", "model.start"], "model.name", get_args(PlainNet)),
        ([*_START, "model.drop_path", "model.checkpoint_blocks"], "model.name", BLOCK_NETS),
        (["model.shortcut_gradient"], "model.name", BLOCK_NETS),
        ([*_START, "model.norm_gain"], "model.norm", unless("model.norm", "none")),
        (["model.residual_gain", "model.drop_path"], "model.block", ("plain", "sew", "ms")),
        (["model.residual_bias", "model.shortcut_gradient"], "model.block", ("plain",)),
        (["model.connect"], "model.block", ("sew",)),
        (["model.drop_path"], "model.connect", ("add",)),
        (["neuron.tau"], "neuron.kind", (*LEAKY, "relu")),
        (["neuron.decay_input"], "neuron.kind", ("lif", "plif", "cuba", "relu")),
        (["neuron.order"], "neuron.kind", ("masked_psn", "sliding_psn")),
        (["neuron.tau_learnt"], "neuron.kind", ("plif", "relu")),
        (["neuron.levels"], "neuron.kind", ("ilif",)),
        (["neuron.tau_synapse"], "neuron.kind", ("cuba",)),
        (["neuron.tau_adaptation", "neuron.beta"], "neuron.kind", ("alif",)),
        (["neuron.detach_reset"], "neuron.reset", ("auto", "hard", "soft")),
        # which learn their threshold anyway
        (["neuron.threshold_learnt"], "neuron.kind", unless("neuron.kind", *PARALLEL)),
        (["neuron.detach_reset"], "neuron.kind", unless("neuron.kind", *PARALLEL)),
        (["loss.tet_lambda"], "loss.kind", ("tet",)),
        (["loss.teacher_weight", "loss.temperature"], "loss.teacher", unless("loss.teacher", "-")),
        (["loss.feature_weight"], "loss.teacher", unless("loss.teacher", "-")),
        (["train.momentum", "train.nesterov"], "train.optimizer", ("sgd",)),
        (["train.eps"], "train.optimizer", ("adamw",)),
        (["train.milestones", "train.gamma"], "train.schedule", ("step",)),
        (["train.min_lr"], "train.schedule", ("one_cycle", "cosine")),
        (["train.warmup_lr"], "train.warmup", unless("train.warmup", 0)),
        (["train.mix_probability", "train.mix_epochs"], "train.mixup", mixes),
        (["train.max_skips"], "train.nonfinite", ("skip",)),
        (["monitor.wandb_project"], "monitor.wandb", ("offline", "online")),
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
        dotted: f"{reader} is {shown(values[reader])}"
        for keys, reader, active in _readers(values)
        for dotted in keys
        if values[reader] not in active
    }


# what earlier versions had: words that stand for the default now, and what else to write
STANDS_FOR_DEFAULT = [("model.start", "auto"), ("neuron.surrogate.width", "auto")]
GONE_WORDS = [("neuron.surrogate.width", "auto_per_layer")]
GONE_KEYS = {"neuron.surrogate.hold": "a width stays as it is now; leave it out"}


def no_effect(dotted: str, value: Any, reason: str) -> str:
    return f"{dotted} = {shown(value)} has no effect because {reason}; leave {dotted} out"


def contradictions(recipe: "Recipe") -> Iterator[str]:
    """One line for each contradiction between keys that have an effect."""
    for of in (_of_training, _of_data, _of_model, _of_neuron):
        yield from of(recipe)


def _of_training(recipe: "Recipe") -> Iterator[str]:
    train, loss, model = recipe.train, recipe.loss, recipe.model
    if train.patience and recipe.data.validation == 0:
        yield (
            f"train.patience = {train.patience} needs images held out of training, but "
            "data.validation is 0.0"
        )
    for name in ("mixup", "cutmix"):
        if getattr(train, name) and loss.kind not in get_args(Loss):
            accepted = ", ".join(map(shown, get_args(Loss)))
            yield (
                f"train.{name} = {getattr(train, name)} makes labels of several classes, which loss.kind = "
                f"{shown(loss.kind)} of a plugin does not take; accepted with it: {accepted}"
            )
    for name in ("min_lr", "warmup_lr"):
        if (rate := getattr(train, name)) > recipe.peak_lr:
            yield f"train.{name} = {rate} is above the peak, train.lr = {recipe.peak_lr}; accepted: up to it"
    if loss.teacher == "twin":
        why = ""
        if ":" in model.name:
            why = f"neuron.kind has no effect in model.name = {shown(model.name)}"
        elif recipe.neuron.kind == "relu":
            why = 'neuron.kind = "relu" is that already'
        elif model.connect != "add":
            why = f"model.connect = {shown(model.connect)} joins spikes"
        if why:
            yield f'loss.teacher = "twin" is this network with ReLU, and {why}; accepted with it: the folder of a run'
    stones = train.milestones
    if list(stones) != sorted(set(stones)):
        yield f"train.milestones = {shown(stones)}: accepted: fractions that rise, each once"
    if train.nesterov and train.momentum == 0:
        yield "train.nesterov = true needs train.momentum above 0, which is 0.0"
    if train.micro_batch != 0 and train.accumulate != 1:
        yield (
            f"train.micro_batch = {shown(train.micro_batch)} and train.accumulate = {train.accumulate} both divide a "
            "step; accepted: one of them"
        )
    for name in ("accumulate", "micro_batch"):
        divisor = getattr(train, name)
        if divisor not in (0, "auto") and train.batch_size % divisor:
            yield (
                f"train.{name} = {divisor} does not divide train.batch_size = {train.batch_size}; "
                "accepted: a divisor of it"
            )


def _of_data(recipe: "Recipe") -> Iterator[str]:
    data, augmentation, steps = recipe.data, recipe.data.augmentation, recipe.time_steps
    scale = augmentation.crop_scale
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
    if data.name in SPLITS_OF and data.split not in SPLITS_OF[data.name]:
        yield (
            f"data.split = {shown(data.split)}, which data.name = {shown(data.name)} does not have; "
            f"accepted: {', '.join(map(shown, SPLITS_OF[data.name]))}"
        )
    if data.sensor != "auto" and not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", data.sensor):
        yield f'data.sensor = {shown(data.sensor)}: accepted: "auto", or pixels as "346x260"'
    if augmentation.delete >= steps:
        yield (
            f"data.augmentation.delete = {augmentation.delete} leaves no frame of time_steps = {steps}; "
            f"accepted: from 0 to {steps - 1}"
        )


def _of_model(recipe: "Recipe") -> Iterator[str]:
    model, train = recipe.model, recipe.train
    if model.name in SKIPLESS and model.block != "plain":
        yield (
            f'model.block = "{model.block}" needs skip connections, which model.name = "{model.name}" lacks; '
            'accepted with it: "plain"'
        )
    if model.name in ("net7b", "resnet19") and model.block == "preact":
        yield (
            f'model.block = "preact" is not for model.name = "{model.name}"; accepted with it: "plain", "sew" or "ms"'
        )
    if model.connect != "add" and recipe.neuron.kind == "relu":
        yield (
            f'model.connect = "{model.connect}" joins spikes, and neuron.kind = "relu" gives none; '
            'accepted with it: "add"'
        )
    if model.checkpoint_blocks and train.compile:
        yield (
            "model.checkpoint_blocks = true contradicts train.compile = true: a compiled block "
            "would update batch norm's statistics twice; accepted: one of them"
        )
    if model.checkpoint_blocks and model.drop_path:
        yield (
            f"model.drop_path = {model.drop_path} draws in each block, and model.checkpoint_blocks = true "
            "runs them twice; accepted: one of them"
        )
    if recipe.loss.feature_weight and train.compile:
        yield (
            f"loss.feature_weight = {recipe.loss.feature_weight} listens to the blocks, which train.compile = true "
            "joins; accepted: one of them"
        )


def _of_neuron(recipe: "Recipe") -> Iterator[str]:
    neuron, model, delete = recipe.neuron, recipe.model, recipe.data.augmentation.delete
    kind, resets = neuron.kind, RESETS_OF.get(neuron.kind, (neuron.reset,))
    if kind == "plif" and neuron.tau == 1:
        yield "neuron.tau = 1.0: plif learns 1 - 1/tau from above 0; accepted: a number above 1"
    if neuron.reset not in resets:
        accepted = ", ".join(map(repr, resets))
        yield f'neuron.reset = "{neuron.reset}" of neuron.kind = "{kind}"; accepted: {accepted}'
    if kind in RESETS_OF and neuron.v_reset != 0:
        yield f'neuron.v_reset = {neuron.v_reset} of neuron.kind = "{kind}"; accepted: 0'
    if kind in ("psn", "masked_psn") and delete:
        yield (
            f"data.augmentation.delete = {delete} trains on fewer frames than it tests, "
            f'and neuron.kind = "{kind}" has weights for one number of them; accepted with it: 0'
        )
    if kind == "ilif" and model.memory == "packed":
        yield (
            'model.memory = "packed" keeps a spike in one bit, and neuron.kind = "ilif" gives up to '
            'neuron.levels of them a step; accepted: "standard"'
        )
    if kind == "ilif" and model.connect != "add":
        yield (
            f'model.connect = "{model.connect}" joins spikes of 0 and 1, and neuron.kind = "ilif" '
            'gives up to neuron.levels of them a step; accepted: "add"'
        )
    if neuron.threshold_learnt == "channel" and kind in names("neurons"):
        yield (
            f'neuron.threshold_learnt = "channel" of neuron.kind = {shown(kind)} of a plugin, which is not told its '
            "channels; accepted with it: true, false"
        )
    if neuron.v_reset >= neuron.v_threshold:
        yield (
            f"neuron.v_reset = {neuron.v_reset} would fire again at once; "
            f"accepted: a number below neuron.v_threshold = {neuron.v_threshold}"
        )


def balanced_twice(values: Mapping[str, Any]) -> str:
    """The contradiction of two keys that earlier versions took together, in a line; "" if there is none."""
    if not values["data.sampler"] == values["loss.class_weights"] == "balanced":
        return ""
    return (
        'data.sampler = "balanced" contradicts loss.class_weights = "balanced": each makes up for the '
        "sizes of the classes, and both together make small ones too heavy; accepted: one of them"
    )
