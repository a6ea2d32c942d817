"""Recipes: one TOML file, read into frozen dataclasses, strictly and before any work starts.

A recipe is refused in one line (`UserError`) when it holds an unknown key, a value of the wrong
type or out of range, keys that contradict each other, or a key that would have no effect. Types
are exact: a string is no number, `true` is no integer; an integer may stand for a number.
"""

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from spiketriton.errors import UserError

ResNet = Literal["resnet18", "resnet34", "resnet50", "resnet101"]  # either stem
SmallResNet = Literal["resnet8", "resnet20", "resnet32", "resnet44", "resnet56"]  # CIFAR style
PlainNet = Literal["plain", "mlp"]  # of any depth, without skip connections


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`; `open` names the end that is left out."""

    low: float
    high: float
    open: Literal["", "low", "high"] = ""

    def __contains__(self, value: float) -> bool:  # never nan; huge integers compare exactly
        low_ok = value > self.low if self.open == "low" else value >= self.low
        return low_ok and (value < self.high if self.open == "high" else value <= self.high)

    def __str__(self) -> str:
        start, end = "above" if self.open == "low" else "from", "below " * (self.open == "high")
        return f"{start} {_number(self.low)} to {end}{_number(self.high)}"


COUNT = Range(1, 10**9)
COUNT_OR_ZERO = Range(0, 10**9)
SHARE = Range(0, 1, open="high")


def key(default: Any, doc: str, numbers: Range | None = None) -> Any:
    """A field with its explanation and the numbers it takes; the default ... means: required."""
    metadata = {"doc": doc, "numbers": numbers}
    if default is ...:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the recipe; checks each of its keys. Raises UserError."""

    path: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            dotted, value = _join(self.path, field.name), getattr(self, field.name)
            if dotted in KEYS:
                object.__setattr__(self, field.name, KEYS[dotted].check(dotted, value))
            elif dotted in TABLES and not isinstance(value, TABLES[dotted]):
                raise UserError(f"{dotted} = {value!r}: accepted: a {TABLES[dotted].__name__}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Table):
    """The images."""

    path: ClassVar[str] = "data"

    name: Literal[
        "imagenette", "cifar10", "cifar100", "fashion_mnist", "imagefolder", "digits", "synthetic"
    ] = key(..., "data set; `synthetic` is random images for benchmarks")
    root: str = key("data", "folder of the data sets; `digits` and `synthetic` need none")
    variant: Literal["full", "320px", "160px"] = key("320px", "Imagenette's archive by image size")
    image_size: int = key(
        0, "side of the images that the network sees; 0: the data set's", COUNT_OR_ZERO
    )
    augment: Literal["none", "standard", "strong"] = key(
        "standard", "random changes of the training images: none, crops and flips, or more"
    )
    download: bool = key(True, "fetch missing data; false: missing data is an error")
    workers: int | Literal["auto"] = key(
        "auto", "processes that load images; 0: the training process does", Range(0, 1024)
    )
    train_images: int = key(
        0, "train on a fixed subset of so many images; 0: on all", COUNT_OR_ZERO
    )
    test_images: int = key(0, "test on a fixed subset of so many images; 0: on all", COUNT_OR_ZERO)
    classes: int = key(10, "number of classes of `synthetic`", Range(2, 1_000_000))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Table):
    """The network around the neurons."""

    path: ClassVar[str] = "model"

    name: Literal[ResNet, SmallResNet, PlainNet] = key(
        ..., "architecture; `plain` (convolutions) and `mlp` (fully connected) have no skips"
    )
    block: Literal["plain", "sew", "ms"] = key(
        "plain",
        "residual block: neuron(BN(conv) + shortcut), SEW-ResNet with ADD, or MS-ResNet; "
        "only `plain` for nets without skips",
    )
    stem: Literal["auto", "imagenet", "cifar"] = key(
        "auto", "start of resnet18 to 101: 7x7 and a pool, or 3x3; `auto` goes by the image size"
    )
    norm: Literal["bn", "tdbn", "tebn", "none"] = key(
        "bn",
        "of the input currents: batch norm with statistics over time and batch, tdBN (scaled by "
        "the threshold), TEBN (a gain per time step; the ANN twin has plain `bn`), or none",
    )
    depth: int = key(20, "layers with weights of `plain` and `mlp`", Range(1, 10_000))
    width: int = key(
        0,
        "channels of the first stage, features of `mlp`; 0: the architecture's own (64 for "
        "resnet18 to 101, 16 for the smaller ones and `plain`, 128 for `mlp`)",
        Range(0, 65_536),
    )
    fused: bool = key(True, "norm, shortcut and neuron in one kernel; false: one by one")
    memory: Literal["standard", "packed"] = key(
        "standard", "`packed` keeps spikes at 1 bit until backward: same gradients, less memory"
    )
    checkpoint_blocks: bool = key(
        False, "compute each residual block again in backward: same gradients, less memory, slower"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SurrogateConfig(Table):
    """What stands in for ds/dh in backward. Height and width are two numbers, apart."""

    path: ClassVar[str] = "neuron.surrogate"

    shape: Literal["fast_sigmoid", "atan", "sigmoid", "triangle", "rectangle", "gaussian"] = key(
        "atan", "phi in height * phi((h - threshold) / width), where phi(0) = 1"
    )
    height: float = key(1.0, "the surrogate at the threshold", Range(0, 1e6, open="low"))
    width: float | Literal["auto", "auto_per_layer"] = key(
        1.0,
        "its reach, in units of the membrane; calibrated on a few batches before training: "
        "`auto` one width, `auto_per_layer` one for each layer",
        Range(1e-6, 1e6),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeuronConfig(Table):
    """The neuron of every layer."""

    path: ClassVar[str] = "neuron"

    kind: Literal["if", "lif", "plif", "relu"] = key(
        "lif", "integrate-and-fire, with a leak, with a learnable leak; `relu` is the ANN twin"
    )
    tau: float = key(2.0, "time constant in steps of lif and plif: 1 - 1/tau stays", Range(1, 1e6))
    decay_input: bool = key(False, "multiply the input current of lif and plif by 1/tau")
    v_threshold: float = key(1.0, "membrane potential at which it fires", Range(0, 1e6, open="low"))
    reset: Literal["hard", "soft", "none"] = key(
        "hard", "after a spike: to v_reset, down by v_threshold, or not at all"
    )
    v_reset: float = key(
        0.0, "where a hard reset goes, below v_threshold; else 0", Range(-1e6, 1e6)
    )
    detach_reset: bool = key(True, "no gradient through the hard or soft reset")
    surrogate: SurrogateConfig = dataclasses.field(default_factory=SurrogateConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig(Table):
    """What is minimised."""

    path: ClassVar[str] = "loss"

    kind: Literal["cross_entropy", "tet"] = key(
        "cross_entropy", "of the mean current over time, or TET: the mean of the steps' losses"
    )
    label_smoothing: float = key(0.0, "probability spread over all classes", SHARE)
    tet_lambda: float = key(0.05, "weight of TET's pull of each current to 1", Range(0, 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Table):
    """How it is minimised, and on what."""

    path: ClassVar[str] = "train"

    epochs: int = key(1, "passes over the training images", COUNT)
    batch_size: int = key(64, "images of one optimizer step, over all devices", COUNT)
    accumulate: int = key(1, "micro-batches of one step, a divisor of batch_size", COUNT)
    micro_batch: int | Literal["auto"] = key(
        0,
        "images of a micro-batch on a device, in place of `accumulate`; 0: that says it; `auto`: "
        "the largest that fits in memory. Batch norm's statistics are those of a micro-batch",
        COUNT_OR_ZERO,
    )
    max_steps: int = key(0, "end after so many optimizer steps; 0: no limit", COUNT_OR_ZERO)
    optimizer: Literal["sgd", "adamw"] = key("adamw", "torch's; biases and norms do not decay")
    lr: float = key(1e-3, "peak learning rate", Range(0, 1e3, open="low"))
    weight_decay: float = key(0.0, "L2 of sgd, decoupled in adamw", Range(0, 1e3))
    momentum: float = key(0.9, "of sgd", SHARE)
    nesterov: bool = key(False, "Nesterov's momentum in sgd")
    schedule: Literal["one_cycle", "cosine", "constant"] = key(
        "one_cycle", "cosine up and down; linear up, cosine down; linear up, level"
    )
    warmup: float = key(0.1, "share of all steps in which the learning rate rises", SHARE)
    clip_grad_norm: float = key(0.0, "largest norm of the gradient; 0: not clipped", COUNT_OR_ZERO)
    nonfinite: Literal["stop", "skip"] = key(
        "stop",
        "at a loss or gradient that is not finite: end the run, or leave the step out; either way "
        "the step changes no weight, and the place where it began is named",
    )
    max_skips: int = key(10, "steps in a row that `skip` leaves out before the run ends", COUNT)
    precision: Literal["fp32", "bf16", "fp16"] = key(
        "fp32", "of convolutions and activations (autocast); membranes and weights stay fp32"
    )
    sync_bn: bool = key(
        False, "batch norm's statistics over all devices together; without effect on a single one"
    )
    channels_last: bool = key(True, "memory layout of images and activations")
    compile: bool = key(False, "torch.compile the model")
    device: Literal["auto", "cpu", "cuda"] = key("auto", "`auto`: a GPU when there is one")
    threads: int = key(0, "CPU threads of one operation; 0: torch's choice", Range(0, 4096))
    log_every: int = key(10, "steps between rows of metrics.jsonl", COUNT)
    eval_every: int = key(1, "epochs between evaluations", COUNT)
    deterministic: bool = key(False, "only algorithms that give the same bits in every run")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MonitorConfig(Table):
    """The gradient monitor."""

    path: ClassVar[str] = "monitor"

    enabled: bool = key(True, "record gradient norms by layer and time step")
    every: int = key(0, "steps between measurements; 0: on each logged step", COUNT_OR_ZERO)
    tensorboard: bool = key(False, "write TensorBoard event files too")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Table):
    """What is saved on the way."""

    path: ClassVar[str] = "checkpoint"

    every: int = key(0, "steps between checkpoints; 0: at the end of each epoch", COUNT_OR_ZERO)
    keep: int = key(
        2,
        "how many of the last checkpoints stay, beside the best; 1: none behind a damaged one",
        COUNT,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Table):
    """A whole run. `name` is the file's stem and no key. Equal recipes compare and hash equal."""

    name: str
    seed: int = key(0, "of weights, order and augmentation", Range(0, 2**63 - 1))
    time_steps: int = key(4, "T, how many steps an image is shown", Range(1, 65_536))
    data: DataConfig
    model: ModelConfig
    neuron: NeuronConfig = dataclasses.field(default_factory=NeuronConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    monitor: MonitorConfig = dataclasses.field(default_factory=MonitorConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.name, str) or not self.name or set(self.name) & set("/\\\0"):
            raise UserError(f"recipe name {self.name!r}: accepted: a file name without its ending")
        values = _flat(self)
        for dotted, reason in _idle(values).items():
            if values[dotted] != KEYS[dotted].default:
                raise UserError(_no_effect(dotted, values[dotted], reason))
        for message in _contradictions(values):
            raise UserError(message)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


@dataclasses.dataclass(frozen=True)
class Spec:
    """What one key accepts: a base type with a range, some words, or either."""

    table: type[Table]
    field: dataclasses.Field
    base: type | None
    words: tuple[str, ...]

    @property
    def required(self) -> bool:
        return self.field.default is dataclasses.MISSING

    @property
    def default(self) -> Any:
        return None if self.required else self.field.default

    @property
    def accepted(self) -> str:
        """What is accepted, in words, for errors and for docs/recipes.md."""
        parts = []
        if self.base is bool:
            parts.append("true or false")
        elif self.base is str:
            parts.append("text that is not empty and has no NUL")
        elif self.base is not None:
            noun = "an integer" if self.base is int else "a number"
            parts.append(f"{noun} {self.field.metadata['numbers']}")
        if self.words:
            parts.append(", ".join(f'"{word}"' for word in self.words))
        return " or ".join(parts)

    def check(self, dotted: str, value: Any) -> Any:
        """The value as its field keeps it (integers as floats where a number is asked)."""
        if isinstance(value, str):
            good = value in self.words or (self.base is str and _is_text(value))
        elif self.base in (int, float):
            # Python counts booleans as integers, a recipe does not
            numeric = type(value) is int or (self.base is float and type(value) is float)
            good = numeric and value in self.field.metadata["numbers"]
        else:
            good = self.base is bool and type(value) is bool
        if not good:
            word = _short(value) if isinstance(value, str) else ""
            near = difflib.get_close_matches(word, self.words, n=1)
            tip = f'did you mean "{near[0]}"? ' if near else ""
            raise UserError(f"{dotted} = {_shown(value)}: {tip}accepted: {self.accepted}")
        return float(value) if self.base is float and type(value) is int else value


def _specs(table: type[Table]) -> Iterator[tuple[str, Spec]]:
    hints = get_type_hints(table)
    for field in dataclasses.fields(table):
        hint = hints[field.name]
        if "doc" in field.metadata:
            choices = [hint] if get_origin(hint) is Literal else get_args(hint)
            words = tuple(w for c in choices if get_origin(c) is Literal for w in get_args(c))
            bases = [t for t in (hint, *get_args(hint)) if t in (bool, int, float, str)]
            dotted = _join(table.path, field.name)
            yield dotted, Spec(table, field, bases[0] if bases else None, words)
    for field in dataclasses.fields(table):  # subtables follow the keys, as TOML asks
        if isinstance(hints[field.name], type) and issubclass(hints[field.name], Table):
            yield from _specs(hints[field.name])


KEYS: dict[str, Spec] = dict(_specs(Recipe))
TABLES: dict[str, type[Table]] = {spec.table.path: spec.table for spec in KEYS.values()}


def _is_text(value: str) -> bool:
    """Not empty, no NUL (no path may hold it) and no lone surrogate (no file can hold it)."""
    return bool(value) and "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)


def _short(value: Any, limit: int = 80) -> str:
    if type(value) is int and value.bit_length() > 128:  # Python refuses to print huge integers
        return f"an integer of {value.bit_length()} bits"
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def _number(value: float) -> str:
    """A limit as a person writes it: 1000, 1e6, 1e-6."""
    return str(value) if isinstance(value, int) else re.sub(r"e\+?(-?)0*", r"e\1", f"{value:g}")


def _shown(value: Any) -> str:
    """A value as TOML writes it, or in words what stands in its place."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _quoted(_short(value))
    if isinstance(value, (int, float)):
        return _short(value)
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list):
        return "an array"
    return f"{_short(value)} ({type(value).__name__})"


def _quoted(text: str) -> str:
    """A TOML basic string; whatever does not print is escaped."""

    def escaped(c: str) -> str:
        if c in '"\\':
            return "\\" + c
        if c.isprintable():
            return c
        return f"\\u{ord(c):04X}" if ord(c) <= 0xFFFF else f"\\U{ord(c):08X}"

    return '"' + "".join(map(escaped, text)) + '"'


def _idle(values: Mapping[str, Any]) -> dict[str, str]:
    """The keys that have no effect in this recipe, each with the reason.

    They are refused when given: a key that nobody reads misleads. What only the ANN twin
    (neuron.kind "relu") does not read stays, so that a recipe and its twin differ in one word.
    """
    rules = [
        (["data.variant"], "data.name", ("imagenette",)),
        (["data.classes"], "data.name", ("synthetic",)),
        (["model.stem"], "model.name", get_args(ResNet)),
        (["model.depth"], "model.name", get_args(PlainNet)),
        (["model.checkpoint_blocks"], "model.name", get_args(ResNet) + get_args(SmallResNet)),
        (["neuron.tau", "neuron.decay_input"], "neuron.kind", ("lif", "plif", "relu")),
        (["neuron.detach_reset"], "neuron.reset", ("hard", "soft")),
        (["loss.tet_lambda"], "loss.kind", ("tet",)),
        (["train.momentum", "train.nesterov"], "train.optimizer", ("sgd",)),
        (["train.max_skips"], "train.nonfinite", ("skip",)),
        (["monitor.every", "monitor.tensorboard"], "monitor.enabled", (True,)),
    ]
    idle = {
        dotted: f"{reader} is {_shown(values[reader])}"
        for keys, reader, active in rules
        for dotted in keys
        if values[reader] not in active
    }
    if values["neuron.reset"] != "hard" and values["neuron.v_reset"] != 0:
        idle["neuron.v_reset"] = f"neuron.reset is {_shown(values['neuron.reset'])}"
    return idle


def _no_effect(dotted: str, value: Any, reason: str) -> str:
    return f"{dotted} = {_shown(value)} has no effect because {reason}; accepted: no {dotted}"


def _contradictions(values: Mapping[str, Any]) -> Iterator[str]:
    name, block = values["model.name"], values["model.block"]
    if name in get_args(PlainNet) and block != "plain":
        yield (
            f'model.block = "{block}" needs skip connections, which model.name = "{name}" lacks; '
            'accepted with it: "plain"'
        )
    batch, parts = values["train.batch_size"], values["train.accumulate"]
    if batch % parts:
        yield (
            f"train.accumulate = {parts} does not divide train.batch_size = {batch}; "
            "accepted: a divisor of it"
        )
    micro = values["train.micro_batch"]
    if micro != 0 and parts != 1:
        yield (
            f"train.micro_batch = {_shown(micro)} and train.accumulate = {parts} both say how a "
            "step is divided; accepted: one of them"
        )
    if micro not in (0, "auto") and batch % micro:
        yield (
            f"train.micro_batch = {micro} does not divide train.batch_size = {batch}; "
            "accepted: a divisor of it"
        )
    if values["model.checkpoint_blocks"] and values["train.compile"]:
        yield (
            "model.checkpoint_blocks = true contradicts train.compile = true: torch.compile cannot "
            "hold batch norm's statistics still; accepted: one of them"
        )
    if values["train.nesterov"] and values["train.momentum"] == 0:
        yield "train.nesterov = true needs train.momentum above 0, which is 0.0"
    if values["neuron.kind"] == "plif" and values["neuron.tau"] == 1:
        yield "neuron.tau = 1.0: plif learns 1 - 1/tau from above 0; accepted: a number above 1"
    reset, threshold = values["neuron.v_reset"], values["neuron.v_threshold"]
    if reset >= threshold:
        yield (
            f"neuron.v_reset = {reset} would fire again at once; "
            f"accepted: a number below neuron.v_threshold = {threshold}"
        )


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe file and applies `key=value` overrides, in order; the last one wins.

    Values are TOML; where the key takes a string the quotes may be left out (`data.root=/data`). A
    key of the file that an override leaves without effect falls back to its default.
    Raises UserError for whatever is wrong with the file, the overrides or the recipe.
    """
    path = Path(path)
    text = _read(path)
    try:
        given = _parse(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return _assemble(given, _parse_overrides(overrides), path.stem, source=f"{path}: ")


def recipe_from_toml(text: str, name: str) -> Recipe:
    """The recipe that a TOML text holds. Raises UserError."""
    return _assemble(_parse(text), {}, name)


def replace(recipe: Recipe, *overrides: str) -> Recipe:
    """The recipe with `key=value` overrides, as in `load_recipe`. Raises UserError."""
    return _assemble(_effective(recipe), _parse_overrides(overrides), recipe.name)


def to_toml(recipe: Recipe) -> str:
    """The resolved recipe: every key that has an effect in it, always in the same order.

    `recipe_from_toml(to_toml(recipe), recipe.name) == recipe`.
    """
    lines, table = [], ""
    for dotted, value in _effective(recipe).items():
        path, _, name = dotted.rpartition(".")
        if path != table:
            lines += ["", f"[{path}]"]
            table = path
        lines.append(f"{name} = {_quoted(value) if isinstance(value, str) else _shown(value)}")
    return "\n".join(lines) + "\n"


def _read(path: Path) -> str:
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder; accepted: a recipe file (TOML)")
        if not path.is_file():
            raise UserError(f"{path}: no such recipe file{_near_file(path)}")
        return path.read_bytes().decode("utf-8-sig")  # some editors write a byte order mark first
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; TOML files are UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _near_file(path: Path) -> str:
    there = {p.stem: p for p in sorted(path.parent.glob("*.toml"))}
    near = difflib.get_close_matches(path.stem, there, n=1)
    return f"; did you mean {there[near[0]]}?" if near else ""


def _parse(text: str) -> dict[str, Any]:
    """TOML text -> {dotted key: checked value}."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: Python's limit on long integers
        end = f"at the end, line {len(text.splitlines())}"
        reason = str(error).replace("at end of document", end)
        raise UserError(f"invalid TOML: {reason}") from None
    return dict(_flatten(document, ""))


def _flatten(table: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        bare = re.fullmatch(r"[A-Za-z0-9_-]+", name)  # TOML allows any name in quotes
        dotted = _join(path, name if bare else _quoted(name))
        if dotted in KEYS:
            yield dotted, KEYS[dotted].check(dotted, value)
        elif dotted not in TABLES:
            raise UserError(_unknown(dotted, is_table=isinstance(value, Mapping)))
        elif isinstance(value, Mapping):
            yield from _flatten(value, dotted)
        else:
            raise UserError(f"{dotted} = {_shown(value)}: accepted: a table, [{dotted}]")


def _unknown(dotted: str, is_table: bool) -> str:
    tables = list(TABLES)[1:]  # without the top level, which has no name
    table, _, name = dotted.rpartition(".")
    known = tables if is_table else list(KEYS)
    near = [k for k in known if k.rpartition(".")[2] == name]  # right key, wrong or missing table
    near = near or difflib.get_close_matches(_short(dotted), known, n=1)
    siblings = [] if is_table else [k for k in KEYS if KEYS[k].table.path == table]
    if near:
        tip = f"did you mean {near[0]}?"
    elif siblings:
        tip = f"known keys: {', '.join(siblings)}"
    else:
        tip = f"known tables: {', '.join(tables)}"
    shown = _short(dotted) if dotted.isprintable() else _quoted(_short(dotted))
    return f"unknown {'table' if is_table else 'key'} {shown}; {tip}"


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    changes = {}
    for text in overrides:
        dotted, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not dotted:
            raise UserError(f"override {_short(text)!r}: accepted: key=value, as in train.epochs=1")
        if dotted in TABLES:
            raise UserError(
                f"override {_short(text)!r}: {dotted} is a table; accepted: one of its keys, as in "
                f"{next(k for k in KEYS if k.startswith(dotted))}=..."
            )
        if dotted not in KEYS:
            raise UserError(f"override {_short(text)!r}: {_unknown(dotted, is_table=False)}")
        changes[dotted] = KEYS[dotted].check(dotted, _parse_value(value, KEYS[dotted]))
    return changes


def _parse_value(text: str, spec: Spec) -> Any:
    """One TOML value; a bare string where the key takes strings and the text is nothing else."""
    try:
        document = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    value = document["value"]
    bare = spec.base in (str, None) and not isinstance(value, str)  # data.root=2024
    return text if bare or len(document) > 1 else value


def _assemble(
    given: Mapping[str, Any], changes: Mapping[str, Any], name: str, source: str = ""
) -> Recipe:
    """Builds the recipe of `given` under `changes`; both hold {dotted key: checked value}."""
    defaults = {dotted: spec.default for dotted, spec in KEYS.items()}
    values = {**defaults, **given, **changes}
    for dotted, spec in KEYS.items():
        if spec.required and values[dotted] is None:
            raise UserError(f"{source}{dotted} is missing; accepted: {spec.accepted}")
    idle_before = _idle({**defaults, **given})
    for dotted, reason in _idle(values).items():
        if dotted in changes or (dotted in given and dotted in idle_before):
            raise UserError(source + _no_effect(dotted, values[dotted], reason))
        values[dotted] = defaults[dotted]
    try:
        return _build(Recipe, values, name=name)
    except UserError as error:
        raise UserError(f"{source}{error}") from None


def _build(table: type[Table], values: Mapping[str, Any], **extra: Any) -> Any:
    hints = get_type_hints(table)
    for field in dataclasses.fields(table):
        dotted = _join(table.path, field.name)
        if dotted in values:
            extra[field.name] = values[dotted]
        elif field.name not in extra:
            extra[field.name] = _build(hints[field.name], values)
    return table(**extra)


def _flat(recipe: Recipe) -> dict[str, Any]:
    return {dotted: attrgetter(dotted)(recipe) for dotted in KEYS}


def _effective(recipe: Recipe) -> dict[str, Any]:
    """{dotted key: value} of the keys that have an effect; the others are at their defaults."""
    values = _flat(recipe)
    idle = _idle(values)
    return {dotted: value for dotted, value in values.items() if dotted not in idle}
