"""Which keys of a recipe, {dotted key: value}, have no effect together, and which contradict each other."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from spiketriton.config.parts import PARTS, names
from spiketriton.config.words import shown

ResNet = Literal["resnet18", "resnet34", "resnet50", "resnet101"]  # either stem
# CIFAR style
SmallResNet = Literal[
    "resnet8", "resnet19", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"
]
PlainNet = Literal["plain", "mlp"]  # of any depth, without skip connections
VGG = Literal["vggsnn", "vgg11", "vgg16", "csnn"]  # without skip connections, too
PooledNet = Literal[VGG, "net7b"]
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


LEAKY = ("lif", "plif", "ilif", "clif", "alif", "cuba")
PARALLEL = ("psn", "masked_psn", "sliding_psn")
RESETS_OF = {
    "ilif": ("auto", "soft"),
    "clif": ("auto", "soft"),
    "alif": ("auto", "hard", "soft"),
    "cuba": ("auto", "hard", "soft", "none"),
    **dict.fromkeys(PARALLEL, ("auto", "none")),
}

EVENT_KEYS = [
    *(f"data.{name}" for name in ("split", "bins", "count")),
    *(
        f"data.augmentation.{name}"
        for name in ("flip", "roll", "rotate", "shear", "drop", "delete")
    ),
]


_START = ["model.residual_gain", "model.residual_bias"]
_BLOCKS = ["model.drop_path", "model.checkpoint_blocks", "model.shortcut_gradient", *_START]


# of networks that are built here by a recipe, from its norms and neurons, as all keys of [neuron]
_LAYERS = ("block", "norm", "norm_gain", "width", "checkpoint_blocks", "dropout", "drop_path")
_BUILT_HERE = [*(f"model.{name}" for name in _LAYERS), "train.sync_bn"]


def _readers() -> list[tuple[list[str], str, tuple[Any, ...]]]:
    """Keys, the key that decides whether they are read, and its values with which they are."""
    return [
        (["data.variant"], "data.name", ("imagenette",)),
        (["data.classes"], "data.name", ("synthetic",)),
        (EVENT_KEYS, "data.name", get_args(Events)),
        (["data.augmentation.erasing"], "data.name", (*get_args(Images), *names("data"))),
        (["data.augmentation.policy"], "data.name", (*get_args(Images), *names("data"))),
        (
            ["data.augmentation.operations", "data.augmentation.magnitude"],
            "data.augmentation.policy",
            ("randaugment",),
        ),
        (["data.augmentation.crop_scale"], "data.name", (*PHOTOGRAPHS, *names("data"))),
        (["data.augmentation.crop_scale"], "data.augment", ("standard", "strong")),
        (["data.check", "data.broken"], "data.name", (*PHOTOGRAPHS, *names("data"))),
        (["data.broken"], "data.check", ("fast", "full")),
        (["data.format"], "data.name", ("eventfolder", "digits_dvs")),
        (["data.sensor"], "data.name", ("eventfolder",)),
        (["model.stem"], "model.name", get_args(ResNet)),
        (["model.depth", "model.start"], "model.name", get_args(PlainNet)),
        (_BLOCKS, "model.name", BLOCK_NETS),
        (
            [*_START, "model.norm_gain"],
            "model.norm",
            ("bn", "step_bn", "tdbn", "tebn"),
        ),
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
        (["loss.tet_lambda"], "loss.kind", ("tet",)),
        (["train.momentum", "train.nesterov"], "train.optimizer", ("sgd",)),
        (["train.eps"], "train.optimizer", ("adamw",)),
        (["train.milestones", "train.gamma"], "train.schedule", ("step",)),
        (["train.min_lr"], "train.schedule", ("one_cycle", "cosine")),
        (["train.max_skips"], "train.nonfinite", ("skip",)),
        (["monitor.wandb_project"], "monitor.wandb", ("offline", "online")),
        (["monitor.every", "monitor.tensorboard", "monitor.wandb"], "monitor.enabled", (True,)),
    ]


def idle(values: Mapping[str, Any]) -> dict[str, str]:
    """The keys that have no effect in this recipe, each with the reason: a key that is never read misleads.

    Those that only the ANN twin ignores are allowed, so that a recipe and its twin differ in one word.
    """
    name = values["model.name"]
    # made by a function that knows nothing of recipes
    elsewhere = (name,) if ":" in (name or "") else ()
    here = () if elsewhere else (name,)
    rules = [
        (["model.arguments", "model.input"], "model.name", elsewhere),
        (_BUILT_HERE, "model.name", here),
        ([dotted for dotted in values if dotted.startswith("neuron.")], "model.name", here),
        *_readers(),
    ]
    if values["data.name"] in get_args(Events):
        rules.append((["data.split_seed"], "data.split", ("random90",)))
    else:
        rules.append((["data.cache"], "data.check", ("fast", "full")))
        rules.append((["data.cache"], "data.name", (*PHOTOGRAPHS, *names("data"))))
        rules.append((["data.split_seed"], "data.name", get_args(Events)))
    if values["loss.teacher"] == "-":
        rules.append(
            (["loss.teacher_weight", "loss.temperature", "loss.feature_weight"], "loss.teacher", ())
        )
    if not values["train.warmup"]:
        rules.append((["train.warmup_lr"], "train.warmup", ()))
    if not (values["train.mixup"] or values["train.cutmix"]):
        rules.append((["train.mix_probability", "train.mix_epochs"], "train.mixup", ()))
    if values["neuron.kind"] in PARALLEL:  # which learn their threshold anyway
        rules.append((["neuron.threshold_learnt", "neuron.detach_reset"], "neuron.kind", ()))
    if values["neuron.v_reset"] != 0:  # 0 may stand next to any reset
        rules.append((["neuron.v_reset"], "neuron.reset", ("auto", "hard")))
    for part in PARTS.values():
        if part.options is not None:
            keys = [dotted for dotted in values if dotted.startswith(f"{part.table}.")]
            rules.append((keys, part.selector, (part.name,)))
    return {
        dotted: f"{reader} is {shown(values[reader])}"
        for keys, reader, active in rules
        for dotted in keys
        if values[reader] not in active
    }


# what earlier versions had: words that stand for the default now, and what else to write
STANDS_FOR_DEFAULT = [
    ("model.start", "auto"),
    ("neuron.surrogate.width", "auto"),
]
GONE_WORDS = [("neuron.surrogate.width", "auto_per_layer")]
GONE_KEYS = {"neuron.surrogate.hold": "a width stays as it is now; leave it out"}


def no_effect(dotted: str, value: Any, reason: str) -> str:
    return f"{dotted} = {shown(value)} has no effect because {reason}; leave {dotted} out"


def contradictions(values: Mapping[str, Any]) -> Iterator[str]:
    """One line for each contradiction between keys that have an effect."""
    for of in (_of_training, _of_data, _of_model, _of_events, _of_batch, _of_neuron):
        yield from of(values)


def peak_lr(values: Mapping[str, Any]) -> float:
    """The highest learning rate of a recipe, whose train.lr may be `auto`."""
    if not isinstance(values["train.lr"], str):
        return float(values["train.lr"])
    of_blocks, without_skips, others = RATES[values["train.optimizer"]]
    name = values["model.name"]
    if name in BLOCK_NETS:
        return of_blocks
    return without_skips if name in (*get_args(PlainNet), *get_args(VGG)) else others


def clipping(values: Mapping[str, Any]) -> float:
    """The largest gradient norm of a recipe, whose train.clip_grad_norm may be `auto`; 0: none."""
    limit = values["train.clip_grad_norm"]
    return CLIPPING[values["train.optimizer"]] if limit == "auto" else float(limit)


def reset(kind: str, given: str) -> str:
    """hard, soft or none, of a neuron whose reset may be `auto`."""
    if given != "auto":
        return given
    if kind in PARALLEL:
        return "none"
    return "soft" if kind in ("ilif", "clif", "alif") else "hard"


def _of_training(values: Mapping[str, Any]) -> Iterator[str]:
    if values["train.patience"] and values["data.validation"] == 0:
        yield (
            f"train.patience = {values['train.patience']} needs images held out of training, but "
            "data.validation is 0.0"
        )
    for dotted in ("train.mixup", "train.cutmix"):
        if values[dotted] and values["loss.kind"] not in get_args(Loss):
            accepted = ", ".join(shown(kind) for kind in get_args(Loss))
            yield (
                f"{dotted} = {values[dotted]} makes labels of several classes, which loss.kind = "
                f"{shown(values['loss.kind'])} of a plugin does not take; accepted with it: {accepted}"
            )
    for dotted in ("train.min_lr", "train.warmup_lr"):
        if values[dotted] > (peak := peak_lr(values)):
            yield f"{dotted} = {values[dotted]} is above the peak, train.lr = {peak}; accepted: up to it"
    if values["loss.teacher"] == "twin":
        name, why = values["model.name"] or "", ""
        if ":" in name:
            why = f"neuron.kind has no effect in model.name = {shown(name)}"
        elif values["neuron.kind"] == "relu":
            why = 'neuron.kind = "relu" is that already'
        elif values["model.connect"] != "add":
            why = f"model.connect = {shown(values['model.connect'])} joins spikes"
        if why:
            yield f'loss.teacher = "twin" is this network with ReLU, and {why}; accepted with it: the folder of a run'
    stones = values["train.milestones"]
    if list(stones) != sorted(set(stones)):
        yield f"train.milestones = {shown(stones)}: accepted: fractions that rise, each once"
    if values["loss.feature_weight"] and values["train.compile"]:
        yield (
            f"loss.feature_weight = {values['loss.feature_weight']} listens to the blocks, which train.compile = true "
            "joins; accepted: one of them"
        )
    if values["model.drop_path"] and values["model.checkpoint_blocks"]:
        yield (
            f"model.drop_path = {values['model.drop_path']} draws in each block, and model.checkpoint_blocks = true "
            "runs them twice; accepted: one of them"
        )
    if values["train.nesterov"] and values["train.momentum"] == 0:
        yield "train.nesterov = true needs train.momentum above 0, which is 0.0"


def _of_data(values: Mapping[str, Any]) -> Iterator[str]:
    validation = values["data.validation"]
    scale = values["data.augmentation.crop_scale"]
    if len(scale) != 2 or scale[0] > scale[1]:
        yield (
            f"data.augmentation.crop_scale = {shown(scale)}: accepted: two fractions of the area, the "
            "larger one last"
        )
    folders = values["data.name"] == "imagefolder" or (
        values["data.name"] == "eventfolder" and values["data.split"] == "official"
    )
    if isinstance(validation, str) and not folders:
        split = f" with data.split = {shown(values['data.split'])}"
        yield (
            f"data.validation = {shown(validation)}: {values['data.name']} has no folders of splits"
            f"{split if values['data.name'] == 'eventfolder' else ''}; "
            "accepted with it: a number from 0, below 1"
        )


def _of_model(values: Mapping[str, Any]) -> Iterator[str]:
    name, block = values["model.name"], values["model.block"]
    if name in (*get_args(PlainNet), *get_args(VGG)) and block != "plain":
        yield (
            f'model.block = "{block}" needs skip connections, which model.name = "{name}" lacks; '
            'accepted with it: "plain"'
        )
    if name in ("net7b", "resnet19") and block == "preact":
        yield (
            f'model.block = "preact" is not for model.name = "{name}"; accepted with it: "plain", "sew" or "ms"'
        )
    if values["model.connect"] != "add" and values["neuron.kind"] == "relu":
        yield (
            f'model.connect = "{values["model.connect"]}" joins spikes, and neuron.kind = "relu" gives none; '
            'accepted with it: "add"'
        )
    if values["model.checkpoint_blocks"] and values["train.compile"]:
        yield (
            "model.checkpoint_blocks = true contradicts train.compile = true: a compiled block "
            "would update batch norm's statistics twice; accepted: one of them"
        )


def _of_batch(values: Mapping[str, Any]) -> Iterator[str]:
    batch, parts = values["train.batch_size"], values["train.accumulate"]
    micro = values["train.micro_batch"]
    if micro != 0 and parts != 1:
        yield (
            f"train.micro_batch = {shown(micro)} and train.accumulate = {parts} both divide a "
            "step; accepted: one of them"
        )
    for dotted, divisor in (("train.accumulate", parts), ("train.micro_batch", micro)):
        if divisor not in (0, "auto") and batch % divisor:
            yield (
                f"{dotted} = {divisor} does not divide train.batch_size = {batch}; "
                "accepted: a divisor of it"
            )


def _of_neuron(values: Mapping[str, Any]) -> Iterator[str]:
    if values["neuron.kind"] == "plif" and values["neuron.tau"] == 1:
        yield "neuron.tau = 1.0: plif learns 1 - 1/tau from above 0; accepted: a number above 1"
    kind, resets = values["neuron.kind"], RESETS_OF.get(values["neuron.kind"] or "")
    if resets is not None:
        if values["neuron.reset"] not in resets:
            yield (
                f'neuron.reset = "{values["neuron.reset"]}" of neuron.kind = "{kind}"; accepted: '
                f"{', '.join(map(repr, resets))}"
            )
        if values["neuron.v_reset"] != 0:
            yield f'neuron.v_reset = {values["neuron.v_reset"]} of neuron.kind = "{kind}"; accepted: 0'
    if kind in ("psn", "masked_psn") and values["data.augmentation.delete"]:
        yield (
            f"data.augmentation.delete = {values['data.augmentation.delete']} trains on fewer frames than it tests, "
            f'and neuron.kind = "{kind}" has weights for one number of them; accepted with it: 0'
        )
    if kind == "ilif":
        if values["model.memory"] == "packed":
            yield (
                'model.memory = "packed" keeps a spike in one bit, and neuron.kind = "ilif" gives up to '
                'neuron.levels of them a step; accepted: "standard"'
            )
        if values["model.connect"] not in (None, "add"):
            yield (
                f'model.connect = "{values["model.connect"]}" joins spikes of 0 and 1, and neuron.kind = "ilif" '
                'gives up to neuron.levels of them a step; accepted: "add"'
            )
    if values["neuron.threshold_learnt"] == "channel" and kind in names("neurons"):
        yield (
            f'neuron.threshold_learnt = "channel" of neuron.kind = {shown(kind)} of a plugin, which is not told its '
            "channels; accepted with it: true, false"
        )
    reset, threshold = values["neuron.v_reset"], values["neuron.v_threshold"]
    if reset >= threshold:
        yield (
            f"neuron.v_reset = {reset} would fire again at once; "
            f"accepted: a number below neuron.v_threshold = {threshold}"
        )


def balanced_twice(values: Mapping[str, Any]) -> str:
    """The contradiction of two keys that earlier versions took together, in a line; "" if there is none."""
    if not values["data.sampler"] == values["loss.class_weights"] == "balanced":
        return ""
    return (
        'data.sampler = "balanced" contradicts loss.class_weights = "balanced": each makes up for the '
        "sizes of the classes, and both together make small ones too heavy; accepted: one of them"
    )


def _of_events(values: Mapping[str, Any]) -> Iterator[str]:
    """Contradictions between the keys of recordings."""
    data, split, sensor = (values[f"data.{name}"] for name in ("name", "split", "sensor"))
    if data not in get_args(Events):
        return
    if split not in SPLITS_OF[data]:
        accepted = ", ".join(shown(name) for name in SPLITS_OF[data])
        yield (
            f"data.split = {shown(split)}, which data.name = {shown(data)} does not have; "
            f"accepted: {accepted}"
        )
    if sensor != "auto" and not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", sensor):
        yield f'data.sensor = {shown(sensor)}: accepted: "auto", or pixels as "346x260"'
    deleted, steps = values["data.augmentation.delete"], values["time_steps"]
    if deleted >= steps:
        yield (
            f"data.augmentation.delete = {deleted} leaves no frame of time_steps = {steps}; "
            f"accepted: from 0 to {steps - 1}"
        )
