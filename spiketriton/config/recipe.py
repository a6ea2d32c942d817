"""The tables and keys of a recipe: each key once, with its default, its range and its explanation below.

Errors, docs/recipes.md and the reading of TOML all come from these declarations.
"""

import ast
import contextlib
import dataclasses
import difflib
import inspect
import itertools
import math
import re
import textwrap
from collections.abc import Container, Iterator, Mapping
from functools import cache
from operator import attrgetter
from types import MappingProxyType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from spiketriton.config import parts, rules
from spiketriton.config.kinds import kinds, reset_by, with_key
from spiketriton.config.names import (
    ARRAYS,
    BLOCK_NETS,
    CHAINS,
    CLIPPING,
    CLOSABLE,
    EVENTS,
    FOREIGN,
    LEAKY,
    NONE,
    PARALLEL,
    RATES,
    SEQUENCES,
    SKIPLESS,
    WITHOUT_BLOCKS,
    Block,
    Events,
    Images,
    Loss,
    PlainNet,
    PooledNet,
    ResNet,
    Sequences,
    SmallResNet,
)
from spiketriton.config.words import joined, number, short, shown, whole
from spiketriton.system.errors import UserError


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
        ends = {"": "from {} to {}", "low": "above {}, at most {}", "high": "from {}, below {}"}
        return ends[self.open].format(number(self.low), number(self.high))


COUNT = Range(1, 10**9)
COUNT_OR_ZERO = Range(0, 10**9)
SHARE = Range(0, 1, open="high")
FRACTION = Range(0, 1, open="low")
RATE = Range(0, 1e3)
TAU = Range(1, 1e6)
PIXELS = Range(0, 65_536)

TIMED = (*EVENTS, *SEQUENCES)
NO_SEQUENCES = (*get_args(Images), *EVENTS)


Conditions = Mapping[str, Container[Any]]
"""Of a key: other keys, and their values. Keys that are joined by " and " have to have them together."""


def key(
    default: Any,
    doc: str = "",
    numbers: Range | None = None,
    *,
    only: Conditions = MappingProxyType({}),
    unless: Conditions = MappingProxyType({}),
    always: Any = None,
) -> Any:
    """A field, the numbers that it accepts, and its explanation, unless a docstring is below; `...`: must be given.

    It has an effect only where other keys have some of these values, and unless they have some of those. `always`: a
    value that may stand in every recipe.
    """
    default = dataclasses.MISSING if default is ... else default
    said = {"doc": doc, "numbers": numbers, "only": only, "unless": unless, "always": always}
    return dataclasses.field(default=default, metadata=said)


class Arguments(Mapping):
    """Keyword arguments of somebody else's function: texts, numbers, true, false, arrays and tables of them."""

    def __init__(self, given: Mapping[str, Any] = MappingProxyType({})) -> None:
        self._given = {name: _frozen(value) for name, value in given.items()}

    def __getitem__(self, name: str) -> Any:
        return self._given[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)

    def __hash__(self) -> int:
        return hash(frozenset(self._given.items()))

    def __repr__(self) -> str:
        return f"Arguments({self._given!r})"


def _frozen(value: Any) -> Any:
    """ValueError: TOML also has values that no function of a network takes."""
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    if isinstance(value, Mapping):
        return Arguments(value)
    if isinstance(value, str) or (type(value) is float and math.isfinite(value)):
        return value
    if type(value) is bool or (type(value) is int and abs(value) < 2**63):
        return value
    raise ValueError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the recipe, which checks each of its keys. Raises UserError.

    `_only`, `_unless`: as of each of its keys, see `key`.
    """

    path: ClassVar[str] = ""
    _only: ClassVar[Conditions] = MappingProxyType({})
    _unless: ClassVar[Conditions] = MappingProxyType({})

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            dotted, value = join(self.path, field.name), getattr(self, field.name)
            if dotted in KEYS:
                object.__setattr__(self, field.name, KEYS[dotted].check(value))
            elif dotted in TABLES and not isinstance(value, TABLES[dotted]):
                raise UserError(f"{dotted} = {value!r}: accepted: a {TABLES[dotted].__name__}")


class PartOptions(Table):
    """The keys of a part of one's own: a frozen, keyword-only dataclass, all of whose keys have defaults."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentationConfig(Table):
    """How training images and recordings of event cameras are changed; `auto`: as data.augment says."""

    path: ClassVar[str] = "data.augmentation"

    flip: bool | Literal["auto"] = key("auto", only={"data.name": EVENTS})
    """mirror half of the recordings"""
    roll: int | Literal["auto"] = key("auto", numbers=PIXELS, only={"data.name": EVENTS})
    """shift by up to this many pixels; what leaves at one side enters at the other"""
    cutout: int | Literal["auto"] = key("auto", numbers=PIXELS, unless={"data.name": SEQUENCES})
    """side in pixels of a square without events, or of the mean colour in images, where `auto` is 0"""
    erasing: float | Literal["auto"] = key("auto", numbers=Range(0, 1), unless={"data.name": TIMED})
    """probability of random erasing in images: a box of any size, shape and place in the mean colour; `auto`: 0.25 if
    data.augment is `strong`, else 0"""
    policy: Literal["auto", "none", "autoaugment", "randaugment"] = key(
        "auto", unless={"data.name": TIMED}
    )
    """operations on images after cropping and flipping: AutoAugment's policy for CIFAR-10, RandAugment, or none;
    `auto`: TrivialAugmentWide if data.augment is `strong`, else none"""
    operations: int = key(
        2, numbers=Range(1, 14), only={"data.augmentation.policy": ("randaugment",)}
    )
    """number of operations of `randaugment` per image"""
    magnitude: int = key(
        9, numbers=Range(0, 30), only={"data.augmentation.policy": ("randaugment",)}
    )
    """magnitude of the operations of `randaugment`"""
    crop_scale: tuple[float, ...] = key(
        (0.35, 1.0),
        numbers=FRACTION,
        unless={"data.name": (*ARRAYS, *TIMED), "data.augment": ("none",)},
    )
    """smallest and largest fraction of a photograph's area that a random crop takes"""
    delete: int = key(0, numbers=Range(0, 65_535), only={"data.name": EVENTS})
    """random temporal delete: train on time_steps minus this many frames, drawn for each recording, and test on all"""
    shift: int | Literal["auto"] = key("auto", numbers=PIXELS, unless={"data.name": NO_SEQUENCES})
    """sequences begin up to this many steps later or earlier; `auto`: time_steps / 16, or 0 if data.augment is
    `none`"""
    stretch: float | Literal["auto"] = key(
        "auto", numbers=SHARE, unless={"data.name": NO_SEQUENCES}
    )
    """sequences take up to this fraction more or less time; `auto`: 0.1, or 0 if data.augment is `none`"""
    mask_steps: int | Literal["auto"] = key(
        "auto", numbers=PIXELS, unless={"data.name": NO_SEQUENCES}
    )
    """up to this many steps of a sequence in a row are set to the mean; `auto`: time_steps / 8 if data.augment is
    `strong`, else 0"""
    mask_channels: int | Literal["auto"] = key(
        "auto", numbers=PIXELS, unless={"data.name": NO_SEQUENCES}
    )
    """up to this many channels of a sequence in a row are set to the mean; `auto`: an eighth of them if data.augment is
    `strong`, else 0"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableOfPart(Table):
    """A table that chooses a part by name. `options`: the keys of a part of one's own, if it has some."""

    options: Table | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        dotted = SELECTORS[self.path]
        part = own_part(dotted, getattr(self, dotted.partition(".")[2]))
        kind: Any = part.options if part and part.options else type(None)
        if self.options is None:
            object.__setattr__(self, "options", kind())
        elif not isinstance(self.options, kind):
            given = type(self.options).__name__
            raise UserError(f"{self.path}.options = a {given}: accepted: a {kind.__name__}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(TableOfPart):
    """The images, the sequences, or the recordings of event cameras."""

    path: ClassVar[str] = "data"

    name: Literal[Images, Events, Sequences] = key(...)
    """data set; `tiny_imagenet`: 200 classes at 64x64; `synthetic`: random images for benchmarks; `dvs_gesture` to
    `digits_dvs` are recordings of event cameras, the last three are sequences"""
    root: str = key("data")
    """folder of the data sets; `digits` and `synthetic` need none"""
    variant: Literal["full", "320px", "160px"] = key("320px", only={"data.name": ("imagenette",)})
    """archive of Imagenette: full size, or a shorter side of 320 or 160 pixels"""
    image_size: int = key(0, numbers=COUNT_OR_ZERO, unless={"data.name": SEQUENCES})
    """side in pixels of the images that the network sees; 0: the data set's, or that of an `imagefolder`'s images
    where all have one size below 224"""
    sequence: Literal["none", "rows", "columns", "pixels", "permuted"] = key(
        "none", unless={"data.name": TIMED}
    )
    """show images as sequences, [T, B, C]: a row or a column of pixels, of all colours, at each step (from the top, or
    from the left), or one pixel, row by row or in an order drawn by sequence_seed; time_steps is their number"""
    sequence_seed: int = key(0, numbers=Range(0, 2**63 - 1), only={"data.sequence": ("permuted",)})
    """seed of the order of `permuted`, one for all images"""
    augment: Literal["none", "standard", "strong"] = key("standard")
    """random changes of the training images: none, small shifts or crops, or more"""
    download: bool = key(True)
    """download missing data; false: missing data is an error"""
    workers: int | Literal["auto"] = key("auto", numbers=Range(0, 1024))
    """processes that load images; 0: the training process loads them"""
    broken: Literal["stop", "skip"] = key("stop", unless={"data.name": (*ARRAYS, *TIMED)})
    """image files that cannot be read: the first one that is met ends the run and is named, or all are looked for
    before training, named and left out"""
    train_images: int = key(0, numbers=COUNT_OR_ZERO)
    """train on a fixed subset of this many images; 0: all"""
    test_images: int = key(0, numbers=COUNT_OR_ZERO)
    """test on a fixed subset of this many images; 0: all"""
    validation: float | str = key(0.0, numbers=SHARE)
    """training images held out to choose weights by: a fraction of every class, the same for every seed, or the
    folder of an `imagefolder` or `eventfolder` that holds them; 0: none"""
    classes: int = key(10, numbers=Range(2, 1_000_000), only={"data.name": ("synthetic",)})
    """number of classes of `synthetic`"""
    split: Literal["official", "first100", "random90"] | str = key(
        "official", only={"data.name": (*EVENTS, "spoken_digits")}
    )
    """which recordings are tested on: those that the data set names, numbers 0 to 99 of each class, or a tenth of
    each class by split_seed; of `spoken_digits` `official`, or `speaker:NAME`, all of one speaker"""
    split_seed: int = key(
        0, numbers=Range(0, 2**63 - 1), only={"data.name": EVENTS, "data.split": ("random90",)}
    )
    """seed of `random90`"""
    bins: Literal["number", "time"] = key("number", only={"data.name": EVENTS})
    """time_steps bins of a recording: of equally many events, or equally long"""
    cut_ms: int = key(0, numbers=COUNT_OR_ZERO, only={"data.name": ("eventfolder", "dvs_biolab")})
    """cut each recording into parts of this many milliseconds, each with its label; a rest that is shorter is left out;
    0: whole recordings"""
    count: Literal["log", "clip", "raw"] = key("log", only={"data.name": EVENTS})
    """what the network sees of n events of a pixel and bin: ln(1 + n), 1 if any, or n"""
    format: Literal[
        "auto", "aedat2", "aedat3", "aedat4", "bin", "npy", "npz", "dat", "evt2", "evt3"
    ] = key("auto", only={"data.name": ("eventfolder", "digits_dvs")})
    """file format of `eventfolder`; `auto`: by ending and first bytes, of `digits_dvs` bin"""
    sensor: str = key("auto", only={"data.name": ("eventfolder",)})
    """pixels of the camera of `eventfolder`, for example 346x260 (width x height); `auto`: 128x128 of AEDAT 2 files"""
    cache: str = key("auto", only={"data.name": (*EVENTS, "cifar10")})
    """folder for frames of events and small images, made once; `auto`: event_frames or .decoded_images in data.root"""
    augmentation: AugmentationConfig = dataclasses.field(default_factory=AugmentationConfig)

    @property
    def split_words(self) -> str:
        """Which recordings are tested on, for every table and title; "" for images."""
        if self.name not in (*EVENTS, "spoken_digits"):
            return ""
        return f"split {self.split}" + (
            f", seed {self.split_seed}" if self.split == "random90" else ""
        )

    @property
    def label(self) -> str:
        """The data set, with the split where there may be several."""
        return f"{self.name} ({self.split_words})" if self.split_words else self.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(TableOfPart):
    """The network around the neurons."""

    path: ClassVar[str] = "model"

    name: Literal[ResNet, SmallResNet, PlainNet, PooledNet] = key(...)
    """architecture; `sequence`: linear layers, of sequences alone; `plain` (convolutions), `mlp` (fully connected),
    `vggsnn`, `vgg8`, `vgg11`, `vgg16` and `csnn` (of PSN) have no skip connections; `resnet19`: tdBN's, with two fully
    connected layers; `net7b`: seven small blocks, each halving the image; `MODULE:NAME`: any network that a function or
    class makes, `spikingjelly:NAME` one of SpikingJelly's (docs/own_code.md)"""
    arguments: Arguments = key(Arguments(), only={"model.name": FOREIGN})  # noqa: RUF009
    """keyword arguments of the function or class that `MODULE:NAME` names"""
    input: Literal["auto", "time_first", "images"] = key("auto", only={"model.name": FOREIGN})
    """what the network of `MODULE:NAME` takes: [T, B, C, H, W] (of sequences [T, B, C]), or [B, C, H, W]; `auto`: found
    out by a call"""
    block: Literal[Block] = key("ms", unless={"model.name": WITHOUT_BLOCKS})
    """residual block: neuron(BN(conv) + shortcut), SEW-ResNet, MS-ResNet, or pre-activation with spikes in the
    shortcut"""
    stem: Literal["auto", "imagenet", "strided", "cifar"] = key(
        "auto", only={"model.name": get_args(ResNet)}
    )
    """first layer of resnet18 to resnet101: 7x7 and max-pool, 7x7 and a stride in the first block in place of the
    pool, or 3x3; `auto`: by image size, `imagenet` or `cifar`"""
    norm: Literal["bn", "step_bn", "tdbn", "tebn", "none"] = key(
        "bn", unless={"model.name": FOREIGN}
    )
    """normalisation of the input currents: batch norm over time and batch, of each time step by its own statistics,
    tdBN (scaled by the threshold), TEBN (a gain per time step), or none; in the ANN twin `bn` or none"""
    norm_gain: float = key(
        1.0, numbers=RATE, unless={"model.name": FOREIGN, "model.norm": ("none",)}
    )
    """what the weight of every norm starts at, except where residual_gain says otherwise"""
    depth: int = key(20, numbers=Range(1, 10_000), only={"model.name": CHAINS})
    """number of layers of `plain`, `mlp` and `sequence` before the classifier"""
    delays: int = key(0, numbers=PIXELS, only={"model.name": ("sequence",)})
    """longest delay, in steps, of the synapses of `sequence`, each of which learns its own, as a dilated convolution in
    time with learnable positions (Hammouamri et al. 2023); 0: none has one"""
    recurrent: bool = key(False, only={"model.name": ("sequence",)})
    """the spikes of each layer of `sequence` come back to it a step later, by a matrix; with `relu` its rates do, which
    makes a plain recurrent network"""
    width: int = key(0, numbers=PIXELS, unless={"model.name": FOREIGN})
    """channels of the first stage, or features of `mlp` and `sequence`; 0: the default (64 for resnet18 to resnet101,
    `vggsnn`, `vgg11` and `vgg16`, 16 for the smaller ResNets and `plain`, 32 for `vgg8`, 128 for resnet19, `mlp` and
    `sequence`, 256 for `csnn`)"""
    residual_gain: float | Literal["auto"] = key(
        "auto",
        numbers=RATE,
        only={"model.name": BLOCK_NETS, "model.block": CLOSABLE},
        unless={"model.norm": ("none",)},
    )
    """initial weight of the last norm of every `plain`, `sew` and `ms` block; 0 (zero-initialised): each block starts
    as its shortcut, and the forward signal reaches the last layer at any depth; `auto`: 0, but 1 / sqrt(number of
    blocks) for `ilif`, and else 1 for `sew`"""
    residual_bias: float | Literal["auto"] = key(
        "auto",
        numbers=Range(-1e3, 1e3),
        only={"model.name": BLOCK_NETS, "model.block": ("plain",)},
        unless={"model.norm": ("none",)},
    )
    """initial bias of the last norm of a `plain` block: how far a spike of the shortcut lifts the current above the
    threshold; `auto`: as far as a silent neuron is below it at the last step"""
    start: Literal["auto", "kaiming", "identity"] = key("auto", only={"model.name": SKIPLESS})
    """weights of layers with as many outputs as inputs, but the first: Kaiming normal, or the identity plus a tenth of
    that, with which 50 layers without skip connections train, and PSNs that leak by a half at each step; `auto`:
    `identity` for `plain` and `mlp`"""
    shortcut_gradient: Literal["surrogate", "straight_through"] = key(
        "straight_through", only={"model.name": BLOCK_NETS, "model.block": ("plain",)}
    )
    """the gradient of a `plain` block's shortcut at the neuron that it enters: multiplied by the surrogate, as for
    any current, or passed around the neuron unchanged; the spikes are the same"""
    shortcut: Literal["currents", "spikes"] = key(
        "currents", only={"model.name": BLOCK_NETS, "model.block": ("ms",)}
    )
    """what an `ms` block's shortcut multiplies by weights where the shape changes: the currents that enter the block,
    as in its authors' code, or the spikes of the block's first neuron, so that only the first layer reads numbers"""
    dropout: float = key(0.0, numbers=SHARE, unless={"model.name": FOREIGN})
    """fraction of the classifier's inputs that training sets to zero, the same ones at all time steps of an image"""
    fused: bool = key(True)
    """norm, shortcut and neuron in one operator; false: separately"""
    memory: Literal["standard", "packed", "recomputed"] = key("standard")
    """`packed` stores spikes as single bits until backward: same gradients, less memory; `recomputed`, of networks
    without skip connections, also multiplies them by the weights again in place of storing currents: less, slower"""
    checkpoint_blocks: bool = key(False, only={"model.name": BLOCK_NETS})
    """recompute each residual block in backward: same gradients, less memory, slower"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SurrogateConfig(Table):
    """What replaces ds/dh in backward. Height and width are two separate numbers."""

    path: ClassVar[str] = "neuron.surrogate"
    _unless: ClassVar[Conditions] = {"model.name": FOREIGN}

    shape: Literal["fast_sigmoid", "atan", "sigmoid", "triangle", "rectangle", "gaussian"] = key(
        "atan"
    )
    """phi in height * phi((h - threshold) / width), where phi(0) = 1"""
    height: float = key(1.0, numbers=Range(0, 1e6, open="low"))
    """the surrogate's value at the threshold"""
    width: float = key(0.3, numbers=Range(1e-6, 1e6))
    """half-width of the surrogate, in units of the membrane potential; ATan(2) of other libraries is 0.318, a fast
    sigmoid of slope 25 is 0.04, a rectangle of width 1 is 0.5 (docs/words.md)"""


if TYPE_CHECKING:
    Kind = str
else:
    Kind = Literal[(*kinds(), "relu")]
_SAID = "; ".join(
    [*(f"`{kind.name}`: {kind.says}" for kind in kinds().values()), "`relu`: the ANN twin"]
)


def _with_keys_of_kinds(table: type) -> type:
    """The table with what each kind of neuron has of its own, behind `tau`: its class declares them (`kinds`)."""
    own = {name: said for kind in kinds().values() for name, said in kind.own.items()}
    before = dict(table.__annotations__)
    behind = {name: before.pop(name) for name in list(before)[list(before).index("tau") + 1 :]}
    table.__annotations__ = before | {name: type(said[0]) for name, said in own.items()} | behind
    for name, (default, ends, doc) in own.items():
        only = {"neuron.kind": with_key(name)}
        setattr(table, name, key(default, doc, numbers=Range(*ends), only=only))
    return table


@dataclasses.dataclass(frozen=True, kw_only=True)
@_with_keys_of_kinds
class NeuronConfig(TableOfPart):
    """The neuron of every layer."""

    path: ClassVar[str] = "neuron"
    _unless: ClassVar[Conditions] = {"model.name": FOREIGN}

    kind: Kind = key("lif", _SAID)  # noqa: RUF009 - a field, as every key
    tau: float = key(
        2.0,
        f"time constant of {joined(LEAKY)}: 1 - 1/tau of the membrane stays each step",
        numbers=TAU,
        only={"neuron.kind": (*LEAKY, "relu")},
    )
    decay_input: bool = key(
        False,
        f"multiply the input current of {joined(with_key('decay_input'))} by 1/tau",
        only={"neuron.kind": (*with_key("decay_input"), "relu")},
    )
    v_threshold: float = key(1.0, numbers=Range(0, 1e6, open="low"))
    """membrane potential at which a neuron fires"""
    threshold_learnt: bool | Literal["channel"] = key(False, unless={"neuron.kind": PARALLEL})
    """v_threshold is where training begins: each layer learns its own, or with `channel` each channel"""
    reset: Literal["auto", "hard", "soft", "none"] = key(
        "auto",
        "a spike sets the membrane to v_reset, lowers it by v_threshold, or does neither; `auto`: "
        f"soft for {joined(reset_by('soft'))}, none for {joined(reset_by('none'))}, hard for the others",
    )
    v_reset: float = key(
        0.0, numbers=Range(-1e6, 1e6), only={"neuron.reset": ("auto", "hard")}, always=0
    )
    """potential after a hard reset, below v_threshold; 0 for other resets"""
    detach_reset: bool = key(True, unless={"neuron.reset": ("none",), "neuron.kind": PARALLEL})
    """no gradient through a hard or soft reset"""
    surrogate: SurrogateConfig = dataclasses.field(default_factory=SurrogateConfig)

    if TYPE_CHECKING:

        def __getattr__(self, key: str) -> Any:
            """One that a kind declares."""

    @property
    def resets_by(self) -> str:
        """hard, soft or none: what `auto` stands for."""
        if self.reset != "auto":
            return self.reset
        found = kinds().get(self.kind)
        return found.resets[0] if found and found.resets else "hard"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig(TableOfPart):
    """What is minimised."""

    path: ClassVar[str] = "loss"

    kind: Literal[Loss] = key("cross_entropy")
    """cross-entropy of what is read, or TET: the mean of the losses of all time steps"""
    read: Literal["mean", "last"] = key("mean")
    """the answer: the mean of the logits over time, or those of the last step; what the loss, the score and `predict`
    read. TET's loss is of every step either way"""
    label_smoothing: float = key(0.0, numbers=SHARE)
    """probability that is distributed evenly over all classes"""
    class_weights: tuple[float, ...] | Literal["none", "balanced"] = key(
        "none", numbers=Range(0, 1e6)
    )
    """`balanced`: classes are weighted inversely to their number of training images; or a weight for each class"""
    teacher: str = key(NONE)
    """run folder of a teacher, whose predictions the network also learns; `-`: none"""
    teacher_weight: float = key(0.5, numbers=FRACTION, unless={"loss.teacher": (NONE,)})
    """fraction of the loss that is the distance to the teacher's predictions"""
    temperature: float = key(2.0, numbers=Range(0.1, 100), unless={"loss.teacher": (NONE,)})
    """what logits are divided by before they are compared with the teacher's"""
    tet_lambda: float = key(0.05, numbers=Range(0, 1), only={"loss.kind": ("tet",)})
    """weight of TET's pull of each logit towards 1"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Table):
    """How it is minimised, and on what."""

    path: ClassVar[str] = "train"

    epochs: int = key(1, numbers=COUNT)
    """passes over the training images"""
    init_from: str = key(NONE)
    """weights to begin with, as far as they fit: a run folder, a checkpoint or state_dict file (also of
    SpikingJelly's spiking ResNets), or `torchvision:NAME` for a pretrained ANN; `-`: the recipe's own"""
    freeze: tuple[str, ...] = key(())
    """parameters that are not trained: names of layers, or patterns such as `layer1.*`; batch norms with frozen
    weights also keep their running statistics"""
    ema: float = key(0.0, numbers=SHARE)
    """decay of an exponential moving average of the weights, tested beside them; 0: none"""
    mixup: float = key(0.0, numbers=Range(0, 1000))
    """alpha of mixup: neighbours in a batch are blended in pairs, their labels in the same proportion; 0: none"""
    cutmix: float = key(0.0, numbers=Range(0, 1000))
    """alpha of CutMix: the images of a pair exchange a box; 0: none. With `mixup` as well, each pair gets one of the
    two at random"""
    mix_epochs: int = key(0, numbers=COUNT_OR_ZERO, unless={"train.mixup and train.cutmix": (0,)})
    """epochs in which pairs are mixed, from the first; 0: all of them"""
    decay_norms: bool = key(False)
    """also decay biases, norms, gains and leaks, as the code of many papers does"""
    batch_size: int = key(64, numbers=COUNT)
    """images per optimizer step, over all devices"""
    accumulate: int = key(1, numbers=COUNT)
    """micro-batches per step, a divisor of batch_size"""
    micro_batch: int | Literal["auto"] = key(0, numbers=COUNT_OR_ZERO)
    """images of a micro-batch on one device, instead of `accumulate`; 0: use `accumulate`; `auto`: the largest that
    fits in a GPU's memory. Batch norm takes its statistics from one micro-batch"""
    max_steps: int = key(0, numbers=COUNT_OR_ZERO)
    """stop after this many steps; 0: no limit"""
    optimizer: Literal["sgd", "adamw", "muon"] = key("adamw")
    """torch's, or Muon for the weights of hidden layers; biases and norms do not decay, unless `decay_norms` says so"""
    lr: float | Literal["auto"] = key("auto", numbers=Range(0, 1e3, open="low"))
    """peak learning rate; `auto`: 0.01 for ResNets, 2e-3 for networks without skip connections, 1e-3 for others; in
    sgd 0.3, 0.1 and 0.1, in muon as in adamw"""
    weight_decay: float = key(0.0, numbers=RATE)
    """L2 penalty of sgd, decoupled in the others"""
    momentum: float = key(0.9, numbers=SHARE, only={"train.optimizer": ("sgd", "muon")})
    """momentum of sgd, and of muon"""
    eps: float = key(1e-8, numbers=FRACTION, only={"train.optimizer": ("adamw",)})
    """what adamw adds to the size of a weight's gradient before dividing by it: gradients smaller than this are not
    normalised"""
    schedule: Literal["one_cycle", "cosine", "constant", "step"] = key("one_cycle")
    """learning rate: cosine up, cosine down; linear up, cosine down; linear up, then constant; linear up, then lower
    after each of `milestones`"""
    min_lr: float = key(0.0, numbers=RATE, only={"train.schedule": ("one_cycle", "cosine")})
    """where the rate of `one_cycle` and `cosine` ends; 0: at `lr` / 250,000, and at 0"""
    warmup_lr: float = key(0.0, numbers=RATE, unless={"train.warmup": (0,)})
    """where the rate begins to rise; 0: at `lr` / 25 (`one_cycle`), or at `lr` divided by the number of steps of the
    rise"""
    milestones: tuple[float, ...] = key(
        (0.5, 0.75), numbers=SHARE, only={"train.schedule": ("step",)}
    )
    """fractions of all steps after which the rate of `step` is multiplied by `gamma`"""
    gamma: float = key(0.1, numbers=FRACTION, only={"train.schedule": ("step",)})
    """factor of `step` at each milestone"""
    warmup: float = key(0.1, numbers=SHARE)
    """fraction of all steps in which the learning rate rises"""
    clip_grad_norm: float | Literal["auto"] = key("auto", numbers=COUNT_OR_ZERO)
    """largest gradient norm; 0: no clipping; `auto`: 1 under SGD, but for nets of MS or SEW blocks, else 0"""
    nonfinite: Literal["stop", "skip"] = key("stop")
    """at a loss or gradient that is not finite: end the run, or skip the step; either way the weights stay as they
    were, and the error names the layer and time step where it arose"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = key("auto")
    """dtype of convolutions and activations (autocast); membranes and weights stay fp32; `auto`: bf16 where the
    processor has instructions for it, else fp32, or fp16 on a GPU; fp16 is for GPUs, and `auto` on a CPU"""
    sync_bn: bool = key(False, unless={"model.name": FOREIGN})
    """batch norm's statistics over all devices together; no effect on a single device; refused for a network of
    others, whose norms are its own"""
    compile: bool = key(False)
    """compile the model with torch.compile"""
    graph: bool | Literal["auto"] = key("auto")
    """on a GPU, replay the whole step as a CUDA graph; `auto`: where its first step equals the eager one and takes
    less time; no effect on a CPU, on several devices and in fp16"""
    device: Literal["auto", "cpu", "cuda"] = key("auto")
    """`auto`: a GPU if there is one"""
    threads: int = key(0, numbers=Range(0, 4096))
    """CPU threads per operation; 0: one for each processor that is free"""
    log_every: int = key(10, numbers=COUNT)
    """steps between rows of metrics.jsonl"""
    deterministic: bool = key(False)
    """only algorithms that give the same bits in every run"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MonitorConfig(Table):
    """The gradient monitor."""

    path: ClassVar[str] = "monitor"

    enabled: bool = key(True)
    """record gradient norms by layer and time step, at each logged step"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Table):
    """What is saved during the run."""

    path: ClassVar[str] = "checkpoint"

    every: int = key(0, numbers=COUNT_OR_ZERO)
    """steps between checkpoints; 0: at the end of each epoch"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PluginsConfig(Table):
    """Plugins: see docs/own_code.md."""

    path: ClassVar[str] = "plugins"

    modules: tuple[str, ...] = key(())
    """Python modules, or files relative to the recipe, that register plugins"""

    def __post_init__(self) -> None:
        super().__post_init__()
        parts.load(self.modules)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Table):
    """A whole run. `name`, the file's stem, is not a key. Equal recipes compare and hash equal."""

    name: str
    seed: int = key(0, numbers=Range(0, 2**63 - 1))
    """seed of weights, data order and augmentation"""
    time_steps: int = key(4, numbers=Range(1, 65_536))
    """T, number of steps for which an image is shown, of frames of a recording, or of a sequence, to which shorter ones
    are padded"""
    data: DataConfig
    model: ModelConfig
    neuron: NeuronConfig = dataclasses.field(default_factory=NeuronConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    monitor: MonitorConfig = dataclasses.field(default_factory=MonitorConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    plugins: PluginsConfig = dataclasses.field(default_factory=PluginsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.name, str) or not self.name or set(self.name) & set("/\\\0"):
            raise UserError(f"recipe name {self.name!r}: accepted: a file name without its ending")
        for part in self.own_parts():
            if not parts.provided(part, self.plugins.modules):
                raise UserError(
                    f'{part.selector} = "{part.name}" is registered by {part.home}, which the recipe '
                    f'does not list; accepted: plugins.modules = ["{part.home}"]'
                )
        values = self.values()
        for dotted, reason in idle(values).items():
            if values[dotted] != KEYS[dotted].default:
                raise UserError(no_effect(dotted, values[dotted], reason))
        for message in rules.contradictions(values, self.peak_lr):
            raise UserError(message)

    @property
    def peak_lr(self) -> float:
        """The highest learning rate, where train.lr may be `auto`."""
        if not isinstance(self.train.lr, str):
            return self.train.lr
        of_blocks, without_skips, others = RATES[self.train.optimizer]
        if self.model.name in BLOCK_NETS:
            return of_blocks
        return without_skips if self.model.name in SKIPLESS else others

    @property
    def clipping(self) -> float:
        """The largest gradient norm, where train.clip_grad_norm may be `auto`; 0: any."""
        if not isinstance(self.train.clip_grad_norm, str):
            return self.train.clip_grad_norm
        free = self.model.name in BLOCK_NETS and self.model.block in ("ms", "sew")
        return 0.0 if free else CLIPPING[self.train.optimizer]

    @property
    def names_code(self) -> bool:
        """Whether it names somebody else's code, so that a run of it is loaded with consent only."""
        foreign = ":" in self.model.name and self.model.name != parts.FROM_NIR
        return bool(self.plugins.modules) or foreign

    def values(self) -> dict[str, Any]:
        """{dotted key: value}; keys of parts that the recipe does not use have their defaults."""
        values = {}
        for dotted, spec in KEYS.items():
            if not issubclass(spec.table, PartOptions):
                values[dotted] = attrgetter(dotted)(self)
            else:
                options = getattr(self, dotted.partition(".")[0]).options
                mine = type(options) is spec.table
                values[dotted] = getattr(options, spec.field.name) if mine else spec.default
        return values

    def effective(self) -> dict[str, Any]:
        """{dotted key: value} of the keys that have an effect; the others are at their defaults."""
        values = self.values()
        without = idle(values)
        return {dotted: value for dotted, value in values.items() if dotted not in without}

    def overrides(self) -> list[str]:
        """`key=value` for each key with an effect that is not at its default, as a command takes it."""
        return [
            f"{dotted}={value if isinstance(value, str) else whole(value)}"
            for dotted, value in self.effective().items()
            if value != KEYS[dotted].default
        ]

    def to_toml(self) -> str:
        """Every key that has an effect, always in the same order; `recipe_from_toml` gives the recipe back."""
        lines, table = [], ""
        for dotted, value in self.effective().items():
            path, _, name = dotted.rpartition(".")
            if path != table:
                lines += ["", f"[{path}]"]
                table = path
            lines.append(f"{name} = {whole(value)}")
        return "\n".join(lines) + "\n"

    def own_parts(self) -> list[parts.Part]:
        """The parts of one's own that it uses."""
        found = (own_part(dotted, attrgetter(dotted)(self)) for dotted in SELECTORS.values())
        return [part for part in found if part is not None]


def idle(values: Mapping[str, Any]) -> dict[str, str]:
    """The keys of {dotted key: value} without effect, each with the reason: a key that is never read misleads.

    Those that only the ANN twin ignores are allowed, so that a recipe and its twin differ in one word.
    """
    found = ((dotted, spec.reader(values)) for dotted, spec in KEYS.items() if dotted in values)
    return {
        dotted: f"{reader} is {shown(values[reader])}{_WHY.get(dotted, '')}"
        for dotted, reader in found
        if reader
    }


_WHY = {
    "train.sync_bn": ", whose batch norms are its own: each device's images are normalised by themselves"
}
"""More of a reason, by the key that has no effect."""


def no_effect(dotted: str, value: Any, reason: str) -> str:
    return f"{dotted} = {shown(value)} has no effect because {reason}; leave {dotted} out"


SELECTORS = {dotted.partition(".")[0]: dotted for dotted in parts.KINDS.values()}
"""The key that chooses a part, by the table that it is in."""


def own_part(dotted: str, name: str) -> parts.Part | None:
    """The part of one's own that a key names; None for built-in ones."""
    kind = parts.KIND_OF.get(dotted)
    return None if kind is None or name in KEYS[dotted].words else parts.find(kind, name)


def register_part(part: parts.Part) -> None:
    """Registers a part and its keys, which recipes then accept. UserError: a name taken, options that are no keys."""
    if part.name in KEYS[part.selector].words and not part.built_in:
        raise UserError(f'{part.selector} = "{part.name}" is built in; accepted: another name')
    keys = part.options
    if keys is not None and not (
        isinstance(keys, type)
        and issubclass(keys, PartOptions)
        and "__dataclass_fields__" in vars(keys)
    ):
        raise UserError(
            f'{part.selector} = "{part.name}": options = {keys!r}: accepted: a class of keys, '
            "class Keys(PartOptions) under @dataclasses.dataclass(frozen=True, kw_only=True)"
        )
    parts.register(part)
    if part.options is not None:
        part.options.path, part.options._only = part.table, {part.selector: (part.name,)}
        KEYS.update(_specs(part.options))
        TABLES[part.table] = part.options


def join(path: str, name: str) -> str:
    """The dotted key `name` of the table `path`; the top level has the path ""."""
    return f"{path}.{name}" if path else name


NOUNS = {
    bool: "true or false",
    int: "an integer {}",
    float: "a number {}",
    str: "non-empty text without NUL",
    tuple[str, ...]: "an array of strings",
    tuple[float, ...]: "an array of numbers {}",
    Arguments: "a table of strings, numbers, true, false and arrays of them",
}
"""What a key may be, in words; {}: its range."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """What one key accepts: values of some of `NOUNS`, and some words."""

    dotted: str
    table: type[Table]
    field: dataclasses.Field
    kinds: tuple[Any, ...]
    words: tuple[str, ...]

    @property
    def required(self) -> bool:
        return self.field.default is dataclasses.MISSING

    @property
    def default(self) -> Any:
        return None if self.required else self.field.default

    @property
    def doc(self) -> str:
        """Its explanation: that of `key`, or the docstring below the field."""
        table: Any = self.table
        return self.field.metadata["doc"] or _docstrings(table).get(self.field.name, "")

    def reader(self, values: Mapping[str, Any]) -> str:
        """The key with which it has no effect among {dotted key: value}; "" where it has."""
        own: Any = self.field.metadata
        found = [(self.table._only, True), (self.table._unless, False)]
        if own["always"] is None or values[self.dotted] != own["always"]:
            found += [(own["only"], True), (own["unless"], False)]
        for conditions, wanted in found:
            for keys, accepted in conditions.items():
                dotted = keys.split(" and ")
                if all(values[one] in accepted for one in dotted) != wanted:
                    return dotted[0]
        return ""

    @property
    def accepted(self) -> str:
        """What is accepted, in words, for errors and for docs/recipes.md."""
        return self._accepts(self.words)

    def _accepts(self, words: tuple[str, ...]) -> str:
        said = [NOUNS[kind].format(self.field.metadata["numbers"]) for kind in self.kinds]
        if words:
            said.append(", ".join(f'"{word}"' for word in words))
        return (", or " if any("," in part for part in said) else " or ").join(said)

    def check(self, value: Any) -> Any:
        """The value as its field stores it: integers become floats where a number is accepted. UserError."""
        kind = parts.KIND_OF.get(self.dotted) if isinstance(value, str) else None
        if isinstance(value, str) and (value in self.words or (kind and parts.find(kind, value))):
            return value
        for one in self.kinds:
            with contextlib.suppress(ValueError):
                return _stored(one, value, self.field.metadata["numbers"])
        words = self.words + (tuple(parts.names(kind)) if kind else ())
        given = short(value) if isinstance(value, str) else ""
        meant = _MEANT.get(given.lower())
        near = [meant] if meant in words else difflib.get_close_matches(given, words)
        tip = f'did you mean "{near[0]}"? ' if near else ""
        raise UserError(f"{self.dotted} = {shown(value)}: {tip}accepted: {self._accepts(words)}")


_MEANT = {"gpu": "cuda"}
"""What a word stands for that is nearer to another one."""


@cache
def _docstrings(table: Any) -> dict[str, str]:
    """The docstrings below the fields of a table, in one line; Python itself drops them."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(table))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(str(below.value.value).split())
        for field, below in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
    }


def _stored(kind: Any, value: Any, numbers: Range) -> Any:
    """The value as a field of that kind stores it. ValueError: it is of another one."""
    if kind is Arguments and isinstance(value, Mapping):
        return Arguments(value)
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_stored(get_args(kind)[0], item, numbers) for item in value)
    if kind is bool and type(value) is bool:
        return value
    # not isinstance: to Python, a boolean is an integer
    if kind in (int, float) and type(value) in (int, kind) and value in numbers:
        return kind(value)
    # no path may hold NUL, and no file a lone surrogate
    if (
        kind is str
        and isinstance(value, str)
        and value
        and not re.search("[\0\ud800-\udfff]", value)
    ):
        return value
    raise ValueError


def _specs(table: type[Table]) -> Iterator[tuple[str, Spec]]:
    hints = get_type_hints(table)
    for field in dataclasses.fields(table):
        if "doc" in field.metadata:
            hint, dotted = hints[field.name], join(table.path, field.name)
            choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
            kinds = tuple(one for one in choices if get_origin(one) is not Literal)
            words = tuple(w for c in choices if get_origin(c) is Literal for w in get_args(c))
            yield dotted, Spec(dotted, table, field, kinds, words)
    for hint in hints.values():  # subtables follow the keys, as TOML asks
        if isinstance(hint, type) and issubclass(hint, Table):
            yield from _specs(hint)


KEYS: dict[str, Spec] = dict(_specs(Recipe))
TABLES: dict[str, type[Table]] = {spec.table.path: spec.table for spec in KEYS.values()}
