"""The tables of docs/gradient_flow.md and its log, and the numbers of the page's sentences, from the rows.

    python studies/gradient_flow/tables.py     # writes the tables; names every number of a sentence that the rows deny

A cell is a training, or several seeds of it, found in rows.csv by its settings. Sentences are
written by hand; `facts` makes the words in them that hold numbers, which must stand in the page as they are.
"""

import csv
import math
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from studies.pages import filled, unsaid

HERE = Path(__file__).parent
ROWS = HERE / "rows.csv"
PAGES = (HERE.parents[1] / "docs" / "gradient_flow.md", HERE / "log.md")
DEFAULTS = {  # of cells.toml, and what "auto" stands for there
    "model.name": "resnet20",
    "train.max_steps": "600",
    "train.lr": "0.002",
    "train.optimizer": "adamw",
    "time_steps": "4",
    "seed": "0",
    "neuron.surrogate.width": "0.3",
    "model.start": "identity",
    "model.shortcut_gradient": "straight_through",
    "model.residual_bias": "0.348",
    "model.residual_gain": "0",  # but for I-LIF; rows of SEW blocks say it
}
# 97.5 % of Student's t, by degrees of freedom from 1
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
STUDENT += (2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)
STUDENT += (2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)
STUDENT += (2.040, 2.037, 2.035, 2.032, 2.030, 2.028, 2.026, 2.024, 2.023, 2.021)
STUDENT += (2.020, 2.018, 2.017, 2.015, 2.014, 2.013, 2.012, 2.011, 2.010, 2.009)
STUDENT += (2.008, 2.007, 2.006, 2.005, 2.004, 2.003, 2.002, 2.002, 2.001, 2.000)
STUDENT += (2.000, 1.999, 1.998, 1.998, 1.997, 1.997, 1.996, 1.995, 1.995, 1.994)
STUDENT += (1.994, 1.993, 1.993, 1.993, 1.992, 1.992, 1.991, 1.991, 1.990, 1.990)
Key = frozenset[tuple[str, str]]
Row = dict[str, str]


def key(settings: str) -> Key:
    """A row's settings, however they were written: without defaults, numbers as numbers."""
    words = dict(word.split("=", 1) for word in settings.split())
    words.pop("train.epochs", None)  # the steps say it
    defaults = DEFAULTS | ({"model.residual_gain": ""} if "neuron.kind=ilif" in settings else {})
    found = {}
    for name, value in words.items():
        try:
            found[name] = f"{float(value):g}"
        except ValueError:
            found[name] = value
    return frozenset(item for item in found.items() if defaults.get(item[0]) != item[1])


class Rows:
    """The rows by their settings. KeyError: no row has them."""

    def __init__(self, path: Path = ROWS) -> None:
        with path.open(newline="", encoding="utf-8") as file:
            self.rows: list[Row] = list(csv.DictReader(file))
        drawn = ("clinic", "fresh", "cured", "group")
        self.by_key = {key(r["settings"]): r for r in self.rows if r["group"] not in drawn}

    def row(self, settings: str) -> Row:
        found = self.by_key.get(key(settings))
        if found is None:
            raise KeyError(f"{ROWS.name} has no row of {settings!r}")
        return found

    def percent(self, settings: str, column: str = "validation") -> float:
        return 100 * float(self.row(settings)[column])

    def has(self, settings: str) -> bool:
        return key(settings) in self.by_key

    def seeds(self, settings: str, column: str = "validation") -> list[float]:
        """Of the seeds 0, 1, 2 that were trained."""
        return list(self.by_seed(settings, column).values())

    def by_seed(self, settings: str, column: str = "validation") -> dict[int, float]:
        """KeyError: none was trained."""
        each = {seed: f"{settings} seed={seed}" for seed in range(3)}
        found = {seed: self.percent(one, column) for seed, one in each.items() if self.has(one)}
        return found or {0: self.percent(settings, column)}

    def shown(self, settings: str, column: str = "validation") -> str:
        return ", ".join(one(value) for value in self.seeds(settings, column))

    def at_best_rate(self, settings: str, rates: Iterable[str]) -> str:
        """Settings with the rate of the highest accuracy of held-out images with seed 0."""
        each = (f"{settings} train.lr={rate}" for rate in rates)
        return max(filter(self.has, each), key=self.percent)


def one(value: float) -> str:
    """With one decimal, halves away from zero as in a table by hand: rows have two."""
    return f"{value + math.copysign(1e-9, value):.1f}"


S = "data.image_size=16"
R56, R110 = f"{S} model.name=resnet56", f"{S} model.name=resnet110"
R50 = f"{S} model.name=resnet50 model.stem=cifar train.lr=1e-2 train.max_steps=400"
USUAL, SEW, MS = "model.residual_gain=1", "model.block=sew", "model.block=ms"
PLAIN_USUAL = f"{USUAL} model.residual_bias=0 model.shortcut_gradient=surrogate"
TWIN = "neuron.kind=relu model.residual_bias=0 model.residual_gain=0"
FASHION = "data.name=fashion_mnist data.image_size=28"
SMALL = "data.name=fashion_mnist data.image_size=14 train.max_steps=300"
CHAIN = f"{SMALL} model.name=mlp model.width=64"
IDENTITY = "model.start=identity neuron.surrogate.width=0.3"
CONV = f"{SMALL} model.name=plain model.width=16"
LONG = "train.lr=1e-2 train.max_steps"

START = (
    ("linear classifier, best of two rates", f"net=linear {S} train.lr=1e-2"),
    ("one hidden layer of 128, best of two rates", f"net=hidden {S} train.lr=6e-3"),
    ("plain blocks, usual start", f"{R56} train.lr=6e-3 {PLAIN_USUAL}"),
    ("the same with tdBN", f"{R56} train.lr=6e-3 {PLAIN_USUAL} model.norm=tdbn"),
    ("the same with TEBN", f"{R56} train.lr=6e-3 {PLAIN_USUAL} model.norm=tebn"),
    ("plain blocks from zero, usual gradient", f"{R56} train.lr=6e-3 model.shortcut_gradient=surrogate"),
    ("plain blocks: **default**", f"{R56} train.lr=6e-3"),
    ("SEW blocks from zero", f"{R56} {SEW} train.lr=6e-3"),
    ("SEW blocks: **default**", f"{R56} {SEW} train.lr=6e-3 {USUAL}"),
    ("MS blocks, usual start", f"{R56} {MS} train.lr=6e-3 {USUAL}"),
    ("MS blocks: **default**", f"{R56} {MS} train.lr=6e-3"),
    ("ANN twin", f"{R56} {TWIN} train.lr=6e-3"),
    ("ResNet-110, plain, usual start", f"{R110} train.lr=6e-3 {PLAIN_USUAL}"),
    ("ResNet-110, plain: **default**", f"{R110} train.lr=6e-3"),
    ("ResNet-110, MS, rate 1e-2: usual start", f"{R110} {MS} train.lr=1e-2 {USUAL}"),
    ("ResNet-110, MS, rate 1e-2: **default**", f"{R110} {MS} train.lr=1e-2"),
    ("ResNet-50, 400 steps at 1e-2, plain, usual start", f"{R50} {PLAIN_USUAL}"),
    ("the same: **default**", R50),
    ("the same, SEW from zero", f"{R50} {SEW}"),
    ("the same, SEW: **default**", f"{R50} {SEW} {USUAL}"),
    ("the same, MS, usual start", f"{R50} {MS} {USUAL}"),
    ("the same, MS: **default**", f"{R50} {MS}"),
)  # fmt: skip
SMALL_CIFAR = "data.name=cifar10 data.image_size=16"
CIFAR = (
    "data.name=cifar10 data.image_size=32 time_steps=2 "
    "train.batch_size=64 train.max_steps=1500 train.precision=bf16"
)
CIFAR_RATES = ("1e-3", "2e-3", "3e-3", "6e-3", "1e-2")
AUTHORS_MS = (
    f"{MS} model.residual_gain=0 model.norm_gain=0.5 neuron.tau=1.3333333333333333 "
    "neuron.v_threshold=0.5 neuron.surrogate.shape=rectangle neuron.surrogate.width=0.5"
)
ON_CIFAR = (
    ("linear classifier", "net=linear"),
    ("one hidden layer of 128", "net=hidden"),
    ("plain blocks, usual start", PLAIN_USUAL),
    ("the same, heads as in Take A Shortcut Back", f"heads=linear {PLAIN_USUAL}"),
    ("plain blocks: **default**", ""),
    ("SEW blocks from zero", f"{SEW} model.residual_gain=0"),
    ("SEW blocks: **default**, their authors' start", f"{SEW} {USUAL}"),
    ("MS blocks, usual start", f"{MS} {USUAL}"),
    ("MS blocks: **default**", MS),
    ("MS blocks, their authors' start, norms and neuron", AUTHORS_MS),
    ("ANN twin", TWIN),
)
STARTS_SAID = (
    *("two epochs of CIFAR-10, test %", "ResNet-20: rate", "seed 0", "seed 1", "seed 2"),
    *("ResNet-56: rate", "seed 0"),
)
WIDTHS = ("0.1", "0.3", "1", "3")
WIDTHS_SAID = (
    "validation %, seed 0, 600 steps, AdamW 6e-3, plain blocks from the usual start, by width"
)
FROM_THE_USUAL_START = (
    ("ResNet-20", f"{S} train.lr=6e-3 {PLAIN_USUAL}"),
    ("ResNet-56", f"{R56} train.lr=6e-3 {PLAIN_USUAL}"),
    ("ResNet-20, two epochs of CIFAR-10 at 1e-2", f"{CIFAR} train.lr=1e-2 {PLAIN_USUAL}"),
)
LONGER = (
    ("ResNet-20, plain", "1", f"{S} {LONG}=1800"),
    ("ResNet-20, MS", "1", f"{S} {MS} {LONG}=1800"),
    ("ResNet-110, plain", "1", f"{R110} {LONG}=1800"),
    ("ResNet-110, MS", "1", f"{R110} {MS} {LONG}=1800"),
    ("ResNet-20, MS", "2", f"{S} {MS} {LONG}=3600"),
    ("ResNet-56, plain", "2", f"{R56} {LONG}=3600"),
    ("ResNet-56, MS", "2", f"{R56} {MS} {LONG}=3600"),
    ("ResNet-20, plain", "6", f"{S} {LONG}=10800"),
    ("ResNet-20, SEW from zero", "6", f"{S} {SEW} {LONG}=10800"),
    ("ResNet-20, MS", "6", f"{S} {MS} {LONG}=10800"),
    ("ResNet-20, ANN twin at 6e-3", "6", f"{S} {TWIN} train.lr=6e-3 train.max_steps=10800"),
)
AT_RATES = (
    ("ResNet-56: plain, usual start", f"{R56} {PLAIN_USUAL}"),
    ("plain, default", R56),
    ("SEW from zero", f"{R56} {SEW}"),
    ("SEW, default", f"{R56} {SEW} {USUAL}"),
    ("MS, usual start", f"{R56} {MS} {USUAL}"),
    ("MS, default", f"{R56} {MS}"),
    ("ANN twin", f"{R56} {TWIN}"),
    ("ResNet-20: plain, default", S),
    ("MS, default", f"{S} {MS}"),
    ("four times as wide, 300 steps: plain", f"{S} model.width=32 train.max_steps=300"),
    ("the same, MS", f"{S} {MS} model.width=32 train.max_steps=300"),
    ("Fashion-MNIST at 28x28, 300 steps: plain", f"{FASHION} train.max_steps=300"),
    ("the same, MS", f"{FASHION} {MS} train.max_steps=300"),
    ("no skip connections: 20 convolutions", f"{CONV} model.depth=20"),
    ("50 convolutions", f"{CONV} model.depth=50"),
    ("20 fully connected layers", f"{CHAIN} model.depth=20"),
    ("50 fully connected layers", f"{CHAIN} model.depth=50"),
)
RATES = ("1e-3", "2e-3", "6e-3", "1e-2", "2e-2", "6e-2")
SGD = (
    ("50 fully connected layers", f"{CHAIN} model.depth=50 {IDENTITY}"),
    ("50 convolutions without skip connections", f"{CONV} model.depth=50"),
    ("ResNet-20: plain", S),
    ("ResNet-20: MS", f"{S} {MS}"),
    ("ResNet-56: plain", R56),
    ("ResNet-56: SEW from zero", f"{R56} {SEW}"),
    ("ResNet-56: MS", f"{R56} {MS}"),
    ("ResNet-56: MS, seed 1", f"{R56} {MS} seed=1"),
)
CLIPPED = ("0.1", "0.3", "0.1 train.clip_grad_norm=1", "0.3 train.clip_grad_norm=1")
ILIF = "neuron.kind=ilif train.lr=1e-2"
AGAIN = f"{FASHION} neuron.kind=ilif train.lr=1e-2 train.max_steps=300"
SUGGESTED = "neuron.kind=ilif train.optimizer=sgd train.lr=0.3 train.clip_grad_norm=1"
EIGHT = (
    f"{S} {SEW} model.name=resnet32 {ILIF} neuron.levels=8 time_steps=2 train.max_steps=400 seed=4"
)
OPENING = (  # net, its settings, 1 / sqrt(blocks)
    ("MS ResNet-20", f"{S} {MS} {ILIF}", "0.33"),
    ("MS ResNet-56", f"{R56} {MS} {ILIF}", "0.19"),
    ("MS ResNet-110, 400 steps", f"{R110} {MS} {ILIF} train.max_steps=400", "0.136"),
    ("Fashion-MNIST, 300 steps: MS ResNet-20", f"{AGAIN} {MS}", "0.33"),
    ("the same, SEW", f"{AGAIN} {SEW}", "0.33"),
    ("the same, plain", AGAIN, "0.33"),
    ("plain ResNet-56, four levels, 6e-3", f"{R56} neuron.kind=ilif neuron.levels=4 train.lr=6e-3", "0.19"),
    ("plain ResNet-110, T = 2, 400 steps", f"{R110} {ILIF} time_steps=2 train.max_steps=400", "0.136"),
    ("the same, seed 1", f"{R110} {ILIF} time_steps=2 train.max_steps=400 seed=1", "0.136"),
    ("drawn afterwards: MS ResNet-44, Fashion-MNIST", f"{AGAIN} {MS} model.name=resnet44 seed=3", "0.218"),
    ("drawn afterwards: SEW ResNet-32, eight levels, T = 2", EIGHT, "0.258"),
)  # fmt: skip
EIGHT_STEPS = f"{SUGGESTED} time_steps=8 train.max_steps=200"
SUGGESTING = (  # the two nets of the grid that the rule was made on
    ("grid: SEW ResNet-110, SGD, T = 2", f"{R110} {SEW} {SUGGESTED} time_steps=2 train.max_steps=400", "0.136"),
    ("grid: MS ResNet-32, SGD, T = 8", f"{FASHION} {MS} model.name=resnet32 {EIGHT_STEPS}", "0.26"),
)  # fmt: skip
TRIED = (
    ("default", ""),
    ("surrogate width 0.1", "neuron.surrogate.width=0.1"),
    ("surrogate width 0.18", "neuron.surrogate.width=0.18"),
    ("surrogate width learnt, one a layer", "width=learnt"),
    ("TET in place of the mean's cross-entropy", "loss.kind=tet"),
    ("learnt thresholds", "neuron.threshold_learnt=true"),
    ("spikes of up to four levels (I-LIF), from zero", "neuron.kind=ilif neuron.levels=4 model.residual_gain=0"),
    ("I-LIF, from 1 / sqrt(blocks)", "neuron.kind=ilif neuron.levels=4 model.residual_gain=0.19"),
    ("branches that start at 0.3", "model.residual_gain=0.3"),
)  # fmt: skip

WITHOUT_SHORTCUTS = ("mlp", "plain")
LIMITED, SGD_ALONE = "train.clip_grad_norm=1", ("train.optimizer", "sgd")
NARROWER, WIDER = ("0.1", "0.15", "0.18", "0.2"), ("0.42", "0.5", "0.6")
KEYS: tuple[tuple[str, str, tuple[str, ...]], ...] = (  # what is compared, nets, what was in the default's place
    ("plain blocks: start, bias and shortcut's gradient together", "plain", (PLAIN_USUAL,)),
    ("plain blocks: straight-through shortcut", "plain", ("model.shortcut_gradient=surrogate",)),
    ("plain blocks: bias in closed form instead of 0", "plain", ("model.residual_bias=0",)),
    ("the same with `neuron.decay_input` or a threshold of 2", "out of reach", ("model.residual_bias=0",)),
    ("MS blocks: from zero instead of 1", "ms", (USUAL,)),
    ("SEW blocks: from 1 instead of zero", "sew", (USUAL,)),
    ("no shortcuts: from the identity", "chain", ("model.start=kaiming",)),
    ("SGD, no shortcuts: limit of 1", "chain", (LIMITED,)),
    ("SGD at 0.3, plain blocks: limit of 1", "plain, 0.3", (LIMITED,)),
    ("SGD at 0.3, MS and SEW blocks: the same, no default", "free, 0.3", (LIMITED,)),
    ("width 0.3 instead of a narrower one", "", tuple(f"neuron.surrogate.width={w}" for w in NARROWER)),
    ("width 0.3 instead of a wider one", "", tuple(f"neuron.surrogate.width={w}" for w in WIDER)),
)  # fmt: skip


def is_of(words: Key, nets: str) -> bool:
    """Whether settings are those of a spiking net of LIF kinds, in one of the classes of KEYS."""
    given = dict(words)
    if given.get("net") or given.get("neuron.kind") in ("ilif", "relu"):
        return False
    chain = given.get("model.name") in WITHOUT_SHORTCUTS
    block = "" if chain else given.get("model.block", "plain")
    far = {"neuron.decay_input": "true", "neuron.v_threshold": "2"}.items() & words
    classes = {"", "chain" if chain else block}
    if far and block == "plain":  # one spike does not reach the threshold
        classes = {"", "out of reach"}
    if given.get("train.lr") == "0.3" and block:  # the default of SGD
        classes.add("plain, 0.3" if block == "plain" else "free, 0.3")
    return nets in classes


def pairs(rows: Rows, nets: str, changes: Iterable[str]) -> list[float]:
    """By how much the default is ahead, for every two rows that differ in a change alone."""
    ahead = []
    for change in changes:
        other = key(change)
        for words, row in rows.by_key.items():
            default = rows.by_key.get(words - other)
            limits = change == LIMITED and SGD_ALONE not in words  # under AdamW none is the default
            if other <= words and default is not None and is_of(words, nets) and not limits:
                values = (float(r["validation"] or 0.1) for r in (default, row))
                first, second = values
                ahead.append(100 * (first - second))
    default = LIMITED in changes or nets == "sew"  # here the change is the default
    return [-value for value in ahead] if default else ahead


def worth(rows: Rows) -> Iterator[tuple[str, ...]]:
    """What each key is worth: pairs, wins, mean and its interval."""
    for label, nets, changes in KEYS:
        found = pairs(rows, nets, changes)
        if len(found) < 2:
            yield label, str(len(found)), "", "", "", ""
            continue
        half = STUDENT[len(found) - 2] * statistics.stdev(found) / math.sqrt(len(found))
        middle = statistics.mean(found)
        bounds = one(middle - half), one(middle + half)
        yield label, str(len(found)), str(sum(v > 0 for v in found)), one(middle), *bounds


def lines(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table in Markdown: words on the left, numbers on the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in (head, rule, *body))


def seeded(rows: Rows, head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table whose lines end with settings: held-out and test accuracies of these, a column for each seed."""
    body = list(body)
    trained = sorted({seed for *_, words in body for seed in rows.by_seed(words)})
    named = {"validation": "validation %", "test": "test %"}
    found = []
    for *label, words in body:
        cells = [
            one(each[seed]) if seed in each else ""
            for column in named
            for each in (rows.by_seed(words, column),)
            for seed in trained
        ]
        found.append((*label, *cells))
    heads = (f"{said}, seed {seed}" for said in named.values() for seed in trained)
    return lines((*head, *heads), found)


def on_cifar(rows: Rows, images: str = CIFAR, net: str = "resnet56") -> dict[str, str]:
    """The settings of each start on CIFAR-10 that has rows, at its best rate."""
    found = {}
    for label, words in ON_CIFAR:
        settings = f"{images} {words}" if "net=" in words else f"{images} model.name={net} {words}"
        if any(rows.has(f"{settings} train.lr={rate}") for rate in CIFAR_RATES):
            found[label] = rows.at_best_rate(settings, CIFAR_RATES)
    return found


def starts(rows: Rows) -> Iterator[tuple[str, ...]]:
    """A line a start: rate and test accuracies of ResNet-20 and of ResNet-56; those without depth stand once."""
    shallow, deep = (on_cifar(rows, net=net) for net in ("resnet20", "resnet56"))
    for label, cell in shallow.items():
        said = list[str]()
        for number, words in enumerate(dict.fromkeys((cell, deep.get(label, "")))):
            if words:
                seeds = [one(value) for value in rows.seeds(words, "test")]
                missing = [""] * (3 - len(seeds)) if number == 0 else []
                said += [words.rpartition("lr=")[2], *seeds, *missing]
        yield (label, *said, *[""] * (6 - len(said)))


def tables(rows: Rows) -> dict[str, str]:
    """By the name of its marks."""

    def at(settings: str, values: Iterable[str], name: str) -> list[str]:
        each = (f"{settings} {name}={value}" for value in values)
        return [one(rows.percent(words)) if rows.has(words) else "" for words in each]

    small = [
        (label, words.rpartition("=")[2], words)
        for label, words in on_cifar(rows, SMALL_CIFAR).items()
    ]
    rates = [(label, *at(words, RATES, "train.lr")) for label, words in AT_RATES]
    widths = [
        (label, *at(words, WIDTHS, "neuron.surrogate.width"))
        for label, words in FROM_THE_USUAL_START
    ]
    sgd = [
        (label, *at(f"{words} train.optimizer=sgd", CLIPPED, "train.lr")) for label, words in SGD
    ]
    opening = [
        (label, *at(words, ("0", gain, "1"), "model.residual_gain"))
        for label, words, gain in (*OPENING, *SUGGESTING)
    ]
    tried = [(label, f"{R56} train.lr=6e-3 {words}") for label, words in TRIED]
    return {
        "cifar": lines(STARTS_SAID, starts(rows)),
        "small": seeded(rows, ("ResNet-56, 600 steps of 32 images of CIFAR-10", "best rate"), small),
        "start": seeded(rows, ("ResNet-56, 600 steps of 32 images, AdamW 6e-3",), START),
        "longer": seeded(rows, ("net, AdamW 1e-2", "epochs"), LONGER),
        "widths": lines((WIDTHS_SAID, *WIDTHS), widths),
        "rates": lines(("validation %, seed 0, AdamW", *RATES), rates),
        "sgd": lines(("validation %, SGD", "0.1", "0.3", "0.1, clipped", "0.3, clipped"), sgd),
        "opening": lines(("validation % by initial weight", "0", "1 / sqrt(blocks)", "1 (usual)"), opening),
        "keys": lines(("default", "pairs", "ahead", "mean, points", "95 % from", "to"), worth(rows)),
        "tried": seeded(rows, ("plain ResNet-56, rate 6e-3",), tried),
        "depth": by_depth(rows),
    }  # fmt: skip


def by_depth(rows: Rows) -> str:
    """Of chains, by the first layer's gradient over the last one's, how many learnt; by the optimizer."""
    named = [word for name in OPTIMIZERS for word in (f"{name}: chains", "these learnt")]
    head = ("first layer's gradient by the last one's", *named)
    found = []
    for name, low, high in (
        ("below 1e-3", 0, 1e-3),
        ("up to 1000", 1e-3, 1e3),
        ("above", 1e3, math.inf),
    ):
        cells = list[str]()
        for asked in OPTIMIZERS.values():
            mine = [
                float(row["validation"] or 0) > 0.2
                for row in rows.rows
                if of_chain(row) == asked and low <= float(row["gradient_ratio"]) <= high
            ]
            cells += [str(len(mine)), str(sum(mine))]
        found.append((name, *cells))
    return lines(head, found)


OPTIMIZERS = {
    "AdamW": ("adamw", True),
    "SGD without a limit": ("sgd", True),
    "SGD, limit of 1": ("sgd", False),
}


def of_chain(row: Row) -> tuple[str, bool] | None:
    """The optimizer, and whether it has no limit on the gradient's norm; None of other nets."""
    words = dict(word.split("=", 1) for word in row["settings"].split())
    if words.get("model.name") not in ("plain", "mlp") or not row["gradient_ratio"]:
        return None
    unlimited = words.get("train.clip_grad_norm", "0") == "0"
    return words.get("train.optimizer", "adamw"), unlimited


def spread(rows: Rows) -> tuple[float, int]:
    """Pooled standard deviation of trainings that differ in the seed alone, in points, and its degrees of freedom."""
    groups: dict[Key, list[float]] = {}
    for words, row in rows.by_key.items():
        if row["validation"]:
            without = frozenset(item for item in words if item[0] != "seed")
            groups.setdefault(without, []).append(100 * float(row["validation"]))
    several = [values for values in groups.values() if len(values) > 1]
    degrees = sum(len(values) - 1 for values in several)
    squares = sum((v - statistics.mean(values)) ** 2 for values in several for v in values)
    return math.sqrt(squares / degrees), degrees


def ahead(rows: Rows, nets: Sequence[tuple[str, str, str]]) -> list[float]:
    """By how much 1 / sqrt(blocks) is ahead of zero."""
    name = "model.residual_gain"
    return [
        rows.percent(f"{words} {name}={gain}") - rows.percent(f"{words} {name}=0")
        for _, words, gain in nets
    ]


def interval(middle: float, deviation: float, degrees: int) -> str:
    half = STUDENT[degrees - 1] * deviation
    return f"{one(middle)} points (95 %: {one(middle - half)} to {one(middle + half)})"


def gained(rows: Rows, settings: str, usual: str) -> str:
    """By how much the test accuracies of one are above those of the other, on average of their seeds."""
    deviation, degrees = spread(rows)
    ours, theirs = (rows.seeds(words, "test") for words in (settings, usual))
    error = deviation * math.sqrt(1 / len(ours) + 1 / len(theirs))
    return interval(statistics.mean(ours) - statistics.mean(theirs), error, degrees)


def facts(rows: Rows) -> list[str]:
    """The numbers of the sentences of the page and of the log."""
    deviation, degrees = spread(rows)
    apart = STUDENT[degrees - 1] * deviation * math.sqrt(2)
    shallow, deep = (on_cifar(rows, net=net) for net in ("resnet20", "resnet56"))
    usual, default = "usual start", "**default**"
    chance, learns = (
        statistics.mean(rows.seeds(deep[label], "test"))
        for label in (f"plain blocks, {usual}", f"plain blocks: {default}")
    )
    authors = deep["MS blocks, their authors' start, norms and neuron"]
    ms, ms_usual = (deep[f"MS blocks{rest}"] for rest in (f": {default}", f", {usual}"))
    free = ahead(rows, OPENING)
    scatter = statistics.stdev(free) / math.sqrt(len(free))
    depth = [one(rows.percent(f"{net} {MS} {LONG}=3600")) for net in (S, R56)]
    return [
        f"{deviation:.1f} points ({degrees} degrees of freedom)",
        f"differ by {apart:.0f}",
        f"({one(chance)} %). The default has {one(learns)} %",
        gained(rows, shallow[f"plain blocks: {default}"], shallow[f"plain blocks, {usual}"]),
        gained(rows, ms, ms_usual),
        f"has {rows.shown(authors, 'test')} %, with ours {rows.shown(ms, 'test')}",
        f"{sum(value > 0 for value in free)} of {len(free)}",
        interval(statistics.mean(free), scatter, len(free) - 1),
        f"{depth[0]} and {depth[1]} %",
    ]


def page(text: str, found: dict[str, str]) -> str:
    """The page with its tables between their marks."""
    for name, table in found.items():
        if f"<!-- {name}: begin -->" in text:
            text = filled(text, name, table)
    return text


def missing(text: str, rows: Rows) -> list[str]:
    return unsaid(text, facts(rows))


def main() -> None:
    rows = Rows()
    for path in PAGES:
        path.write_text(page(path.read_text("utf-8"), tables(rows)), "utf-8")
    if wrong := missing("\n".join(path.read_text("utf-8") for path in PAGES), rows):
        sys.exit("docs/gradient_flow.md and log.md do not say: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
